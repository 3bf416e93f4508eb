"""Which attention back end serves, by name or by probing."""

from __future__ import annotations

from rhizome_engine.attention.base import AttentionBackend
from rhizome_engine.attention.paged_kv import PagedKV
from rhizome_engine.attention.sdpa import SdpaBackend

BACKENDS = {"sdpa": SdpaBackend}


def choose_attention(name: str, kv: PagedKV) -> AttentionBackend:
    """Make the back end called `name`; "auto" takes the fastest that works on the pool's device.

    Raises:
        ValueError: unknown name.
    """
    if name == "auto":
        return SdpaBackend(kv)
    if name not in BACKENDS:
        raise ValueError(f"attention must be auto, {', '.join(BACKENDS)}, not {name!r}")
    return BACKENDS[name](kv)
