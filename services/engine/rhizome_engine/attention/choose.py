"""Which attention back end serves, by name or by probing."""

from __future__ import annotations

from collections.abc import Sequence

from rhizome_engine.attention.base import AttentionBackend
from rhizome_engine.attention.native import NativeBackend
from rhizome_engine.attention.paged_kv import PagedKV
from rhizome_engine.attention.sdpa import SdpaBackend
from rhizome_engine.kernels.base import Kernels
from rhizome_engine.kernels.native.native_kernels import NativeKernels
from rhizome_engine.layers.rotary import Rope

BACKENDS = ("native", "sdpa")


def choose_attention(name: str, kv: PagedKV, ropes: Sequence[Rope], kernels: Kernels) -> AttentionBackend:
    """Make the back end called `name`; "auto" takes the fastest that works with the kernels and the pool.

    Raises:
        ValueError: unknown name, or a back end that does not work here.
    """
    if name not in ("auto", *BACKENDS):
        raise ValueError(f"attention must be auto, {', '.join(BACKENDS)}, not {name!r}")
    if name == "native" or (name == "auto" and isinstance(kernels, NativeKernels)):
        try:
            return NativeBackend(kv, ropes)
        except ValueError:
            if name == "native":
                raise
    return SdpaBackend(kv, ropes)
