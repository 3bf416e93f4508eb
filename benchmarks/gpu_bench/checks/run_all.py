"""Whether everything on the device computes what its reference computes.

Most of the time goes into compiling kernels, which a process does one after the other. So each group is a
process of its own, all at once, and a CUDA error in one of them leaves the others alone.
"""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
from gpu_bench.bench import Bench, SkipSection
from gpu_bench.checks import attention, loading, model, products, sampling
from gpu_bench.checks.compare import exact_float32

GROUPS = {
    "loading": loading.run,
    "products_bfloat16": partial(products.run, chosen=("bfloat16",)),
    "products_int8": partial(products.run, chosen=("int8",)),
    "products_fp8": partial(products.run, chosen=("fp8",)),
    "products_int4_g": partial(products.run, chosen=("int4-g",)),
    "products_int8_g": partial(products.run, chosen=("int8-g",)),
    "attention_1b": partial(attention.run, chosen=("1B", "tiny")),
    "attention_8b": partial(attention.run, chosen=("8B",)),
    "attention_other": partial(attention.run, chosen=("window", "head 256")),
    "sampling": sampling.run,
    "model": model.run,
}


def run(bench: Bench) -> None:
    """Run all groups.

    Raises:
        SkipSection: there is no Triton for this device.
        RuntimeError: the process of a group ended badly; its checks up to then are written down.
    """
    from rhizome_engine.kernels.triton.runtime import why_not

    missing = why_not(bench.device)
    if missing is not None:
        raise SkipSection(missing)
    if bench.smoke:
        for name in GROUPS:
            run_group(bench, name)
        return
    bench.checkpoint()
    script = Path(__file__).parents[2] / "gpu.py"
    command = [sys.executable, str(script), "--folder", str(bench.folder), "--device", str(bench.device)]
    children = {
        name: subprocess.Popen([*command, "--child", "checks_group", "--part", name]) for name in GROUPS
    }
    ended = {name: child.wait() for name, child in children.items()}
    bad = {name: status for name, status in ended.items() if status}
    if bad:
        raise RuntimeError(f"processes of checks ended with {bad}")


def run_group(bench: Bench, name: str) -> None:
    """Run one group; where it cannot begin, that is a check that failed."""
    torch.manual_seed(0)
    began = time.perf_counter()
    try:
        with exact_float32():
            GROUPS[name](bench)
    except Exception as error:
        bench.recorder.check(name, passed=False, detail=f"did not run: {type(error).__name__}: {error}")
        if "CUDA error" in str(error):
            raise
    bench.put(f"checks_{name}_s", time.perf_counter() - began)
