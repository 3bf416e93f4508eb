"""Bytes to a checked request, or an error that names the field."""

from __future__ import annotations

from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from rhizome_gateway.errors import ApiError, clip
from rhizome_gateway.openai.schema import UNSUPPORTED

_MAX_NAME_CHARS = 64

RequestT = TypeVar("RequestT", bound=BaseModel)


def parse_json(body: bytes) -> dict[str, Any]:
    """Parse a request body.

    Raises:
        ApiError: 400; not JSON (NaN, lone surrogates and absurd nesting are not), or not an object.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(
            400,
            f"The body is not valid JSON: {error.msg} at byte {error.pos}.",
            code="json_invalid",
        ) from None
    if not isinstance(value, dict):
        raise ApiError(400, "The body must be a JSON object.", code="json_invalid")
    return value


def validate(schema: type[RequestT], fields: dict[str, Any]) -> RequestT:
    """Check a request's fields.

    Raises:
        ApiError: 400; the first thing that is wrong, with `param`.
    """
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        param = _param(first["loc"])
        kind = first["type"]
        custom = kind in ("unsupported_parameter", "unsupported_content", "invalid_value")
        if kind == "missing":
            message, code = f"Missing required parameter: '{param}'.", "missing_required_parameter"
        elif custom:
            message, code = first["msg"], kind
        else:
            message, code = f"Invalid value for '{param}': {first['msg']}.", "invalid_value"
        if custom and not param:  # rules over several fields begin with the name of the one to change
            name = first["msg"].split(" ", 1)[0]
            param = name if name in schema.model_fields or name in UNSUPPORTED else ""
        raise ApiError(400, clip(message), code=code, param=param or None) from None


def _param(location: tuple[int | str, ...]) -> str:
    """`messages[0].content` from pydantic's path; without the names of union members it adds."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part in ("str", "list[str]", "[key]") or part.startswith(("dict[", "function-", "constrained-")):
            continue
        else:
            path += f".{part[:_MAX_NAME_CHARS]}" if path else part[:_MAX_NAME_CHARS]
    return path
