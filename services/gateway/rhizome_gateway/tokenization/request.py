"""What is asked of the tokenizer; field names are vLLM's."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from rhizome_gateway.openai.chat.request import MAX_MESSAGES
from rhizome_gateway.schema.fields import Fields, ModelName, refuse


class TokenizeRequest(Fields):
    """A text, or a conversation as the model reads it."""

    model: ModelName | None = Field(None, description="the model served, unless given")
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = Field(
        None, min_length=1, max_length=MAX_MESSAGES, description="as in a chat request"
    )
    tools: list[dict[str, Any]] | None = Field(None, description="as in a chat request")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="as in a chat request")
    add_generation_prompt: bool | None = Field(None, description="of a conversation, true unless given")
    continue_final_message: bool | None = Field(None, description="as in a chat request")
    reasoning_effort: str | None = Field(None, description="as in a chat request")
    add_special_tokens: bool | None = Field(
        None, description="of a prompt, true unless given; conversations hold their own"
    )
    return_token_strs: bool | None = Field(None, description="also the tokens as the vocabulary has them")

    @model_validator(mode="after")
    def _is_one_of_two(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise refuse("invalid_value", "prompt or messages must be there, and not both.")
        return self


class DetokenizeRequest(Fields):
    """Tokens to show as text."""

    model: ModelName | None = Field(None, description="the model served, unless given")
    tokens: list[Annotated[int, Field(ge=0, lt=2**31)]]
