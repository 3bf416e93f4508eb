"""Conversations as no API in particular writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "developer", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that the model called earlier.

    Attributes:
        name: of the tool.
        arguments: an object, or the JSON text of one.
        id: by which the result refers to the call.
    """

    name: str
    arguments: str | Mapping[str, Any] | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation.

    Attributes:
        role: who speaks.
        content: what; None for calls alone.
        reasoning: what an assistant thought before.
        name: of the speaker, or of the tool.
        tool_calls: of an assistant.
        tool_call_id: the call that a tool answers.
    """

    role: Role
    content: str | None = None
    reasoning: str | None = None
    name: str | None = None
    tool_calls: Sequence[ToolCall] = ()
    tool_call_id: str | None = None

    @property
    def chars(self) -> int:
        """Characters that it adds to the prompt, roughly."""
        calls = sum(len(call.name) + len(str(call.arguments)) for call in self.tool_calls)
        texts = (self.role, self.content, self.reasoning, self.name)
        return sum(len(text) for text in texts if text) + calls
