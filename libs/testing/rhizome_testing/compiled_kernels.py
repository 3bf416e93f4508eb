"""Triton kernels compiled for a GPU that is not there: what would be launched is compiled, and not launched.

The compiler needs to be told a target only, and brings the assembler along. So a test without a GPU learns
whether a kernel compiles, what registers and shared memory it takes and which instructions it became; the
arguments may be tensors on the device "meta", as large as those of a real model. Kernels must not be
interpreted: run this in a process without `TRITON_INTERPRET`.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.jit import JITFunction

HOPPER = 90


@dataclass(frozen=True, slots=True)
class CompiledLaunch:
    """One launch.

    Attributes:
        name: of the kernel.
        grid: programs in each direction.
        num_warps: of a program.
        shared_bytes: shared memory of a program.
        registers: of a thread.
        spilled_bytes: of a thread's registers and arrays that went to memory.
        ptx: its instructions before assembly.
    """

    name: str
    grid: tuple[int, ...]
    num_warps: int
    shared_bytes: int
    registers: int
    spilled_bytes: int
    ptx: str


class _TargetOnly(DriverBase):  # type: ignore[misc]
    """What the compiler asks of a driver."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError("nothing is launched")

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_active_torch_device(self) -> object:
        raise NotImplementedError("nothing is launched")

    def get_benchmarker(self) -> object:
        raise NotImplementedError("nothing is launched")

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiling(capability: int = HOPPER) -> Iterator[list[CompiledLaunch]]:
    """Compile what is launched inside, for a compute capability such as 90; the list grows by each launch.

    Raises:
        whatever the compiler raises, from the launch.
    """
    launches: list[CompiledLaunch] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **kwargs: Any) -> None:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        registers, spilled = _resources(kernel.asm["cubin"])
        metadata = kernel.metadata
        ptx = kernel.asm["ptx"]
        launches.append(
            CompiledLaunch(
                metadata.name, tuple(grid), metadata.num_warps, metadata.shared, registers, spilled, ptx
            )
        )

    triton.runtime.driver.set_active(_TargetOnly(capability))
    with mock.patch.object(JITFunction, "run", compile_only):
        yield launches


def _resources(cubin: bytes) -> tuple[int, int]:
    """Return registers and bytes of local memory of a thread, as the assembler wrote them down."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        said = subprocess.run(
            [str(tool), "-res-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    found = re.findall(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", said)
    registers, stack, local = (max(int(row[i]) for row in found) for i in range(3))
    return registers, stack + local
