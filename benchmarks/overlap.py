"""What it brings to launch a step before the one before was read.

    python benchmarks/overlap.py

1. A device that computes by itself: a step takes a fixed time in which the host is free, as on a GPU. 256
   requests decode. Printed: steps per second in turn and overlapped, and the share of the device's time used.
2. The bundled model on this CPU, where the model computes in a thread and competes with the host for cores.
"""

from __future__ import annotations

import json
import os
import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the engine core's process does

from rhizome_engine.batch import Batch, StepOutput, TokenMasks
from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.core.runner_protocol import Runner, StepCounts
from rhizome_engine.runner import ModelRunner
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.request import Request

ROWS = 256
STEP_S = 1e-3
STEPS = 300
MODEL = Path(__file__).parents[1] / "models" / "demo"
GREEDY = SamplingParams(temperature=0.0)


@dataclass(frozen=True, slots=True)
class Config:
    """The limits of the pretended model."""

    vocab_size: int = 100_000
    max_position_embeddings: int = 8192


class SleepingStep:
    """Done when its time has come."""

    def __init__(self, rows: int, done_at: float) -> None:
        self._rows = rows
        self._done_at = done_at

    def sample(self, masks: TokenMasks | None, /) -> None:
        """Cost nothing."""

    def result(self) -> StepOutput:
        """Wait like a device's event: without using a core."""
        left = self._done_at - time.perf_counter()
        if left > 0:
            threading.Event().wait(left)
        return StepOutput([5] * self._rows, [None] * self._rows)


class SleepingDevice:
    """Computes one step after the other, each in `STEP_S`, whatever the host does."""

    config = Config()
    num_pages = 65_536
    page_size = 16
    counts = StepCounts()

    def __init__(self) -> None:
        self._free_at = 0.0

    def use_idle_time(self) -> bool:
        """There is nothing to make faster."""
        return False

    def launch(self, batch: Batch, /) -> SleepingStep:
        """Queue a step."""
        self._free_at = max(self._free_at, time.perf_counter()) + STEP_S
        return SleepingStep(len(batch.sampling), self._free_at)


def steps_per_s(runner: Runner, rows: int, steps: int, *, overlap: bool) -> float:
    """Steps per second while that many requests decode."""
    core = EngineCore(
        runner,
        SchedulerConfig(
            max_batch_size=rows, max_step_tokens=2048, max_partial_prefills=rows, overlap=overlap
        ),
    )
    for row in range(rows):
        core.add(Request(str(row), range(row, row + 30), GREEDY, max_tokens=2 * steps, ignore_eos=True))
    while core.load().waiting_tokens:
        core.step()
    start = time.perf_counter()
    for _ in range(steps):
        core.step()
    rate = steps / (time.perf_counter() - start)
    core.drop_peer(None)
    while core.has_work:
        core.step()
    return rate


def main() -> None:
    """Print both comparisons, and the figures as one JSON line."""
    figures = {}
    runs = [
        [steps_per_s(SleepingDevice(), ROWS, STEPS, overlap=overlap) for overlap in (False, True)]
        for _ in range(5)
    ]
    in_turn, overlapped = (statistics.median(rates) for rates in zip(*runs, strict=True))
    figures["device_steps_per_s_in_turn"] = round(in_turn, 1)
    figures["device_steps_per_s_overlapped"] = round(overlapped, 1)
    figures["device_used_in_turn"] = round(in_turn * STEP_S, 3)
    figures["device_used_overlapped"] = round(overlapped * STEP_S, 3)
    print(f"a device with steps of {STEP_S * 1e3:g} ms, {ROWS} rows: in turn {in_turn:.0f} steps/s", end="")
    print(f" ({in_turn * STEP_S:.0%} used), overlapped {overlapped:.0f} ({overlapped * STEP_S:.0%} used)")
    runners = [
        ModelRunner(MODEL, device="cpu", num_pages=4096, max_num_tokens=2048, overlap=overlap)
        for overlap in (False, True)
    ]
    for rows in (1, 8, 32):
        runs = [
            [steps_per_s(runner, rows, 60, overlap=index == 1) for index, runner in enumerate(runners)]
            for _ in range(6)
        ][1:]
        in_turn, overlapped = (statistics.median(rates) for rates in zip(*runs, strict=True))
        figures[f"cpu_overlap_ratio_{rows}"] = round(overlapped / in_turn, 3)
        print(f"this CPU, {rows:>2} rows: overlapped {overlapped / in_turn:.2f} times in turn")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
