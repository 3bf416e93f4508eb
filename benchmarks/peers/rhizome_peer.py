"""Rhizome's own engine core (scheduler, cache, model runner, sampling) in one process, without a transport.

python rhizome_peer.py CHECKPOINT [--options '{"quantization": "int8"}']
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the engine core's process does

from workload import TokenTimes, report, workload_of, workload_parser

from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.core.events import TokensEvent
from rhizome_engine.runner import ModelRunner
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.request import Request


class Core:
    """One engine core; each call steps it until all requests have ended."""

    def __init__(
        self, checkpoint: Path, threads: int, step_tokens: int | None, options: dict[str, Any]
    ) -> None:
        config = SchedulerConfig()
        if step_tokens is not None:
            config = replace(config, max_step_tokens=step_tokens)
        runner = ModelRunner(
            checkpoint,
            device="cpu",
            num_pages=1024,
            max_num_tokens=config.max_step_tokens,
            max_num_rows=config.max_batch_size,
            num_threads=threads,
            **options,
        )
        self.core = EngineCore(runner, config, runner.checkpoint.eos_token_ids)
        self.calls = 0

    def __call__(self, prompts: Sequence[Sequence[int]], output_tokens: int) -> TokenTimes:
        """Generate; a token's time is the end of the step that reported it."""
        self.calls += 1
        times: dict[str, list[float]] = {f"{self.calls}.{row}": [] for row in range(len(prompts))}
        arrival = time.perf_counter()
        for name, prompt in zip(times, prompts, strict=True):
            greedy = SamplingParams(temperature=0.0)
            self.core.add(Request(name, list(prompt), greedy, max_tokens=output_tokens, ignore_eos=True))
        while self.core.has_work:
            events = self.core.step()
            now = time.perf_counter()
            for event in events:
                if isinstance(event, TokensEvent):
                    times[event.request.request_id].extend([now] * len(event.token_ids))
        return TokenTimes(arrival, list(times.values()))


def main() -> None:
    """Load, measure, print one JSON line."""
    parser = workload_parser(__doc__ or "")
    parser.add_argument("--name", default="rhizome")
    parser.add_argument("--step-tokens", type=int, help="the scheduler's token budget of one step")
    parser.add_argument("--options", type=json.loads, default={}, help="of the model runner")
    arguments = parser.parse_args()
    workload = workload_of(arguments)
    core = Core(workload.checkpoint, workload.threads, arguments.step_tokens, arguments.options)
    report(arguments.name, {"torch": version("torch")}, workload, core)


if __name__ == "__main__":
    main()
