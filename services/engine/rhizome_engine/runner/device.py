"""Which device a model runs on."""

from __future__ import annotations

import torch


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


def ready_device(name: str) -> torch.device:
    """Choose a device and make CUDA's context on it, which takes a third of a second wherever it is made.

    Raises:
        ValueError: as for `choose_device`.
    """
    device = choose_device(name)
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.empty(1, device=device)
    return device
