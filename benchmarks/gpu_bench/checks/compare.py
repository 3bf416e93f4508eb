"""How a result is held to its reference: relative error of the whole, and no number that is none."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from gpu_bench.bench import Bench
from torch import Tensor


@dataclass(frozen=True)
class Comparison:
    """What a check found.

    Attributes:
        passed: whether it is near enough.
        detail: errors and shapes, in words.
    """

    passed: bool
    detail: str


def near(found: Tensor, expected: Tensor, tolerance: float) -> Comparison:
    """Compare by ‖found - expected‖ / ‖expected‖, in float64.

    Args:
        found: to be checked.
        expected: in a wider format.
        tolerance: of the ratio. bfloat16 operands lie between 1e-3 and 1e-2.
    """
    if found.shape != expected.shape:
        return Comparison(False, f"shape {list(found.shape)}, expected {list(expected.shape)}")
    wrong = int((~found.isfinite()).sum())
    difference = (found.double() - expected.double()).nan_to_num(nan=1e30)
    scale = float(expected.double().norm()) or 1.0
    error = float(difference.norm()) / scale
    largest = float(difference.abs().max()) if difference.numel() else 0.0
    detail = (
        f"{list(found.shape)}: relative error {error:.1e} (at most {tolerance:.0e}), largest {largest:.2e}"
    )
    if wrong:
        detail += f", {wrong} elements are NaN or infinite"
    return Comparison(error <= tolerance and not wrong, detail)


def check(bench: Bench, name: str, work: Callable[[], Comparison], *, inference: bool = True) -> None:
    """Run a check; an exception is a failure with its last line, and the others go on.

    Args:
        bench: where to write it down.
        name: of the check.
        work: what is checked.
        inference: without gradients; not where threads of its own write tensors.

    Raises:
        RuntimeError: the device is lost to this process; nothing after this would mean anything.
    """
    try:
        with torch.inference_mode(inference):
            found = work()
        bench.synchronize()
    except Exception as error:
        text = traceback.format_exc().strip().splitlines()
        bench.recorder.check(name, passed=False, detail=f"{text[-1][:300]} at {_place(text)}")
        if "CUDA error" in str(error):
            raise
        return
    bench.recorder.check(name, passed=found.passed, detail=found.detail)


def _place(lines: list[str]) -> str:
    """The last line of our own in a traceback."""
    ours = [line.strip() for line in lines if "rhizome_" in line and line.strip().startswith("File")]
    return ours[-1].split(", in")[0].split("/")[-1] if ours else "the check"


@contextmanager
def exact_float32() -> Iterator[None]:
    """References in float32 are computed in float32: no tf32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
