"""What the scheduler costs, and what it does to latencies.

    python benchmarks/scheduler.py

1. The engine core's own Python per step, for steps in which everybody decodes. The runner answers at once, so
   everything measured would delay the device if steps were not overlapped.
2. On a random model with a long window: the longest gap between two tokens of eight running streams when a
   4,000-token prompt arrives, of the same tenant or of another one, in units of a full step.
3. On the bundled model: the time of one request of a tenant while another tenant always has 50 open, as a
   ratio to its time alone. A very short one mostly waits for the step that is under way when it comes.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the engine core's process does

import numpy as np

from rhizome_engine.batch import Batch, StepOutput, TokenMasks
from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.core.events import FinishedEvent, TokensEvent
from rhizome_engine.core.runner_protocol import StepCounts
from rhizome_engine.runner import ModelRunner
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.request import Request
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint

ROWS = (1, 8, 32, 128, 256)
PROMPT_TOKENS = 500
STEPS = 400
BUDGET = 512
LONG_WINDOW = LlamaShape(
    vocab_size=4096,
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=8192,
)


class Shape(NamedTuple):
    """Tokens of prompt and answer, of the lone tenant and of the others."""

    name: str
    prompt: int
    answer: int
    others_prompt: int
    others_answer: int


SHAPES = (
    Shape("usual", 256, 32, 64, 200),
    Shape("others_long_prompts", 256, 32, 1500, 20),
    Shape("long_answer", 8, 128, 64, 200),
    Shape("long_prompt", 1500, 16, 64, 200),
    Shape("very_short", 64, 4, 64, 200),
)
MODEL = Path(__file__).parents[1] / "models" / "demo"


@dataclass(frozen=True, slots=True)
class Config:
    """The limits of the pretended model."""

    vocab_size: int = 100_000
    max_position_embeddings: int = 8192


class InstantStep:
    """Answers every row with the same token."""

    def __init__(self, batch: Batch) -> None:
        self._rows = len(batch.sampling)

    def sample(self, masks: TokenMasks | None, /) -> None:
        """Cost nothing."""

    def result(self) -> StepOutput:
        """Cost next to nothing."""
        return StepOutput([5] * self._rows, [None] * self._rows)


class InstantRunner:
    """Computes nothing."""

    config = Config()
    num_pages = 65_536
    page_size = 16
    counts = StepCounts()

    def use_idle_time(self) -> bool:
        """There is nothing to make faster."""
        return False

    def launch(self, batch: Batch, /) -> InstantStep:
        """Cost nothing."""
        return InstantStep(batch)


def decode_step_us(rows: int, params: SamplingParams) -> float:
    """Median microseconds of a step in which that many requests decode."""
    config = SchedulerConfig(max_batch_size=rows, max_step_tokens=2048, max_partial_prefills=rows)
    core = EngineCore(InstantRunner(), config)
    for row in range(rows):
        core.add(Request(str(row), range(row, row + PROMPT_TOKENS), params, max_tokens=2 * STEPS))
    while core.load().waiting_tokens:
        core.step()
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        core.step()
        times.append((time.perf_counter() - start) * 1e6)
    return statistics.median(times)


def core_of(model: Path, **config: object) -> EngineCore:
    """A model behind a scheduler."""
    settings = SchedulerConfig(max_step_tokens=BUDGET, **config)  # type: ignore[arg-type]
    runner = ModelRunner(
        model, device="cpu", num_pages=4096, max_num_tokens=BUDGET, max_num_rows=settings.max_batch_size
    )
    return EngineCore(runner, settings, runner.checkpoint.eos_token_ids)


def prompt(length: int, seed: int) -> list[int]:
    """Random tokens."""
    return np.random.default_rng(seed).integers(10, 500, length).tolist()  # type: ignore[no-any-return]


def longest_gap(model: Path, tenant: str) -> tuple[float, float]:
    """Milliseconds of the longest gap of any stream, and of a step with a full budget."""
    core = core_of(model)
    for stream in range(8):
        core.add(Request(str(stream), prompt(16, stream), max_tokens=100, ignore_eos=True, tenant="streams"))
    for _ in range(16):
        core.step()
    core.add(Request("long", prompt(4000, 99), max_tokens=4, ignore_eos=True, tenant=tenant))
    full_steps: list[float] = []
    last: dict[str, float] = {}
    gaps: list[float] = []
    long_done = False
    while not long_done:
        start = time.perf_counter()
        busy = core.load().waiting_tokens >= BUDGET
        for event in core.step():
            name = event.request.request_id
            now = time.perf_counter()
            if isinstance(event, TokensEvent) and name != "long":
                gaps.append((now - last.get(name, now)) * 1e3)
                last[name] = now
            long_done |= isinstance(event, FinishedEvent) and name == "long"
        if busy:
            full_steps.append((time.perf_counter() - start) * 1e3)
    return max(gaps), statistics.median(full_steps)


def lone_tenant_s(others: int, shape: Shape) -> float:
    """Seconds from arrival to end of one request while another tenant always has so many open."""
    core = core_of(MODEL)
    sent = 0

    def fill_up() -> None:
        nonlocal sent
        while sent - finished < others:
            ids = prompt(shape.others_prompt, sent)
            core.add(
                Request(f"many-{sent}", ids, max_tokens=shape.others_answer, tenant="many", ignore_eos=True)
            )
            sent += 1

    finished = 0
    for _ in range(20):
        fill_up()
        finished += sum(isinstance(event, FinishedEvent) for event in core.step())
    start = time.perf_counter()
    core.add(
        Request("lone", prompt(shape.prompt, 1000), max_tokens=shape.answer, tenant="lone", ignore_eos=True)
    )
    while True:
        for event in core.step():
            if isinstance(event, FinishedEvent):
                if event.request.request_id == "lone":
                    return time.perf_counter() - start
                finished += 1
        fill_up()


def main() -> None:
    """Print tables, and the figures as one JSON line."""
    figures = {}
    print(f"{'rows':>5}  {'us/step':>8}  {'us/row':>7}  {'with top-p, penalties, bias':>28}")
    busy = SamplingParams(top_p=0.9, frequency_penalty=0.5, logit_bias={7: 1.0})
    for rows in ROWS:
        cost, cost_busy = decode_step_us(rows, SamplingParams()), decode_step_us(rows, busy)
        figures[f"decode_step_us_{rows}"] = round(cost, 1)
        figures[f"decode_step_us_{rows}_all_settings"] = round(cost_busy, 1)
        print(f"{rows:>5}  {cost:>8.1f}  {cost / rows:>7.2f}  {cost_busy:>28.1f}")
    with tempfile.TemporaryDirectory() as directory:
        model = write_llama_checkpoint(Path(directory), LONG_WINDOW)
        for tenant in ("streams", "reader"):
            gap, full = longest_gap(model, tenant)
            whose = "the same tenant" if tenant == "streams" else "another tenant"
            figures[f"longest_gap_steps_{'same' if tenant == 'streams' else 'other'}_tenant"] = round(
                gap / full, 2
            )
            print(f"a prompt of 4,000 tokens of {whose} among 8 streams: a gap of {gap:.0f} ms", end="")
            print(f" = {gap / full:.2f} full steps")
    for shape in SHAPES:
        pairs = [(lone_tenant_s(0, shape), lone_tenant_s(50, shape)) for _ in range(6)][1:]
        alone, among = (statistics.median(times) for times in zip(*pairs, strict=True))
        figures[f"lone_tenant_ratio_{shape.name}"] = round(among / alone, 2)
        print(f"{shape.prompt} + {shape.answer} tokens beside a tenant with 50 requests of", end=" ")
        print(f"{shape.others_prompt} + {shape.others_answer}: {among * 1e3:.0f} ms,", end=" ")
        print(f"{among / alone:.2f} times alone")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
