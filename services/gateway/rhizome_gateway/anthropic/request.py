"""The requests, checked field by field and then as a whole."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from rhizome_gateway.anthropic.blocks import (
    Blocks,
    RedactedThinkingBlock,
    TextBlock,
    TextBlocks,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from rhizome_gateway.schema.fields import Fields, ModelName, Whole, refuse
from rhizome_gateway.schema.sampling import MAX_STOP_CHARS, MAX_STOP_STRINGS

MAX_TURNS = 100_000
MIN_THINKING_BUDGET = 1024

UNSUPPORTED = ("container", "mcp_servers")
"""Fields that would change the answer in ways this server does not offer, unless they are empty."""

_SERVER_TOOLS = (
    "advisor",
    "bash",
    "browser_toolset",
    "code_execution",
    "computer",
    "computer_toolset",
    "mcp_toolset",
    "memory",
    "text_editor",
    "tool_search_tool_bm25",
    "tool_search_tool_regex",
    "web_fetch",
    "web_search",
)
_VERSION = re.compile(r"_\d{8}")

_SPOKEN: dict[str, tuple[type, ...]] = {
    "system": (TextBlock,),
    "user": (TextBlock, ToolResultBlock),
    "assistant": (TextBlock, ThinkingBlock, RedactedThinkingBlock, ToolUseBlock),
}


class Turn(Fields):
    """One message of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: Blocks

    @model_validator(mode="after")
    def _fits_its_role(self) -> Self:
        if not all(isinstance(block, _SPOKEN[self.role]) for block in self.content):
            kinds = {"system": "text", "user": "text or tool_result"}
            may = kinds.get(self.role, "text, thinking or tool_use")
            raise refuse("invalid_value", f"Blocks in a message of this role must be {may}.")
        if not self.content and self.role != "assistant":
            raise refuse("invalid_value", "A message must have content.")
        return self


class ClientTool(Fields):
    """A tool that the client runs."""

    type: Literal["custom"] | None = None
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_run_by_the_client(cls, tool: Any) -> Any:
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind in (None, "custom"):
            return tool
        family = _VERSION.sub("", kind) if isinstance(kind, str) else ""
        name = f"'{family}' tools are" if family in _SERVER_TOOLS else "Tools of this type are"
        raise refuse(
            "unsupported_parameter",
            f"{name} not supported here; declare tools with name, description and input_schema.",
        )

    @field_validator("input_schema")
    @classmethod
    def _describes_an_object(cls, schema: dict[str, Any]) -> dict[str, Any]:
        if schema.get("type") != "object":
            raise refuse("invalid_value", "input_schema must be a JSON schema of type 'object'.")
        return schema


class ToolUsePolicy(Fields):
    """Whether the model may or must call a tool."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = Field(None, description="the tool to call, with type 'tool'")
    disable_parallel_tool_use: bool | None = None


class ThinkingConfig(Fields):
    """Whether the model thinks before it answers; absent means as the model does by default."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Whole | None = Field(None, ge=MIN_THINKING_BUDGET, lt=2**31)
    display: Literal["summarized", "omitted"] | None = None

    @model_validator(mode="after")
    def _has_a_budget(self) -> Self:
        if self.type == "enabled" and self.budget_tokens is None:
            raise refuse("invalid_value", "budget_tokens is required where thinking is enabled.")
        return self


class AnswerFormat(Fields):
    """What the text of the answer must conform to."""

    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(Fields):
    """How the answer should be."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: AnswerFormat | None = None


class RequestMetadata(Fields):
    """Who the client asks for: a proxy that routes by session goes by it."""

    user_id: str | None = None


StopSequence = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
_NoEffect = Annotated[Any, Field(description="no effect")]


class CountTokensRequest(Fields):
    """A conversation whose tokens are counted; what matters to an answer only may be there."""

    model: ModelName
    messages: list[Turn] = Field(min_length=1, max_length=MAX_TURNS)
    system: TextBlocks | None = None
    max_tokens: Whole | None = Field(None, ge=1, lt=2**31)
    temperature: float | None = Field(None, ge=0, le=1, description="0 always takes the likeliest token")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: Whole | None = Field(None, ge=0, lt=2**31, description="0 keeps all tokens")
    stop_sequences: list[StopSequence] | None = Field(None, max_length=MAX_STOP_STRINGS)
    stream: bool | None = None
    tools: list[ClientTool] | None = None
    tool_choice: ToolUsePolicy | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    output_format: AnswerFormat | None = Field(None, description="older name of output_config.format")
    metadata: RequestMetadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    betas: _NoEffect = None
    cache_control: _NoEffect = None
    container: _NoEffect = None
    context_management: _NoEffect = None
    diagnostics: _NoEffect = None
    inference_geo: _NoEffect = None
    mcp_servers: _NoEffect = None
    speed: _NoEffect = None

    @model_validator(mode="before")
    @classmethod
    def _is_supported(cls, fields: Any) -> Any:
        if isinstance(fields, dict):
            for name in UNSUPPORTED:
                if fields.get(name) not in (None, "", [], {}):
                    raise refuse("unsupported_parameter", f"{name} is not supported; leave it out.")
        return fields

    @model_validator(mode="after")
    def _tools_are_declared(self) -> Self:
        names = [tool.name for tool in self.tools or ()]
        if len(names) != len(set(names)):
            raise refuse("invalid_value", "tools must have different names.")
        choice = self.tool_choice
        if choice is None or choice.type in ("auto", "none"):
            return self
        if not names:
            raise refuse("invalid_value", "tool_choice needs tools.")
        if choice.type == "tool" and choice.name not in names:
            raise refuse("invalid_value", "tool_choice must name one of the tools.")
        return self


class MessagesRequest(CountTokensRequest):
    """A conversation that the model is to continue."""

    max_tokens: Whole = Field(ge=1, lt=2**31)
