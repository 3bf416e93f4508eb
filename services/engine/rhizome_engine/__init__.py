"""The engine: front process, core process, model, radix KV cache, scheduler.

As a library:

    from rhizome_engine import LLM, SamplingParams
    LLM("path/to/checkpoint").generate(["Hello"], SamplingParams(temperature=0), max_tokens=32)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rhizome_engine.sampling.params import SamplingParams

if TYPE_CHECKING:
    from rhizome_engine.llm import LLM, Completion

__all__ = ["LLM", "Completion", "SamplingParams"]


def __getattr__(name: str) -> Any:
    """Import the library on first use: the front process imports this package, but never torch."""
    if name in ("LLM", "Completion"):
        from rhizome_engine import llm

        return getattr(llm, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
