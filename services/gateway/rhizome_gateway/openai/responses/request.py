"""The requests, checked field by field and then as a whole."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from rhizome_gateway.openai.responses.items import Input
from rhizome_gateway.openai.responses.tools import DeclaredTool
from rhizome_gateway.schema.fields import Fields, ModelName, Whole, refuse
from rhizome_gateway.schema.sampling import SamplingFields

_STORED = {
    "previous_response_id": "responses are not stored here; send the whole conversation in input",
    "conversation": "conversations are not stored here; send the whole conversation in input",
    "prompt": "prompts are not stored here; send instructions and input",
    "background": "responses are not stored here, so they cannot be fetched later; use stream",
}
"""Fields that need a memory, and what to do instead."""

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED_REASONING = "reasoning.encrypted_content"


class TextFormat(Fields):
    """What the text of the answer must conform to."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(None, pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        if self.type == "json_schema" and (self.name is None or self.schema_ is None):
            raise refuse("invalid_value", "A format of type 'json_schema' must have 'name' and 'schema'.")
        return self


class TextOptions(Fields):
    """How the text of the answer should be; `verbosity` is taken and changes nothing."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningOptions(Fields):
    """How the model should think; there are no summaries, items have the thinking itself."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class AllowedTool(Fields):
    """One of the tools that may be called."""

    type: Literal["function", "custom"]
    name: str


class ToolPolicy(Fields):
    """Whether the model may or must call a tool."""

    type: Literal["none", "auto", "required", "function", "custom", "allowed_tools"]
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[AllowedTool] | None = Field(None, min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _is_ours(cls, choice: Any) -> Any:
        kind = choice.get("type") if isinstance(choice, dict) else None
        if kind not in ("none", "auto", "required", "function", "custom", "allowed_tools"):
            raise refuse(
                "unsupported_parameter" if isinstance(kind, str) else "invalid_value",
                "tool_choice must be 'none', 'auto', 'required', or an object of type 'function', 'custom' "
                "or 'allowed_tools'.",
            )
        return choice

    @model_validator(mode="after")
    def _names_tools(self) -> Self:
        if self.type in ("function", "custom") and self.name is None:
            raise refuse("invalid_value", "tool_choice must have the name of the tool.")
        if self.type == "allowed_tools" and (self.mode is None or self.tools is None):
            raise refuse("invalid_value", "tool_choice of type 'allowed_tools' must have 'mode' and 'tools'.")
        return self


def _as_policy(choice: Any) -> Any:
    return {"type": choice} if isinstance(choice, str) else choice


ToolChoice = Annotated[ToolPolicy, BeforeValidator(_as_policy, json_schema_input_type=str | ToolPolicy)]
"""`none`, `auto`, `required`, the tool that must be called, or those that may be."""


class InputTokensRequest(Fields):
    """A conversation whose tokens are counted."""

    model: ModelName
    input: Input
    instructions: str | None = None
    tools: list[DeclaredTool] | None = Field(None, max_length=256)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="nothing is ever cut: what does not fit into the context is refused"
    )
    previous_response_id: str | None = Field(None, description="not supported: nothing is stored")
    conversation: Any = Field(None, description="not supported: nothing is stored")

    @model_validator(mode="before")
    @classmethod
    def _needs_no_memory(cls, fields: Any) -> Any:
        if isinstance(fields, dict):
            for name, instead in _STORED.items():
                if fields.get(name) not in (None, False):
                    raise refuse("unsupported_parameter", f"{name} is not supported: {instead}.")
        return fields


class ResponseStreamOptions(Fields):
    """What a stream holds besides the answer; nothing is added to it here."""

    include_obfuscation: bool | None = None


MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


class ResponsesRequest(InputTokensRequest, SamplingFields):
    """A conversation that the model is to continue."""

    max_output_tokens: Whole | None = Field(None, ge=1, lt=2**31)
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    include: list[str] | None = Field(None, max_length=32)
    top_logprobs: Whole | None = Field(None, ge=0, le=20)
    metadata: dict[MetadataKey, MetadataValue] | None = Field(
        None, max_length=16, description="comes back with the response"
    )
    store: bool | None = Field(None, description="nothing is stored, whatever it says")
    background: bool | None = Field(None, description="true is not supported: nothing is stored")
    prompt: Any = Field(None, description="not supported: nothing is stored")
    max_tool_calls: Whole | None = Field(None, ge=1, lt=2**31, description="of OpenAI's own tools; no effect")
    service_tier: str | None = None

    @property
    def wants_logprobs(self) -> bool:
        """Whether the text comes with log probabilities."""
        return LOGPROBS in (self.include or ())

    @property
    def carries_reasoning(self) -> bool:
        """Whether the client sends thinking back as `encrypted_content`."""
        return ENCRYPTED_REASONING in (self.include or ())
