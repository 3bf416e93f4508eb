"""`GET /v1/models` for clients that say they speak Anthropic's API.

They say so with the header `anthropic-version`, which their API demands; the path is the same as OpenAI's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Scope

from rhizome_gateway.errors import ApiError
from rhizome_gateway.served_model import ServedModel

_USUAL_PAGE, _LONGEST_PAGE = 20, 1000


def speaks_anthropic(scope: Scope) -> bool:
    """Whether a request says that its client speaks Anthropic's API."""
    return any(name == b"anthropic-version" for name, _ in scope["headers"])


def model_response(value: dict[str, Any], request_id: str) -> Response:
    """A response with the id where these clients look for it."""
    return Response(orjson.dumps(value), headers={"request-id": request_id}, media_type="application/json")


def model_object(name: str, served: ServedModel, since: int) -> dict[str, Any]:
    """One model, by one of its names.

    Args:
        name: as a request may use it.
        served: what is behind it.
        since: when it was first seen here, in seconds since the epoch; no checkpoint says when it was made.
    """
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": served.info.max_context_tokens,
        "max_tokens": served.info.max_context_tokens,
    }


def model_page(models: Sequence[dict[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """The page of a list that a query asks for: `limit` models behind `after_id` or before `before_id`.

    Raises:
        ApiError: 400; the query is wrong.
    """
    limit = _limit(query.get("limit"))
    after, before = query.get("after_id"), query.get("before_id")
    if after is not None and before is not None:
        raise _wrong("before_id", "after_id and before_id must not be given both.")
    ids = [model["id"] for model in models]
    if before is not None:
        end = _place(ids, "before_id", before)
        begin = max(0, end - limit)
        more = begin > 0
    else:
        begin = 0 if after is None else _place(ids, "after_id", after) + 1
        end = min(len(ids), begin + limit)
        more = end < len(ids)
    page = list(models[begin:end])
    return {
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": more,
    }


def _limit(text: str | None) -> int:
    if text is None:
        return _USUAL_PAGE
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= _LONGEST_PAGE):
        raise _wrong("limit", f"limit must be a number from 1 to {_LONGEST_PAGE}.")
    return int(text)


def _place(ids: Sequence[str], param: str, model_id: str) -> int:
    if model_id not in ids:
        raise _wrong(param, f"{param} must be the id of a listed model.")
    return ids.index(model_id)


def _wrong(param: str, message: str) -> ApiError:
    return ApiError(400, message, code="invalid_value", param=param)
