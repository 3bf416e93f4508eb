"""What of the flash-attn packages can be imported and used here.

Entry points are those of flash-attn 2.8.3 (`flash_attn_varlen_func`, `flash_attn_with_kvcache`) and of
flash-attn-4 4.0.0 (`flash_attn_varlen_func` of `flash_attn.cute`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

MAX_HEAD_DIM = 256
_DTYPES = (torch.bfloat16, torch.float16)
_HOPPER = 9

Attend = Callable[..., Any]


class FlashFunctions(NamedTuple):
    """What was found of the packages; None for what is missing.

    Attributes:
        varlen: flash-attn 2.8's `flash_attn_varlen_func`.
        with_kvcache: its `flash_attn_with_kvcache`.
        hopper_varlen: flash-attn-4's `flash_attn_varlen_func`.
        reason: what was found, for the log, or why nothing was.
    """

    varlen: Attend | None
    with_kvcache: Attend | None
    hopper_varlen: Attend | None
    reason: str


def find_functions(device: torch.device) -> FlashFunctions:
    """Import what of the packages can be used on a device."""
    if device.type != "cuda":
        return FlashFunctions(None, None, None, "flash-attn needs a CUDA device")
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        reason = f"flash-attn needs compute capability 8.0, this GPU has {major}.{minor}"
        return FlashFunctions(None, None, None, reason)
    found, missing = [], []
    varlen = with_kvcache = hopper_varlen = None
    try:
        package = importlib.import_module("flash_attn")
        varlen, with_kvcache = package.flash_attn_varlen_func, package.flash_attn_with_kvcache
        found.append(f"flash-attn {package.__version__}")
    except Exception as error:  # a library made for another torch fails in many ways; the log says which
        missing.append(f"flash-attn: {type(error).__name__}: {error}")
    if major == _HOPPER:
        try:
            hopper_varlen = importlib.import_module("flash_attn.cute").flash_attn_varlen_func
            found.append("flash-attn-4 for prefill")
        except Exception as error:
            missing.append(f"flash-attn-4: {type(error).__name__}: {error}")
    return FlashFunctions(varlen, with_kvcache, hopper_varlen, ", ".join(found) or "; ".join(missing))


def why_not(functions: FlashFunctions, dtype: torch.dtype, head_dim: int) -> str | None:
    """Return why the packages cannot attend to such a pool, None where they can."""
    if functions.varlen is None and functions.hopper_varlen is None:
        return functions.reason
    if dtype not in _DTYPES:
        return f"flash-attn reads a KV pool of bfloat16 or float16, not {dtype}"
    if head_dim % 8 or not 8 <= head_dim <= MAX_HEAD_DIM:
        return f"flash-attn needs heads of 8, 16, ... {MAX_HEAD_DIM}, not {head_dim}"
    return None
