"""The engine: front process, core process, model, radix KV cache, scheduler.

As a library, see docs/library.md:

    from rhizome_engine import LLM, SamplingParams
    LLM("path/to/checkpoint").generate(["Hello"], SamplingParams(temperature=0), max_tokens=32)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rhizome_engine.sampling.params import SamplingParams

if TYPE_CHECKING:
    from rhizome_engine.llm import LLM, AsyncLLM, Completion, Delta, Embedding
    from rhizome_engine.scheduler.config import SchedulerConfig
    from rhizome_grammar.spec import Grammar

__all__ = [
    "LLM",
    "AsyncLLM",
    "Completion",
    "Delta",
    "Embedding",
    "Grammar",
    "SamplingParams",
    "SchedulerConfig",
]

_ELSEWHERE = {"Grammar": "rhizome_grammar.spec", "SchedulerConfig": f"{__name__}.scheduler.config"}


def __getattr__(name: str) -> Any:
    """Import the library on first use: the front process imports this package, but never torch."""
    if name in __all__:
        return getattr(import_module(_ELSEWHERE.get(name, f"{__name__}.llm")), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
