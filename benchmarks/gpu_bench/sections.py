"""The sections in their order: what each is, how long it may take, and which want a process of their own."""

from __future__ import annotations

import importlib
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from gpu_bench.bench import Bench, SkipSection


@dataclass(frozen=True)
class Section:
    """A part of the run.

    Attributes:
        name: for `--sections`.
        where: module and function.
        limit_s: it is killed when it takes longer.
        alone: in a process of its own: what others left compiled or allocated would be measured too.
        usual: part of a run that names no sections.
        smoke: part of a try-out that names none.
    """

    name: str
    where: str
    limit_s: float
    alone: bool = False
    usual: bool = True
    smoke: bool = True

    def function(self) -> Callable[[Bench], None]:
        """What measures it."""
        module, _, name = self.where.partition(":")
        found: Callable[[Bench], None] = getattr(importlib.import_module(f"gpu_bench.{module}"), name)
        return found


SECTIONS = (
    Section("model", "sections:make_models", 60),
    Section("ceilings", "ceilings:run", 40),
    Section("checks", "checks.run_all:run", 170, alone=True),
    Section("start", "start:run", 100, alone=True),
    Section("first_token", "latency:run_first_token", 60, alone=True),
    Section("decode", "decode:run_bf16", 60),
    Section("prefill", "latency:run_prefill", 40),
    Section("streams", "streams:run", 90),
    Section("cached_prefix", "latency:run_cached_prefix", 30),
    Section("gaps", "latency:run_gaps", 45),
    Section("decode_int8", "decode:run_int8", 45),
    Section("decode_int4", "decode:run_int4", 45),
    Section("transformers", "peers:run", 140, alone=True, smoke=False),
    Section("decode_fp8", "decode:run_fp8", 45),
    Section("decode_eager", "decode:run_eager", 45),
    Section("decode_dependent", "decode:run_dependent", 45, alone=True, smoke=False),
    Section("http", "http_stack:run", 90, alone=True, smoke=False),
    Section("decode_8b", "decode:run_8b", 120, alone=True),
    Section("checks_group", "sections:run_checks_group", 200, usual=False),
    Section("tune", "tune:run", 500, alone=True, usual=False),
)
BY_NAME = {section.name: section for section in SECTIONS}


def make_models(bench: Bench) -> None:
    """Write the checkpoint that most sections read."""
    began = time.perf_counter()
    path = bench.checkpoint()
    size = sum(file.stat().st_size for file in path.iterdir())
    bench.put("checkpoint_bytes", size)
    bench.put("checkpoint_made_s", time.perf_counter() - began)


def run_checks_group(bench: Bench) -> None:
    """One process of the checks."""
    from gpu_bench.checks.run_all import run_group

    run_group(bench, bench.part)


def run_sections(bench: Bench, names: list[str]) -> None:
    """Run some in this process, one after the other; what one raises is written down and the next one runs.

    A CUDA error stays with its process: the sections after it are left to a new one.
    """
    for name in names:
        shown = name if not bench.part else f"{name} {bench.part}"
        print(shown, flush=True)
        bench.recorder.section(shown, "started")
        try:
            BY_NAME[name].function()(bench)
            bench.synchronize()
        except SkipSection as reason:
            bench.recorder.section(shown, "skipped", str(reason))
            print(f"    skipped: {reason}", flush=True)
        except Exception as error:
            text = traceback.format_exc()
            bench.recorder.section(shown, "failed", text)
            print("    FAILED\n" + "\n".join(f"    | {line}" for line in text.splitlines()[-12:]), flush=True)
            if _poisoned(error):
                return
            bench.drop_engine()
        else:
            bench.recorder.section(shown, "ok")


def _poisoned(error: Exception) -> bool:
    """Whether nothing more can be computed in this process."""
    text = f"{type(error).__name__}: {error}"
    return "CUDA error" in text or "AcceleratorError" in text or "device-side assert" in text
