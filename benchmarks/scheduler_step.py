"""What the engine core's own Python costs per step: schedule, build the batch, apply the tokens.

    python benchmarks/scheduler_step.py

The model runner answers at once, so everything measured would delay the device.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass

from rhizome_engine.batch import Batch, StepOutput
from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.request import Request

ROWS = (1, 8, 32, 128, 256)
PROMPT_TOKENS = 500
STEPS = 400


@dataclass(frozen=True, slots=True)
class Config:
    """The limits of the pretended model."""

    vocab_size: int = 100_000
    max_position_embeddings: int = 8192


class InstantRunner:
    """Answers every row with the same token."""

    config = Config()
    num_pages = 65_536
    page_size = 16

    def run(self, batch: Batch, /) -> StepOutput:
        """Cost nothing."""
        rows = len(batch.sample_rows)
        return StepOutput([5] * rows, [None] * rows)

    def copy_page(self, source: int, target: int, num_slots: int, /) -> None:
        """Cost nothing."""


def decode_step_us(rows: int) -> float:
    """Median microseconds of a step in which that many requests decode."""
    core = EngineCore(InstantRunner(), SchedulerConfig(max_batch_size=rows, max_step_tokens=2048))
    for row in range(rows):
        core.add(Request(str(row), range(row, row + PROMPT_TOKENS), max_tokens=2 * STEPS))
    while core.load().waiting_tokens:
        core.step()
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        core.step()
        times.append((time.perf_counter() - start) * 1e6)
    return statistics.median(times)


def main() -> None:
    """Print a table, and the figures as one JSON line."""
    figures = {}
    print(f"{'rows':>5}  {'us/step':>8}  {'us/row':>7}")
    for rows in ROWS:
        cost = decode_step_us(rows)
        figures[f"decode_step_us_{rows}"] = round(cost, 1)
        print(f"{rows:>5}  {cost:>8.1f}  {cost / rows:>7.2f}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
