"""From a process's start to ready: where the seconds go, with Triton's compiled kernels on disk and without.

Each start is a new process that does what the engine's core does before it serves, in the same order and with
the same table. The checkpoint lies in the page cache. Kernels are compiled at their first use into the folder
TRITON_CACHE_DIR (by default ~/.triton/cache), so the first start of all is the slowest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_bench.bench import Bench, known_options


def run(bench: Bench) -> None:
    """Start with an empty cache of kernels, and twice with a full one."""
    checkpoint = bench.checkpoint()
    bench.drop_engine()
    cache = bench.folder / "triton-cache"
    starts = [("cold", cache), ("warm", cache), ("warm", cache)]
    for name, folder in starts[:1] if bench.smoke else starts:
        began = time.time()
        stages = start_once(bench, checkpoint, folder, began)
        total = sum(seconds for _, seconds, _ in stages)
        rows = []
        for stage, seconds, num_bytes in stages:
            rate = f"{num_bytes / seconds / 1e9:.1f}" if num_bytes else ""
            rows.append([stage, f"{seconds:.3f}", f"{100 * seconds / total:.0f}", rate])
        bench.recorder.table(f"start, kernels' cache {name}", ["stage", "s", "%", "GB/s"], rows)
        bench.put(f"start_{name}_to_ready_s", total)
        for stage, seconds, num_bytes in stages:
            bench.put(f"start_{name}_{stage.replace(' ', '_')}_s", seconds)
            if stage == "weights":
                bench.put("weights_to_gpu_s", seconds)
                bench.put("weights_to_gpu_gb_s", num_bytes / seconds / 1e9)


def start_once(bench: Bench, checkpoint: Path, cache: Path, began: float) -> list[tuple[str, float, int]]:
    """Run one start; its stages as (name, seconds, bytes).

    Raises:
        RuntimeError: it failed; the text is the end of its output.
    """
    script = Path(__file__).parents[1] / "gpu.py"
    request = {"model": str(checkpoint), "device": str(bench.device), "began": began, "smoke": bench.smoke}
    done = subprocess.run(
        [sys.executable, str(script), "--start-once", json.dumps(request)],
        env={**os.environ, "TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"a start ended with status {done.returncode}: {done.stderr[-2000:]}")
    stages: list[tuple[str, float, int]] = [
        tuple(stage) for stage in json.loads(done.stdout.splitlines()[-1])
    ]
    return stages


def start_here(request: dict[str, Any]) -> None:
    """The other process: start, and print the stages."""
    from rhizome_engine.core.engine_core import EngineCore
    from rhizome_engine.core.warm_up import warm_up
    from rhizome_engine.runner import ModelRunner
    from rhizome_engine.scheduler.config import SchedulerConfig
    from rhizome_engine.start_times import StartTimes

    # From the moment that the first process wanted this one: Python's own start is part of it.
    times = StartTimes(time.time() - request["began"])
    config = SchedulerConfig(overlap=request["device"] != "cpu")
    if request["smoke"]:
        config = SchedulerConfig(max_step_tokens=64, max_batch_size=4)
    runner = ModelRunner(
        request["model"],
        device=request["device"],
        num_pages=64 if request["smoke"] else 20_000,
        max_num_tokens=config.max_step_tokens,
        max_num_rows=config.max_batch_size,
        overlap=config.overlap,
        **known_options(ModelRunner.__init__, times=times),
    )
    times.done("buffers")
    warm_up(runner, config, 8 if request["smoke"] else 60)
    times.done("first steps")
    EngineCore(runner, config, ())
    times.done("core")
    print(json.dumps([(stage.name, stage.seconds, stage.num_bytes) for stage in times.stages]))
