"""The request, checked field by field and then as a whole."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from rhizome_gateway.openai.chat.request import StreamOptions
from rhizome_gateway.schema.fields import ModelName, Whole, refuse
from rhizome_gateway.schema.refused import REFUSED, refuse_unsupported
from rhizome_gateway.schema.sampling import PromptFields, SamplingFields, TokenFields
from rhizome_gateway.structure.form_fields import FormFields
from rhizome_gateway.tokenization.inputs import TextInputs

DEFAULT_MAX_TOKENS = 16
"""OpenAI's; where the context has less room, that is used."""


UNSUPPORTED = REFUSED | {"prompt_embeds"}
"""Fields that would change the answer in ways this server does not offer."""


class CompletionRequest(SamplingFields, PromptFields, TokenFields, FormFields):
    """Text that the model is to go on with."""

    model: ModelName
    prompt: TextInputs
    max_tokens: Whole | None = Field(
        None, ge=0, lt=2**31, description=f"{DEFAULT_MAX_TOKENS} unless given; 0 only reads the prompt"
    )
    n: Whole | None = Field(None, ge=1, le=128, description="how many answers to each prompt")
    best_of: Whole | None = Field(
        None, ge=1, le=128, description="how many to generate, of which the n likeliest are returned"
    )
    echo: bool | None = Field(None, description="begin the answer with the prompt")
    logprobs: Whole | None = Field(None, ge=0, le=5)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    suffix: str | None = Field(None, description="not supported")
    add_special_tokens: bool | None = Field(
        None, description="begin a text with the model's begin-of-sequence token, true unless given"
    )

    @model_validator(mode="before")
    @classmethod
    def _is_supported(cls, fields: Any) -> Any:
        refuse_unsupported(fields, UNSUPPORTED)
        return fields

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.suffix:
            raise refuse("unsupported_parameter", "suffix is not supported here; leave it out.")
        if (self.min_tokens or 0) > self.token_limit:
            raise refuse(
                "invalid_value", f"min_tokens must not be above max_tokens, which is {self.token_limit}."
            )
        if self.stream_options is not None and not self.stream:
            raise refuse("invalid_value", "stream_options needs stream: true.")
        if self.prompt_logprobs is not None and self.stream:
            raise refuse("invalid_value", "prompt_logprobs needs a whole answer; leave stream out.")
        if self.scores_echo and self.prompt_logprobs not in (None, self.logprobs):
            raise refuse(
                "invalid_value", "prompt_logprobs must be what logprobs is where both score the prompt."
            )
        if self.best_of is not None and self.best_of < self.num_choices:
            raise refuse("invalid_value", "best_of must not be below n.")
        if self.return_token_ids and self.num_candidates > self.num_choices:
            raise refuse(
                "unsupported_parameter", "return_token_ids needs best_of to be n; leave best_of out."
            )
        if self.stream and self.num_candidates > self.num_choices:
            raise refuse("invalid_value", "best_of above n needs whole answers; leave stream out.")
        return self

    @property
    def token_limit(self) -> int:
        """Most tokens to generate for each answer."""
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def num_choices(self) -> int:
        """How many answers each prompt gets."""
        return self.n or 1

    @property
    def num_candidates(self) -> int:
        """How many answers to each prompt are generated."""
        return self.best_of or self.num_choices

    @property
    def scores_echo(self) -> bool:
        """Whether the prompt is shown with its log probabilities."""
        return bool(self.echo) and self.logprobs is not None

    @property
    def hides_reasoning(self) -> bool:
        """Completions have no thinking."""
        return False

    @property
    def counts_on(self) -> bool:
        """Whether every chunk of a stream says what the response has cost so far."""
        return self.include_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)
