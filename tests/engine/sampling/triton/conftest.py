"""A faster interpreter: Triton 3.6 prepares its language anew for each function that a kernel calls."""

from __future__ import annotations

import pytest
from triton.runtime import interpreter


@pytest.fixture(autouse=True)
def _prepare_the_language_once_per_launch(monkeypatch):
    prepare_and_call = interpreter.InterpretedFunction.__call__

    def call(function, *args, **kwargs):
        if function.fn.__module__.startswith("triton."):  # those see the language under another name
            return prepare_and_call(function, *args, **kwargs)
        return function.rewrite()(*args, **kwargs)

    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)
