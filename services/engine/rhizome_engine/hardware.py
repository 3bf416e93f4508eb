"""What an engine would choose on this machine: `python -m rhizome_engine.hardware` prints it as JSON.

`rhizome doctor` asks here, in a process of its own, because only the engine may load torch.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass

import torch

from rhizome_engine.attention.choose import AttentionChoice, probe
from rhizome_engine.kernels.native.native_kernels import NativeKernels
from rhizome_engine.runner.device import choose_device
from rhizome_engine.runner.numerics import Numerics, choose_numerics


@dataclass(frozen=True, slots=True)
class CudaDevice:
    """A GPU that torch can use.

    Attributes:
        name: as the driver calls it.
        total_bytes: its memory.
        compute_capability: such as `9.0`.
    """

    name: str
    total_bytes: int
    compute_capability: str


@dataclass(frozen=True, slots=True)
class Hardware:
    """What the engine's `auto` settings come to.

    Attributes:
        torch: version of torch.
        cuda: version of CUDA that torch was built for, None for a CPU build.
        devices: the GPUs that torch can use.
        device: what `--device auto` takes.
        dtype: what `--dtype auto` takes for a checkpoint stored in bfloat16.
        kernels: what `--kernels auto` takes, and why.
        attention: what `--attention auto` takes, and why.
    """

    torch: str
    cuda: str | None
    devices: list[CudaDevice]
    device: str
    dtype: str
    kernels: str
    attention: str


def examine() -> Hardware:
    """Look at the devices that torch sees."""
    device = choose_device("auto")
    numerics = choose_numerics(
        device, dtype="auto", kv_dtype="auto", kernels="auto", quantization="none", stored="bfloat16"
    )
    return Hardware(
        torch=torch.__version__,
        cuda=torch.version.cuda,
        devices=[_describe(index) for index in range(torch.cuda.device_count())],
        device=str(device),
        dtype=str(numerics.weight_dtype).removeprefix("torch."),
        kernels=f"{numerics.kernels.name}: {numerics.reason}",
        attention=str(_attention(device, numerics)),
    )


def _describe(index: int) -> CudaDevice:
    properties = torch.cuda.get_device_properties(index)
    return CudaDevice(properties.name, properties.total_memory, f"{properties.major}.{properties.minor}")


def _attention(device: torch.device, numerics: Numerics) -> AttentionChoice:
    """Choose for pages and heads as most models have them."""
    return probe(
        "auto",
        device=device,
        dtype=numerics.kv_dtype,
        page_size=16,
        head_dim=128,
        native_kernels=isinstance(numerics.kernels, NativeKernels),
    )


def main() -> int:
    """Print the findings."""
    sys.stdout.write(json.dumps(asdict(examine())) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
