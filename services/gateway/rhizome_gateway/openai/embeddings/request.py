"""The request, checked field by field and then as a whole."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rhizome_gateway.schema.fields import Fields, ModelName, Whole, refuse
from rhizome_gateway.schema.sampling import check_truncation
from rhizome_gateway.tokenization.inputs import TextInputs


class EmbeddingRequest(Fields):
    """Texts to turn into vectors."""

    model: ModelName
    input: TextInputs
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64 is that of the numbers as little-endian float32"
    )
    dimensions: Whole | None = Field(None, ge=1, description="may only be the size of the model's vectors")
    pooling: Literal["mean", "last", "cls"] | None = Field(
        None, description="how the states of all tokens become one vector; the checkpoint's way unless given"
    )
    normalize: bool | None = Field(None, description="scale vectors to length 1, true unless given")
    add_special_tokens: bool | None = Field(
        None, description="add to texts what the model's tokenizer does, true unless given"
    )
    truncate_prompt_tokens: Whole | None = Field(
        None,
        ge=-1,
        lt=2**31,
        description="read only the first so many tokens; -1: as many as there is room for",
    )
    cache_salt: str | None = Field(
        None,
        min_length=1,
        max_length=1024,
        description="only requests with the same salt share cached prefixes",
    )

    @model_validator(mode="after")
    def _something_is_read(self) -> Self:
        if "" in self.input:
            raise refuse("invalid_value", "input must not hold empty strings.")
        check_truncation(self.truncate_prompt_tokens)
        return self
