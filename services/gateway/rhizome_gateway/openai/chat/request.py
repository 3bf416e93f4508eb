"""The request, checked field by field and then as a whole."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from rhizome_gateway.openai.messages import Message, Tool
from rhizome_gateway.schema.fields import INT64_MAX, Fields, ModelName, Whole, refuse
from rhizome_gateway.schema.refused import REFUSED, refuse_unsupported
from rhizome_gateway.schema.sampling import PromptFields, SamplingFields, TokenFields
from rhizome_gateway.structure.form_fields import FormFields

MAX_MESSAGES = 10_000
MAX_TOOLS = 1024

UNSUPPORTED = REFUSED | {
    "audio",
    "chat_template",
    "documents",
    "echo",
    "function_call",
    "functions",
    "web_search_options",
}
"""Fields that would change the answer in ways this server does not offer."""


class StreamOptions(Fields):
    """What a stream holds besides the answer."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = Field(
        None, description="with include_usage: every chunk says what the response has cost so far"
    )


class NamedFunction(Fields):
    """Which function must be called."""

    name: str


class NamedTool(Fields):
    """A tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Fields):
    """Those of the tools that may be called; the model sees all of them."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=MAX_TOOLS)


class ToolSubset(Fields):
    """A choice that leaves some tools out."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _known_choice(value: Any) -> Any:
    if isinstance(value, str) and value not in ("none", "auto", "required"):
        raise refuse("invalid_value", "tool_choice must be 'none', 'auto', 'required' or a named function.")
    if isinstance(value, dict) and value.get("type") not in (None, "function", "allowed_tools"):
        raise refuse("unsupported_parameter", "tool_choice may name functions only.")
    return value


ToolChoice = Annotated[str | NamedTool | ToolSubset, BeforeValidator(_known_choice)]
"""`none`, `auto`, `required`, the function that must be called, or those that may be."""


class ChatCompletionRequest(SamplingFields, PromptFields, TokenFields, FormFields):
    """A conversation that the model is to continue."""

    model: ModelName
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: Whole | None = Field(None, ge=1, lt=2**31)
    max_tokens: Whole | None = Field(None, ge=1, lt=2**31, description="older name of max_completion_tokens")
    n: Whole | None = Field(None, ge=1, le=128, description="how many answers")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(None, ge=0, le=20)
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[str] | None = None
    reasoning_effort: str | None = Field(
        None,
        pattern=r"^(none|minimal|low|medium|high|xhigh|max)$",
        description="'none' switches thinking off",
    )
    include_reasoning: bool | None = Field(None, description="false leaves thinking out of the response")
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = Field(
        None, description="the answer goes on where the last message ends; needs add_generation_prompt: false"
    )

    @model_validator(mode="before")
    @classmethod
    def _is_supported(cls, fields: Any) -> Any:
        refuse_unsupported(fields, UNSUPPORTED)
        return fields

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.min_tokens or 0) > (self.token_limit or INT64_MAX):
            raise refuse("invalid_value", "min_tokens must not be greater than max_tokens.")
        if self.stream_options is not None and not self.stream:
            raise refuse("invalid_value", "stream_options needs stream: true.")
        if self.prompt_logprobs is not None and self.stream:
            raise refuse("invalid_value", "prompt_logprobs needs a whole answer; leave stream out.")
        if self.top_logprobs and not self.logprobs:
            raise refuse("invalid_value", "top_logprobs needs logprobs: true.")
        if self.modalities is not None and self.modalities != ["text"]:
            raise refuse("unsupported_parameter", "modalities may only be ['text'].")
        return self

    @model_validator(mode="after")
    def _offers_what_it_wants(self) -> Self:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise refuse("invalid_value", "tools must have different names.")
        if not names and self.tool_choice not in (None, "none", "auto"):
            raise refuse("invalid_value", "tool_choice needs tools.")
        if self._chosen_tools is not None and not self._chosen_tools.issubset(names):
            raise refuse("invalid_value", "tool_choice must name tools that are declared in tools.")
        return self

    @property
    def token_limit(self) -> int | None:
        """Most tokens to generate, where the client said so; the newer of two fields wins."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def num_choices(self) -> int:
        """How many answers."""
        return self.n or 1

    @property
    def offered_tools(self) -> list[Tool] | None:
        """Tools that the model gets to see."""
        return None if self.tool_choice == "none" else self.tools

    @property
    def named_tool(self) -> str | None:
        """The tool that must be called."""
        return self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None

    @property
    def _chosen_tools(self) -> frozenset[str] | None:
        """Names of the tools that the choice leaves; None where it leaves all."""
        choice = self.tool_choice
        if isinstance(choice, NamedTool):
            return frozenset({choice.function.name})
        if isinstance(choice, ToolSubset):
            return frozenset(tool.function.name for tool in choice.allowed_tools.tools)
        return None

    @property
    def callable_tools(self) -> list[Tool]:
        """Tools that the answer may call."""
        chosen, offered = self._chosen_tools, self.offered_tools or []
        return offered if chosen is None else [tool for tool in offered if tool.function.name in chosen]

    @property
    def must_call(self) -> bool:
        """Whether the answer has to be a tool call."""
        if isinstance(self.tool_choice, ToolSubset):
            return self.tool_choice.allowed_tools.mode == "required"
        return self.tool_choice == "required" or self.named_tool is not None

    @property
    def hides_reasoning(self) -> bool:
        """Whether thinking is left out of the response."""
        return self.include_reasoning is False

    @property
    def counts_on(self) -> bool:
        """Whether every chunk of a stream says what the response has cost so far."""
        return self.include_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)
