"""Content blocks, as clients send them: what somebody said, called, or got as a result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from rhizome_gateway.schema.fields import Fields, refuse

MAX_BLOCKS = 10_000

_NOT_TEXT = ("image", "document", "search_result", "container_upload", "tool_reference")
_TEXT_ONLY = ("text",)
_ALL = ("text", "thinking", "redacted_thinking", "tool_use", "tool_result")


def _blocks_of(kinds: Sequence[str]) -> Callable[[Any], Any]:
    """Make a validator that writes a text as the block it stands for, and refuses blocks of other kinds."""
    known = " or ".join((", ".join(kinds[:-1]), kinds[-1])) if len(kinds) > 1 else kinds[0]

    def as_blocks(content: Any) -> Any:
        if isinstance(content, str):
            return [{"type": "text", "text": content}]
        for block in content if isinstance(content, list) else ():
            kind = block.get("type") if isinstance(block, dict) else None
            if kind in _NOT_TEXT:
                raise refuse(
                    "unsupported_content",
                    f"Blocks of type '{kind}' cannot be read here: this model reads text only.",
                )
            if kind not in kinds:
                raise refuse("invalid_value", f"Each block must be an object whose type is {known}.")
        return content

    return as_blocks


class TextBlock(Fields):
    """Text."""

    type: Literal["text"]
    text: str


class ThinkingBlock(Fields):
    """Thinking of an earlier answer."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(Fields):
    """Thinking of an earlier answer that nobody can read; it is left out."""

    type: Literal["redacted_thinking"]
    data: str


class ToolUseBlock(Fields):
    """A tool call of an earlier answer."""

    type: Literal["tool_use"]
    id: str = Field(min_length=1, max_length=256)
    name: str = Field(min_length=1, max_length=256)
    input: dict[str, Any]


TextBlocks = Annotated[
    list[TextBlock],
    Field(max_length=MAX_BLOCKS),
    BeforeValidator(_blocks_of(_TEXT_ONLY), json_schema_input_type=str | list[TextBlock]),
]
"""Text, sent as a string or as a list of text blocks."""


class ToolResultBlock(Fields):
    """What a tool answered."""

    type: Literal["tool_result"]
    tool_use_id: str = Field(min_length=1, max_length=256)
    content: TextBlocks | None = None
    is_error: bool | None = None


Block = TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock
_Tagged = Annotated[Block, Field(discriminator="type")]

Blocks = Annotated[
    list[_Tagged],
    Field(max_length=MAX_BLOCKS),
    BeforeValidator(_blocks_of(_ALL), json_schema_input_type=str | list[_Tagged]),
]
"""The content of a message, sent as a string or as a list of blocks."""
