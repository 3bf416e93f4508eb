"""Which kernels compute and in which number formats: decided once, at start, from what the machine can do."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rhizome_engine.kernels.base import Kernels
from rhizome_engine.kernels.native.library import load_library
from rhizome_engine.kernels.native.native_kernels import NativeKernels
from rhizome_engine.kernels.torch_kernels import TorchKernels
from rhizome_engine.kernels.triton.runtime import interpreted, why_not
from rhizome_engine.weights.choose import Quantization

_USUAL_THREADS = torch.get_num_threads()
KERNELS = ("auto", "native", "triton", "torch")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Numerics:
    """What was decided.

    Attributes:
        kernels: compute, in their `activation_dtype`.
        weight_dtype: of matrices that are not quantised.
        kv_dtype: of the KV pool.
        quantization: of the other matrices.
        reason: why, for the log.
    """

    kernels: Kernels
    weight_dtype: torch.dtype
    kv_dtype: torch.dtype
    quantization: Quantization
    reason: str


def choose_numerics(
    device: torch.device,
    *,
    dtype: str,
    kv_dtype: str,
    kernels: str,
    quantization: Quantization,
    stored: str,
    num_threads: int | None = None,
) -> Numerics:
    """Decide.

    On a CPU the native kernels keep matrices in the format of the checkpoint and compute in float32: nothing
    is rounded, and a bfloat16 checkpoint is read in half the time that float32 would take. The KV pool is
    float32 there, unless matrices are quantised, beside which bfloat16 keys and values cost nothing.
    Where bfloat16 is asked for by name and the processor multiplies it, activations are rounded to bfloat16
    for products, which takes half the time for long prompts. On a GPU everything has the checkpoint's format,
    and Triton kernels compute, or PyTorch where Triton cannot.

    Args:
        device: where the model runs.
        dtype: "auto", "float32", "bfloat16" or "float16", of matrices.
        kv_dtype: the same, of the KV pool.
        kernels: "auto", "native", "triton" or "torch".
        quantization: of matrices.
        stored: in which format the files can be kept without rounding.
        num_threads: CPU threads that compute; None for as many as torch chose when it was loaded.

    Raises:
        ValueError: unknown name, or kernels asked for that cannot compute here.
    """
    for name, value in (("dtype", dtype), ("kv_cache_dtype", kv_dtype)):
        if value != "auto" and value not in DTYPES:
            raise ValueError(f"{name} must be auto, {', '.join(DTYPES)}, not {value!r}")
    if kernels not in KERNELS:
        raise ValueError(f"kernels must be {', '.join(KERNELS)}, not {kernels!r}")
    native, reason = None, "asked for"
    if kernels == "native" or (kernels == "auto" and device.type == "cpu"):
        native, reason = _native(device, num_threads or _USUAL_THREADS, dtype)
        if kernels == "native" and native is None:
            raise ValueError(f"native kernels were asked for, but {reason}")
    if native is not None:
        weight_dtype = DTYPES.get(stored if dtype == "auto" else dtype, torch.float32)
        exact = torch.float32 if quantization == "none" else torch.bfloat16
        return Numerics(native, weight_dtype, DTYPES.get(kv_dtype, exact), quantization, reason)
    if dtype == "auto":
        weight_dtype = torch.float32 if device.type == "cpu" else DTYPES.get(stored, torch.bfloat16)
    else:
        weight_dtype = DTYPES[dtype]
    torch.set_num_threads(num_threads or _USUAL_THREADS)
    chosen: Kernels = TorchKernels(device, weight_dtype)
    if kernels == "triton" or (kernels == "auto" and device.type != "cpu"):
        missing = why_not(device)
        if missing is None:
            chosen, reason = _triton(device, weight_dtype)
        elif kernels == "triton":
            raise ValueError(f"triton kernels were asked for, but {missing}")
        else:
            reason = missing
    return Numerics(chosen, weight_dtype, DTYPES.get(kv_dtype, weight_dtype), quantization, reason)


def _triton(device: torch.device, dtype: torch.dtype) -> tuple[Kernels, str]:
    """Return Triton kernels and which; importing them decides whether they are compiled or interpreted."""
    import triton

    from rhizome_engine.kernels.triton.triton_kernels import TritonKernels

    reason = f"version {triton.__version__}" + (", interpreted" if interpreted() else "")
    return TritonKernels(device, dtype), reason


def _native(device: torch.device, num_threads: int, dtype: str) -> tuple[Kernels | None, str]:
    """Return native kernels and which, or None and why not."""
    if device.type != "cpu":
        return None, f"native kernels are for CPUs, not {device.type}"
    library = load_library()
    if library is None:
        return None, "there are none for this processor, or no compiler to make them"
    library.set_num_threads(num_threads)
    # What is left to torch is small, and a second set of threads would compete for the same cores.
    torch.set_num_threads(1)
    # Only who asks for bfloat16 by name gets activations rounded to it as well.
    rounding = dtype == "bfloat16" and library.has_bfloat16()
    reason = f"{library.variant}, {library.num_threads()} threads"
    return NativeKernels(library, rounding=rounding), reason + (", products in bfloat16" if rounding else "")
