"""How tokens are chosen, as all APIs have it."""

from __future__ import annotations

import hashlib
from typing import Annotated, Self

from pydantic import Field, model_validator

from rhizome_gateway.schema.fields import INT64_MAX, Fields, Whole, refuse

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256


class SamplingFields(Fields):
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
    allowed_token_ids: list[Annotated[int, Field(ge=0, lt=2**31)]] | None = Field(
        None, max_length=2**18, description="nothing else is chosen; an empty list allows every token"
    )
    bad_words: list[str] | None = Field(
        None, max_length=512, description="do not come out, at the start of a text or after a space"
    )
    stop: str | list[str] | None = None
    stop_token_ids: list[Annotated[int, Field(ge=0, lt=2**31)]] | None = Field(None, max_length=128)
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Whole | None = Field(None, ge=0, lt=2**31)
    cache_salt: str | None = Field(
        None,
        min_length=1,
        max_length=1024,
        description="only requests with the same salt share cached prefixes",
    )
    prompt_cache_key: str | None = Field(
        None, description="requests with the same key go to one engine where the proxy routes by session"
    )
    safety_identifier: str | None = Field(None, description="stands in for prompt_cache_key")
    user: str | None = Field(None, description="stands in for prompt_cache_key")

    @model_validator(mode="after")
    def _stop_strings_are_usable(self) -> Self:
        strings = self.stop_strings
        if len(strings) > MAX_STOP_STRINGS:
            raise refuse("invalid_value", f"stop may hold at most {MAX_STOP_STRINGS} strings.")
        if any(not 1 <= len(text) <= MAX_STOP_CHARS for text in strings):
            raise refuse("invalid_value", f"stop strings must have 1 to {MAX_STOP_CHARS} characters.")
        return self

    @property
    def affinity_key(self) -> str:
        """What a proxy may route by; a digest, because it may name a person."""
        key = self.prompt_cache_key or self.user or self.safety_identifier
        return hashlib.blake2b(key.encode(), digest_size=16).hexdigest() if key else ""

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop


class PromptFields(Fields):
    """How much of a prompt the model reads, and what is told of it."""

    prompt_logprobs: Whole | None = Field(
        None, ge=0, le=20, description="how likely the prompt's tokens were, beside so many of the likeliest"
    )
    truncate_prompt_tokens: Whole | None = Field(
        None,
        ge=-1,
        lt=2**31,
        description="read only the last so many tokens; -1: as many as there is room for",
    )

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        check_truncation(self.truncate_prompt_tokens)
        return self


def check_truncation(truncate_prompt_tokens: int | None) -> None:
    """Refuse to read nothing.

    Raises:
        PydanticCustomError: it is 0.
    """
    if truncate_prompt_tokens == 0:
        raise refuse("invalid_value", "truncate_prompt_tokens must be -1 or at least 1.")


class TokenFields(Fields):
    """Whether a response shows tokens by number."""

    return_token_ids: bool | None = Field(None, description="also the tokens of prompt and answer")
    return_tokens_as_token_ids: bool | None = Field(
        None, description="log probabilities name tokens by number, token_id:42"
    )
