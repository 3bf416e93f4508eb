"""Which device and number format a model runs in."""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """Turn "auto", "cpu", "cuda" or "cuda:1" into a device.

    Raises:
        ValueError: unknown name, or CUDA asked for where there is none.
    """
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, not {name!r}")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device {name!r} was asked for, but there is no usable CUDA device; use cpu")
        device = torch.device("cuda", device.index or 0)
        if device.index >= torch.cuda.device_count():
            raise ValueError(
                f"device {name!r} does not exist; there are {torch.cuda.device_count()} CUDA devices"
            )
    return device


def choose_dtype(name: str, *, stored: str, device: torch.device) -> torch.dtype:
    """Turn "auto" or a format's name into a dtype.

    "auto" is what the checkpoint is stored in on a GPU, and float32 on a CPU.

    Args:
        name: "auto", "float32", "bfloat16" or "float16".
        stored: what `config.json` says, possibly "".
        device: where the model runs.

    Raises:
        ValueError: unknown name.
    """
    if name == "auto":
        default = torch.float32 if device.type == "cpu" else torch.bfloat16
        return default if device.type == "cpu" else DTYPES.get(stored, default)
    if name not in DTYPES:
        raise ValueError(f"dtype must be auto, {', '.join(DTYPES)}, not {name!r}")
    return DTYPES[name]
