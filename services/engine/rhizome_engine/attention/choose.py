"""Which attention back end serves: by name, or the fastest that a look at the machine and the model allows.

native       a CPU whose own kernels compute
flash_attn   a GPU for which flash-attn is installed, a 16-bit KV pool, heads of a multiple of 8 up to 256
triton       any other GPU that Triton compiles for
sdpa         everything else
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rhizome_engine.attention import flash_packages
from rhizome_engine.attention.base import AttentionBackend
from rhizome_engine.attention.native import ELEMENTS, NativeBackend
from rhizome_engine.attention.native import MAX_HEAD_DIM as NATIVE_MAX_HEAD_DIM
from rhizome_engine.attention.paged_kv import PagedKV
from rhizome_engine.attention.sdpa import SdpaBackend
from rhizome_engine.kernels.base import Kernels
from rhizome_engine.kernels.native.library import load_library
from rhizome_engine.kernels.native.native_kernels import NativeKernels
from rhizome_engine.kernels.triton import runtime
from rhizome_engine.layers.rotary import Rope

BACKENDS = ("native", "flash_attn", "triton", "sdpa")


@dataclass(frozen=True, slots=True)
class AttentionChoice:
    """What was chosen.

    Attributes:
        name: of the back end.
        reason: why it, and why not a faster one; for the log and `rhizome doctor`.
    """

    name: str
    reason: str

    @property
    def in_place(self) -> bool:
        """Attention reads the pool where it is; otherwise it copies contexts together and masks them."""
        return self.name != "sdpa"

    def __str__(self) -> str:
        """The name and the reason: "triton (flash_attn: ModuleNotFoundError ...)"."""
        return f"{self.name} ({self.reason})"


def probe(
    name: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    page_size: int,
    head_dim: int,
    native_kernels: bool,
) -> AttentionChoice:
    """Choose for a pool before it is made.

    Args:
        name: "auto" or what was asked for.
        device: of the pool.
        dtype: of the pool.
        page_size: of the pool.
        head_dim: of the model.
        native_kernels: the model's products are computed by the CPU's own kernels.

    Raises:
        ValueError: unknown name, or what was asked for cannot run; says why.
    """
    if name not in ("auto", *BACKENDS):
        raise ValueError(f"attention must be auto, {', '.join(BACKENDS)}, not {name!r}")
    if name != "auto":
        why_not = _why_not(name, device, dtype, head_dim)
        if why_not is not None:
            raise ValueError(f"{name} attention was asked for, but cannot run here: {why_not}")
        return AttentionChoice(name, "asked for" + _pages_note(name, page_size))
    refused: list[str] = []
    for candidate in ("flash_attn", "triton") if device.type == "cuda" else ("native",) * native_kernels:
        why_not = _why_not(candidate, device, dtype, head_dim)
        if why_not is None:
            best = "the fastest here" + _pages_note(candidate, page_size)
            return AttentionChoice(candidate, "; ".join([best, *refused]))
        refused.append(f"{candidate}: {why_not}")
    return AttentionChoice("sdpa", "; ".join(refused) or f"for {device.type} without own kernels")


def choose_attention(name: str, kv: PagedKV, ropes: Sequence[Rope], kernels: Kernels) -> AttentionBackend:
    """Make the back end called `name`; "auto" takes the fastest that works with the kernels and the pool.

    Raises:
        ValueError: unknown name, or a back end that does not work here.
    """
    choice = probe(
        name,
        device=kv.data.device,
        dtype=kv.data.dtype,
        page_size=kv.page_size,
        head_dim=kv.data.shape[-1],
        native_kernels=isinstance(kernels, NativeKernels),
    )
    return make_attention(choice, kv, ropes)


def make_attention(choice: AttentionChoice, kv: PagedKV, ropes: Sequence[Rope]) -> AttentionBackend:
    """Make what was chosen.

    Raises:
        ValueError: it cannot read this pool after all.
    """
    if choice.name == "native":
        return NativeBackend(kv, ropes)
    # Modules with Triton kernels are imported where they are needed: not every machine has Triton.
    if choice.name == "flash_attn":
        from rhizome_engine.attention.flash_attn import FlashAttnBackend

        return FlashAttnBackend(kv, ropes)
    if choice.name == "triton":
        from rhizome_engine.attention.triton.backend import TritonBackend

        return TritonBackend(kv, ropes)
    return SdpaBackend(kv, ropes)


def _why_not(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Return why a back end cannot serve such a pool, None where it can."""
    if name == "native":
        return _why_not_native(device, dtype, head_dim)
    if name == "sdpa":
        return None
    why_not = runtime.why_not(device)
    if why_not is not None:
        return why_not
    if name == "triton":
        from rhizome_engine.attention.triton.backend import why_not_pool

        return why_not_pool(dtype, head_dim)
    return flash_packages.why_not(flash_packages.find_functions(device), dtype, head_dim)


def _why_not_native(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    if device.type != "cpu":
        return f"its kernels are for CPUs, not {device.type}"
    if dtype not in ELEMENTS:
        return f"it cannot read a KV pool of {dtype}"
    if head_dim % 8 or not 8 <= head_dim <= NATIVE_MAX_HEAD_DIM:
        return f"it needs heads of 8, 16, ... {NATIVE_MAX_HEAD_DIM}, not {head_dim}"
    return None if load_library() is not None else "there are no kernels for this processor"


def _pages_note(name: str, page_size: int) -> str:
    if name != "flash_attn" or page_size % 256 == 0:
        return ""
    return f", with own decode for pages of {page_size}"
