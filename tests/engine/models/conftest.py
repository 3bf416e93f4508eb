"""A driver that stands in for the scheduler: it owns pages and turns sequences into batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rhizome_engine.batch import Batch, SlotHistory
from rhizome_engine.runner import ModelRunner
from rhizome_engine.sampling.params import SamplingParams
from rhizome_testing.sampling_batch import sampling_batch

GREEDY = SamplingParams(temperature=0.0)


@dataclass
class Sequence:
    """One request: `ids` are prompt and output, `computed` of them have keys in the pool."""

    ids: list[int]
    params: SamplingParams = GREEDY
    seed: int = 0
    prompt_len: int = field(init=False)
    computed: int = 0
    pages: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ids = list(self.ids)
        self.prompt_len = len(self.ids)

    @property
    def output(self) -> list[int]:
        return self.ids[self.prompt_len :]


class Driver:
    """Computes sequences step by step; pages are handed out from the end, so that they are never in order."""

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        self.free = list(range(runner.num_pages))

    def batch(self, work: Iterable[tuple[Sequence, int]]) -> Batch:
        """Lay out (sequence, number of new tokens) as a batch, taking pages as needed."""
        work = list(work)
        size = self.runner.page_size
        ids, positions, slots, starts, contexts, samples, histories = [], [], [], [0], [], [], []
        for row, (sequence, count) in enumerate(work):
            end = sequence.computed + count
            while len(sequence.pages) * size < end:
                sequence.pages.append(self.free.pop())
            span = np.arange(sequence.computed, end)
            ids += sequence.ids[sequence.computed : end]
            positions += span.tolist()
            slots += (np.array(sequence.pages)[span // size] * size + span % size).tolist()
            starts.append(len(ids))
            contexts.append(end)
            if end == len(sequence.ids):
                samples.append((row, end))
                if sequence.params.needs_history:
                    histories.append(SlotHistory(row, np.array(sequence.ids, np.int32)))
        table = np.zeros((len(work), max(len(sequence.pages) for sequence, _ in work)), np.int32)
        for row, (sequence, _) in enumerate(work):
            table[row, : len(sequence.pages)] = sequence.pages
        rows = [row for row, _ in samples]
        sampled = [work[row][0] for row in rows]
        return Batch(
            token_ids=np.array(ids, np.int64),
            positions=np.array(positions, np.int64),
            slot_mapping=np.array(slots, np.int64),
            query_start=np.array(starts, np.int32),
            context_len=np.array(contexts, np.int32),
            page_table=table,
            slots=np.arange(len(work)),
            sampling=sampling_batch(
                [sequence.params for sequence in sampled],
                [position for _, position in samples],
                self.runner.config.vocab_size,
                rows=rows,
                seeds=[sequence.seed for sequence in sampled],
                num_prompt=[sequence.prompt_len for sequence in sampled],
            ),
            histories=histories,
        )

    def step(self, work: Iterable[tuple[Sequence, int]]) -> None:
        """Compute new tokens and append what was sampled."""
        work = list(work)
        batch = self.batch(work)
        output = self.runner.run(batch)
        for sequence, count in work:
            sequence.computed += count
        for row, token in zip(batch.sampling.rows.tolist(), output.token_ids, strict=True):
            work[row][0].ids.append(token)

    def generate(self, sequences: list[Sequence], num_tokens: int, chunk: int = 512) -> list[list[int]]:
        """Run all sequences together until each has `num_tokens` new ones, at most `chunk` a step."""
        while running := [sequence for sequence in sequences if len(sequence.output) < num_tokens]:
            self.step((sequence, min(chunk, len(sequence.ids) - sequence.computed)) for sequence in running)
        return [sequence.output for sequence in sequences]

    def all_logits(self, ids: list[int], chunks: Iterable[int]) -> Tensor:
        """Prefill `ids` in chunks and return the logits of every token."""
        sequence = Sequence(list(ids))
        parts = []
        for count in chunks:
            parts.append(self.runner.logits(self.batch([(sequence, count)])))
            sequence.computed += count
        assert sequence.computed == len(ids)
        return torch.cat(parts)


def greedy_text(oracle: Any, prompt: list[int], num_tokens: int) -> list[int]:
    """Return the likeliest continuation that a transformers model finds, none of it nearly a tie."""
    ids, past, output = torch.tensor([prompt]), None, []
    with torch.no_grad():
        for _ in range(num_tokens):
            result = oracle(ids, past_key_values=past, use_cache=True)
            past = result.past_key_values
            best = result.logits[0, -1].topk(2)
            margin = float(best.values[0] - best.values[1]) / float(result.logits.abs().max())
            assert margin > 5e-4, "the checkpoint's seed gives a near tie; take another seed"
            output.append(int(best.indices[0]))
            ids = best.indices[None, :1]
    return output


def make_runner(checkpoint: Path, kernels: str, **settings: Any) -> ModelRunner:
    """Load a checkpoint in float32 for few tokens; skips where this machine has no such kernels."""
    try:
        return ModelRunner(
            checkpoint,
            **{"device": "cpu", "dtype": "float32", "num_pages": 64, "kernels": kernels, **settings},
        )
    except ValueError as error:
        if kernels == "native" and "native kernels were asked for" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="session")
def greedy() -> Callable[[Any, list[int], int], list[int]]:
    return greedy_text


@pytest.fixture(scope="session")
def load() -> Callable[..., ModelRunner]:
    return make_runner


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def drive() -> Callable[[ModelRunner], Driver]:
    return Driver


@pytest.fixture
def sequence() -> type[Sequence]:
    return Sequence
