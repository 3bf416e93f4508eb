"""Requests as the engine core admits them, without an engine core."""

from __future__ import annotations

import itertools

import pytest

from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.scheduler.request import Request


@pytest.fixture(scope="session")
def make_request():
    """Makes admitted requests, numbered in the order of their arrival."""
    numbers = itertools.count(1)

    def make(prompt_ids=(1, 2, 3), max_output=10, arrival=0.0, **settings):
        number = next(numbers)
        settings.setdefault("params", SamplingParams(seed=number))
        request = Request(settings.pop("request_id", str(number)), prompt_ids, **settings)
        request.admit(max_output, frozenset(), arrival, 0)
        request.arrival_order = number
        return request

    return make
