"""Conversations and tools, as OpenAI's chat API writes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from rhizome_gateway.schema.fields import Fields, refuse


def _text_of(content: Any) -> Any:
    """Join a list of text parts; templates of many models only know plain text."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "refusal") and isinstance(part.get(kind), str):
            texts.append(part[kind])
        elif isinstance(kind, str) and kind not in ("text", "refusal"):
            raise refuse("unsupported_content", "This model reads text only; send parts of type 'text'.")
        else:
            raise refuse(
                "invalid_value", "Each part of the content must be an object with 'type' and 'text'."
            )
    return "".join(texts)


Content = Annotated[
    str,
    BeforeValidator(_text_of, json_schema_input_type=str | list[dict[str, Any]]),
]
"""The text of a message, sent as a string or as a list of text parts."""


class FunctionCall(Fields):
    """A function that the model called earlier."""

    name: str
    arguments: str | dict[str, Any] | None = None


class ToolCall(Fields):
    """One call of an assistant's message."""

    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCall


class Message(Fields):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = Field(None, max_length=1024)
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _has_something_to_say(self) -> Self:
        # An assistant may have said nothing at all, and clients make null of that.
        if self.content is None and self.role != "assistant":
            raise refuse("invalid_value", "A message must have content.")
        return self


class Function(Fields):
    """A function that the model may call."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Fields):
    """A tool that the model may use."""

    type: Literal["function"]
    function: Function
