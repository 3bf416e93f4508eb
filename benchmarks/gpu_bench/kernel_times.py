"""What one decode step does on the device: which kernels, for how long, and what lies between them.

|<------------------------- step -------------------------->|
[embed][norm][qkv  ]·[rope][attend]·[o ]··[gate, up    ]...[head     ][choose]
                     ^ gaps: launches, dependencies; in a graph about a microsecond each
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from gpu_bench.bench import Bench

STEPS = 4
GROUPS = {
    "attention": re.compile(r"attend|attention|flash|fmha", re.I),
    "sampling": re.compile(
        r"sampl|penalt|_kth|_put_aside|_mass|_race|_log_sums|topk|argmax|_fill_late", re.I
    ),
    "linear": re.compile(
        r"linear|product|_multiply|_partial_sums|_finish|gemm|gemv|matmul|cutlass|nvjet|splitk|sm90_|addmm|::mm",
        re.I,
    ),
    "norms and the like": re.compile(
        r"norm|silu|gelu|gate|embed|gather|elementwise|copy|fill|index|round", re.I
    ),
}


@dataclass(frozen=True)
class KernelSpan:
    """One kernel's run, in microseconds."""

    name: str
    start: float
    end: float


def step_breakdown(bench: Bench, engine: Any, label: str, prompt: int) -> None:
    """Profile a few steps of one stream in the middle of an answer, and print the table of one of them."""
    from torch.profiler import ProfilerActivity, profile

    taken: list[int] = []
    engine.submit("profiled", engine.prompts(1, prompt)[0], 4 * STEPS + 8)
    for _ in range(6 if not bench.smoke else 3):
        engine.step(lambda _name, ids: taken.extend(ids))
    bench.synchronize()
    activities = [ProfilerActivity.CUDA] if bench.on_gpu else [ProfilerActivity.CPU]
    with profile(activities=[ProfilerActivity.CPU, *activities] if bench.on_gpu else activities) as trace:
        before = len(taken)
        for _ in range(STEPS):
            engine.step(lambda _name, ids: taken.extend(ids))
        bench.synchronize()
    steps = max(len(taken) - before, 1)
    while engine.core.has_work:
        engine.step(lambda _name, ids: taken.extend(ids))
    spans = device_spans(trace, bench.on_gpu)
    if not spans:
        bench.recorder.note(f"{label}: the profiler saw no kernels")
        return
    report(bench, label, spans, steps, engine.work.weight_bytes)


def device_spans(trace: Any, on_gpu: bool) -> list[KernelSpan]:
    """The kernels of a trace, in the order in which they ran."""
    wanted = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    spans = [
        KernelSpan(event.name, event.time_range.start, event.time_range.end)
        for event in trace.events()
        if event.device_type == wanted and not event.name.startswith(("ProfilerStep", "cuda", "Activity"))
    ]
    return sorted(spans, key=lambda span: span.start)


def report(bench: Bench, label: str, spans: Sequence[KernelSpan], steps: int, weight_bytes: int) -> None:
    """Write the table and its sums down; all figures are of one step."""
    busy = sum(span.end - span.start for span in spans) / steps
    wall = (max(span.end for span in spans) - spans[0].start) / steps
    bench.put(f"{label}_kernels_per_step", round(len(spans) / steps))
    bench.put(f"{label}_kernel_time_us", busy)
    bench.put(f"{label}_gaps_us", max(wall - busy, 0.0))
    groups = dict.fromkeys([*GROUPS, "other"], 0.0)
    by_name: dict[str, tuple[float, int]] = {}
    for span in spans:
        groups[group_of(span.name)] += (span.end - span.start) / steps
        total, count = by_name.get(span.name, (0.0, 0))
        by_name[span.name] = total + span.end - span.start, count + 1
    for group, time_us in groups.items():
        bench.put(f"{label}_{group.replace(' ', '_')}_us", time_us)
    if groups["linear"]:
        bench.put(f"{label}_linear_tb_s", weight_bytes / groups["linear"] / 1e6)
    rows = [
        [
            _short(name),
            f"{count / steps:.1f}",
            f"{total / count:.2f}",
            f"{total / steps:.1f}",
            f"{100 * total / steps / max(busy, 1e-9):.0f}",
        ]
        for name, (total, count) in sorted(by_name.items(), key=lambda item: -item[1][0])[:14]
    ]
    bench.recorder.table(f"{label}: kernels of one step", ["kernel", "runs", "us each", "us", "%"], rows)


def group_of(kernel: str) -> str:
    """What a kernel is for, by its name."""
    return next((group for group, pattern in GROUPS.items() if pattern.search(kernel)), "other")


def _short(name: str) -> str:
    name = re.sub(r"<.*", "", name.removeprefix("void "))
    return name.split("::")[-1][-48:] or name[:48]
