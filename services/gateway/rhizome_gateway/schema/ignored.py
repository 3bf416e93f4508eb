"""Fields of a request that have no effect here: taken silently, or told to the client."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel

from rhizome_gateway.errors import ApiError

HEADER = "x-ignored-params"

WITHOUT_EFFECT = frozenset(
    {
        "client_metadata",
        "enable_response_messages",
        "logprob_token_ids",
        "metadata",
        "moderation",
        "prediction",
        "prompt_cache_options",
        "prompt_cache_retention",
        "service_tier",
        "store",
        "verbosity",
    }
)
"""Fields of OpenAI's API that say nothing about the answer; every client may send them."""

OF_OTHER_SERVERS = frozenset(
    {
        "early_stopping",
        "length_penalty",
        "mirostat",
        "mm_processor_kwargs",
        "priority",
        "repeat_penalty",
        "typical_p",
    }
)
"""Fields that mean something elsewhere; counted by name when they are ignored."""

_PRINTABLE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MOST_NAMED = 16


def ignored_fields(schema: type[BaseModel], fields: Mapping[str, Any]) -> list[str]:
    """Fields that a request has and this server does not know; nulls are no fields."""
    known = _known(schema)
    return [
        name
        for name, value in fields.items()
        if value is not None and name not in known and name not in WITHOUT_EFFECT
    ]


def header_value(names: Iterable[str]) -> str:
    """The names as a header; those that do not fit into one are left out."""
    return ", ".join([name for name in names if _PRINTABLE.fullmatch(name)][:_MOST_NAMED])


def strict_refusal(names: list[str]) -> ApiError:
    """What to say where unknown fields are not taken."""
    name = names[0] if _PRINTABLE.fullmatch(names[0]) else None
    return ApiError(
        400,
        "This server knows no such parameter; leave it out.",
        code="unknown_parameter",
        param=name,
    )


@cache
def _known(schema: type[BaseModel]) -> frozenset[str]:
    return frozenset(field.alias or name for name, field in schema.model_fields.items())
