"""Items of the input, as clients send them: what was said, called, or came back from a tool."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from rhizome_gateway.schema.fields import Fields, refuse

MAX_ITEMS = 10_000

_REQUIRED = {
    "message": ("role", "content"),
    "reasoning": (),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "custom_tool_call": ("call_id", "name", "input"),
    "custom_tool_call_output": ("call_id", "output"),
}
"""The items that are read, and what each must have."""

_TEXT_PARTS = {
    "input_text": "text",
    "output_text": "text",
    "reasoning_text": "text",
    "text": "text",
    "refusal": "refusal",
}
"""The parts of a content that are read, and where their text is."""


def _text_of(content: Any) -> Any:
    """Join a list of text parts."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind not in _TEXT_PARTS:
            raise refuse(
                "unsupported_content",
                "This model reads text only; send parts of type 'input_text' or 'output_text'.",
            )
        text = part.get(_TEXT_PARTS[kind]) if isinstance(kind, str) else None
        if not isinstance(text, str):
            raise refuse("invalid_value", "Each part must be an object with 'type' and 'text'.")
        texts.append(text)
    return "".join(texts)


Content = Annotated[str, BeforeValidator(_text_of, json_schema_input_type=str | list[dict[str, Any]])]
"""Text, sent as a string or as a list of text parts."""

ItemType = Literal[
    "message",
    "reasoning",
    "function_call",
    "function_call_output",
    "custom_tool_call",
    "custom_tool_call_output",
]


class InputItem(Fields):
    """One item; which fields it has depends on its type. Ids and status say nothing and are not read."""

    type: ItemType
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Content | None = None
    encrypted_content: str | None = Field(None, description="of a reasoning item, as it was given out")
    call_id: str | None = Field(None, min_length=1, max_length=256)
    name: str | None = Field(None, min_length=1, max_length=128)
    namespace: str | None = Field(None, min_length=1, max_length=128)
    arguments: str | None = Field(None, description="of a function call: a JSON object")
    input: str | None = Field(None, description="of a call of a custom tool")
    output: Content | None = Field(None, description="what the tool answered")

    @model_validator(mode="before")
    @classmethod
    def _is_known(cls, item: Any) -> Any:
        if not isinstance(item, dict):
            raise refuse("invalid_value", "Each item of the input must be an object.")
        kind = item.get("type")
        if kind is None and "role" in item:
            kind = "message"
        if kind == "item_reference" or (kind is None and "id" in item):
            raise refuse(
                "unsupported_parameter",
                "References to items cannot be followed, because nothing is stored here; send the item.",
            )
        if not isinstance(kind, str) or kind not in _REQUIRED:
            raise refuse("unsupported_parameter", f"Items of the input may be {', '.join(_REQUIRED)}.")
        for name in _REQUIRED[kind]:
            if item.get(name) is None:
                raise refuse("invalid_value", f"An item of type '{kind}' must have '{name}'.")
        return {**item, "type": kind}


def _as_items(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


Input = Annotated[
    list[InputItem],
    Field(min_length=1, max_length=MAX_ITEMS),
    BeforeValidator(_as_items, json_schema_input_type=str | list[InputItem]),
]
"""The conversation, sent as what the user says or as a list of items."""
