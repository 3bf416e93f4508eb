"""`POST /v1/chat/completions`: the request.

`null` means the same as leaving a field out. Unknown fields are ignored, fields that would change the answer
but are not supported are refused. Error texts never repeat what the client sent.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

INT64_MAX = 2**63 - 1
MAX_MESSAGES = 10_000
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256

UNSUPPORTED = (
    "audio",
    "chat_template",
    "continue_final_message",
    "function_call",
    "functions",
    "structured_outputs",
    "web_search_options",
)
"""Fields that would change the answer in ways this server does not offer."""

TEMPLATE_VARIABLES = frozenset({"enable_thinking", "thinking", "reasoning_effort", "date_string"})
"""What `chat_template_kwargs` may set; anything else could replace the conversation itself."""


def refuse(code: str, text: str) -> PydanticCustomError:
    """A validation error with an OpenAI error code; braces in the text must be doubled."""
    return PydanticCustomError(code, text)


class _Fields(BaseModel):
    """Strict types (no `"1"` for 1), finite numbers, unknown fields ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, hide_input_in_errors=True)


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


def _whole(value: Any) -> Any:
    """5.0 is an integer for JSON Schema, and some clients know no other numbers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole, json_schema_input_type=int)]
"""An integer, written with or without a fraction of zero."""


class FunctionCall(_Fields):
    """A function that the model called earlier."""

    name: str
    arguments: str | dict[str, Any] | None = None


class ToolCall(_Fields):
    """One call of an assistant's message."""

    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCall


class Message(_Fields):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    refusal: str | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _has_something_to_say(self) -> Self:
        said = self.content is not None or (
            self.role == "assistant" and (self.tool_calls or self.refusal is not None)
        )
        if not said:
            raise refuse("invalid_value", "A message must have content.")
        return self


class Function(_Fields):
    """A function that the model may call."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(_Fields):
    """A tool that the model may use."""

    type: Literal["function"]
    function: Function


class StreamOptions(_Fields):
    """What a stream holds besides the answer."""

    include_usage: bool | None = None


class ResponseFormat(_Fields):
    """How the answer is to be formed; plain text only, so far."""

    type: str

    @model_validator(mode="after")
    def _is_text(self) -> Self:
        if self.type in ("json_object", "json_schema"):
            raise refuse(
                "unsupported_parameter",
                "Structured output is not supported yet; leave response_format out and ask for JSON in the "
                "messages.",
            )
        if self.type != "text":
            raise refuse("invalid_value", "response_format.type must be 'text'.")
        return self


class SamplingFields(_Fields):
    """How to choose tokens and when to stop; absent fields take the model's defaults."""

    temperature: float | None = Field(None, ge=0, le=2, description="0 always takes the likeliest token")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: Whole | None = Field(None, ge=-1, lt=2**31, description="0 and -1 keep all tokens")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    seed: Whole | None = Field(None, ge=-INT64_MAX - 1, le=INT64_MAX)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=1024)
    stop: str | list[str] | None = None
    stop_token_ids: list[Annotated[int, Field(ge=0, lt=2**31)]] | None = Field(None, max_length=128)
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Whole | None = Field(None, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _stop_strings_are_usable(self) -> Self:
        strings = self.stop_strings
        if len(strings) > MAX_STOP_STRINGS:
            raise refuse("invalid_value", f"stop may hold at most {MAX_STOP_STRINGS} strings.")
        if any(not 1 <= len(text) <= MAX_STOP_CHARS for text in strings):
            raise refuse("invalid_value", f"stop strings must have 1 to {MAX_STOP_CHARS} characters.")
        return self

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop


class ChatCompletionRequest(SamplingFields):
    """A conversation that the model is to continue."""

    model: str = Field(min_length=1)
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: Whole | None = Field(None, ge=1, lt=2**31)
    max_tokens: Whole | None = Field(None, ge=1, lt=2**31, description="older name of max_completion_tokens")
    n: Whole | None = Field(None, ge=1, le=128, description="how many answers")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(None, min_length=1, max_length=128)
    tool_choice: str | dict[str, Any] | None = Field(None, description="'auto' or 'none'")
    parallel_tool_calls: bool | None = None
    modalities: list[str] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_supported(cls, fields: Any) -> Any:
        if isinstance(fields, dict):
            for name in UNSUPPORTED:
                if fields.get(name) not in (None, False, [], {}):
                    raise refuse("unsupported_parameter", f"{name} is not supported; leave it out.")
        return fields

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.min_tokens or 0) > (self.token_limit or INT64_MAX):
            raise refuse("invalid_value", "min_tokens must not be greater than max_tokens.")
        if self.stream_options is not None and not self.stream:
            raise refuse("invalid_value", "stream_options needs stream: true.")
        if self.top_logprobs is not None and not self.logprobs:
            raise refuse("invalid_value", "top_logprobs needs logprobs: true.")
        if self.modalities is not None and self.modalities != ["text"]:
            raise refuse("unsupported_parameter", "modalities may only be ['text'].")
        if self.chat_template_kwargs and not self.chat_template_kwargs.keys() <= TEMPLATE_VARIABLES:
            allowed = ", ".join(sorted(TEMPLATE_VARIABLES))
            raise refuse("unsupported_parameter", f"chat_template_kwargs may only set {allowed}.")
        if self.tool_choice not in (None, "none", "auto"):
            if self.tool_choice == "required" or isinstance(self.tool_choice, dict):
                raise refuse(
                    "unsupported_parameter",
                    "tool_choice may only be 'auto' or 'none'; forcing a tool call is not supported yet.",
                )
            raise refuse("invalid_value", "tool_choice must be 'auto' or 'none'.")
        if self.tool_choice == "auto" and not self.tools:
            raise refuse("invalid_value", "tool_choice needs tools.")
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
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)
