"""How request fields are checked: strict types, finite numbers, errors that repeat nothing of the input.

`null` means the same as leaving a field out. Unknown fields are ignored, fields that would change the answer
but are not supported are refused.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

INT64_MAX = 2**63 - 1


def refuse(code: str, text: str) -> PydanticCustomError:
    """A validation error with an OpenAI error code; braces in the text must be doubled."""
    return PydanticCustomError(code, text)


class Fields(BaseModel):
    """Strict types (no `"1"` for 1), finite numbers, unknown fields ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, hide_input_in_errors=True)


def _whole(value: Any) -> Any:
    """5.0 is an integer for JSON Schema, and some clients know no other numbers.

    Larger floats are not exact: they are what the parser made of an integer beyond 64 bits, or of 1e300.
    """
    exact = isinstance(value, float) and value.is_integer() and abs(value) <= 2**53
    return int(value) if exact else value


ModelName = Annotated[str, Field(min_length=1, max_length=256)]
"""A model's name; it comes back in every chunk, so it is short."""

Whole = Annotated[int, BeforeValidator(_whole)]
"""An integer, written with or without a fraction of zero."""
