"""Whether Triton kernels can run here: compiled on a CUDA device, or interpreted on the host for tests.

Triton decides between compiling and interpreting when a kernel is decorated, so `TRITON_INTERPRET` has to be
set before the first module with a kernel is imported. Nothing here imports such a module, or Triton itself
before it is asked for.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import threading
from functools import lru_cache

import torch

_TRUE = frozenset({"1", "true", "on", "y", "yes"})
OLDEST_CAPABILITY = (8, 0)
"""bfloat16 in tensor cores; older GPUs are left to PyTorch."""


class _Thread(threading.local):
    """What holds for one thread.

    Attributes:
        only_asks: its launches only ask for kernels, see `compile_ahead`, so that "meta" will do.
    """

    only_asks = False


this_thread = _Thread()


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, read as Triton reads it."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in _TRUE


def why_not(device: torch.device) -> str | None:
    """Return why Triton kernels cannot compute on a device, None where they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device.type == "cpu":
        return None if interpreted() else "triton kernels need a GPU"
    if device.type == "meta" and this_thread.only_asks:
        return None
    if device.type != "cuda":
        return f"triton kernels are for CUDA devices, not {device.type}"
    if interpreted():
        return "TRITON_INTERPRET is set, which runs kernels on the host"
    if not torch.cuda.is_available():
        return "there is no usable CUDA device"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_CAPABILITY:
        return f"triton kernels need compute capability 8.0, this GPU has {capability[0]}.{capability[1]}"
    return _broken_import() or _no_compiler()


@lru_cache(maxsize=1)
def _broken_import() -> str | None:
    """Return why an installed Triton cannot be imported: it has a compiled part of its own."""
    try:
        import triton  # noqa: F401
    except Exception as error:  # whatever it is, PyTorch computes instead and the log says why
        return f"triton cannot be imported ({type(error).__name__}: {error})"
    return None


def _no_compiler() -> str | None:
    """Return what is missing where Triton would find no compiler for the launchers of its kernels."""
    if os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"):
        return None
    return "triton needs a C compiler, gcc or clang, to launch its kernels"
