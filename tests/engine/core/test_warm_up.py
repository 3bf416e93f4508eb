"""A warmed-up runner serves as a fresh one does."""

from __future__ import annotations

from pathlib import Path

import pytest

from rhizome_engine.batch import Batch
from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.core.events import TokensEvent
from rhizome_engine.core.runner_protocol import LaunchedStep
from rhizome_engine.core.warm_up import OUTPUT_TOKENS, warm_up
from rhizome_engine.runner import ModelRunner
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.request import Request
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint


@pytest.fixture(name="path", scope="module")
def _path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama_checkpoint(tmp_path_factory.mktemp("model"), LlamaShape(max_position_embeddings=64))


def answer(runner: ModelRunner, config: SchedulerConfig) -> tuple[list[int], int]:
    """Tokens of a random answer, and how many of its prompt's were found in the cache."""
    core = EngineCore(runner, config)
    params = SamplingParams(temperature=1.0, repetition_penalty=1.2, seed=7)
    request = Request("one", [2 * place % 320 for place in range(20)], params, max_tokens=12, ignore_eos=True)
    core.add(request)
    tokens: list[int] = []
    while core.has_work:
        for event in core.step():
            if isinstance(event, TokensEvent):
                tokens += event.token_ids
    core.check_conservation()
    assert core.load().totals.refused == 0
    return tokens, request.cached_tokens


@pytest.mark.parametrize("prompt_tokens", [1, 60, 10_000])
def test_nothing_of_it_is_left(path: Path, prompt_tokens: int):
    config = SchedulerConfig(max_batch_size=2, max_step_tokens=16)
    settings = {"device": "cpu", "num_pages": 8, "max_num_tokens": 16, "max_num_rows": 2}
    runner = ModelRunner(path, **settings)
    warm_up(runner, config, prompt_tokens)
    tokens, cached = answer(runner, config)
    assert cached == 0
    assert tokens == answer(ModelRunner(path, **settings), config)[0]


class Counting:
    """Notes what a runner is asked for."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self.config, self.num_pages, self.page_size = runner.config, runner.num_pages, runner.page_size
        self.steps: list[tuple[int, bool]] = []

    def launch(self, batch: Batch, /) -> LaunchedStep:
        greedy = not len(batch.sampling) or batch.sampling.temperature[0] == 0
        self.steps.append((batch.num_tokens, bool(greedy)))
        return self._runner.launch(batch)


def test_it_goes_through_prompts_and_decodes_greedy_and_random(path: Path):
    runner = Counting(ModelRunner(path, device="cpu", num_pages=8))
    warm_up(runner, SchedulerConfig(), 50)
    decodes = OUTPUT_TOKENS - 1
    assert runner.steps == [(50, True), *[(1, True)] * decodes, (50, False), *[(1, False)] * decodes]
