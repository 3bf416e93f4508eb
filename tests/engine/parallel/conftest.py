"""Texts of an engine core over a runner, and checkpoints that are written once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.core.events import FailedEvent, TokensEvent
from rhizome_engine.runner import ModelRunner
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.request import Request
from rhizome_testing.written_families import write_family


class Text(NamedTuple):
    """What a request got."""

    token_ids: list[int]
    margins: list[float]


def answer(
    runner: ModelRunner, settings: Sequence[SamplingParams], num_tokens: int = 12, *, overlap: bool = False
) -> list[Text]:
    """Answer one prompt per settings, all together; margins between the two likeliest tokens if reported."""
    core = EngineCore(runner, SchedulerConfig(max_batch_size=8, max_step_tokens=40, overlap=overlap))
    texts = [Text([], []) for _ in settings]
    for index, params in enumerate(settings):
        prompt = [(7 * index + 11 * place + 3) % 250 for place in range(9 + 6 * index)]
        core.add(Request(str(index), prompt, params, max_tokens=num_tokens, ignore_eos=True))
    while core.has_work:
        for event in core.step():
            if isinstance(event, FailedEvent):
                raise event.error
            if isinstance(event, TokensEvent):
                text = texts[int(event.request.request_id)]
                text.token_ids.extend(event.token_ids)
                for logprobs in event.logprobs or ():
                    if logprobs is not None and len(logprobs.top) > 1:
                        text.margins.append(logprobs.top[0][1] - logprobs.top[1][1])
    core.check_conservation()
    return texts


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a checkpoint once."""
    made: dict[str, Path] = {}

    def write(name: str, seed: int = 0, **options: Any) -> Path:
        key = f"{name} {seed} {options}"
        if key not in made:
            made[key] = write_family(tmp_path_factory.mktemp("family"), name, seed, **options)
        return made[key]

    return write


@pytest.fixture(scope="session")
def texts_of() -> Callable[..., list[Text]]:
    return answer


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
