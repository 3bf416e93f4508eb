"""The engine as a library: no processes, no sockets, the same core. See docs/library.md."""

from rhizome_engine.llm.async_llm import AsyncLLM
from rhizome_engine.llm.llm import LLM
from rhizome_engine.llm.options import AnswerOptions
from rhizome_engine.llm.outputs import Completion, Delta, Embedding

__all__ = ["LLM", "AnswerOptions", "AsyncLLM", "Completion", "Delta", "Embedding"]
