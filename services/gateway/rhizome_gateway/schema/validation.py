"""Bytes to a checked request, or an error that names the field."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
from functools import cache
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from rhizome_gateway.errors import ApiError, clip
from rhizome_gateway.http.exchange import Exchange
from rhizome_gateway.http.json_depth import json_depth_ok
from rhizome_gateway.runtime import Runtime
from rhizome_gateway.schema.ignored import (
    HEADER,
    OF_OTHER_SERVERS,
    header_value,
    ignored_fields,
    strict_refusal,
)

_log = logging.getLogger(__name__)

_GC_FREE_BYTES = 64 * 1024
_INLINE_BYTES = 256 * 1024
"""Smaller bodies are checked faster than another thread is reached, whatever is in them."""
_MOST_COUNTED = 16
_FIELD = re.compile(r"[a-z_]{1,64}")

RequestT = TypeVar("RequestT", bound=BaseModel)


async def read_request(
    runtime: Runtime, exchange: Exchange, schema: type[RequestT]
) -> tuple[RequestT, dict[str, Any]]:
    """Read, parse and check the body of a request.

    Returns:
        The checked request, and its fields as they were sent.

    Raises:
        ApiError: 400, 408, 413 or 415.
    """
    settings = runtime.settings
    body = await exchange.read_json(max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s)
    if settings.log_prompts:
        _log.info("the request says %s", body.decode("utf-8", "replace"))
    if len(body) < _INLINE_BYTES:
        request, fields = _checked(schema, body, settings.max_json_depth)
    else:
        request, fields = await asyncio.to_thread(_checked, schema, body, settings.max_json_depth)
    if ignored := ignored_fields(schema, fields):
        if settings.strict_params:
            raise strict_refusal(ignored)
        for name in ignored[:_MOST_COUNTED]:
            runtime.metrics.ignored_parameter(name if name in OF_OTHER_SERVERS else "other")
        exchange.headers[HEADER] = header_value(ignored)
    return request, fields


def _checked(schema: type[RequestT], body: bytes, max_depth: int) -> tuple[RequestT, dict[str, Any]]:
    fields = parse_json(body, max_depth)
    return validate(schema, fields), fields


def parse_json(body: bytes, max_depth: int) -> dict[str, Any]:
    """Parse a request body, arrays and objects nested at most `max_depth` deep.

    Raises:
        ApiError: 400; not JSON (NaN and lone surrogates are not), nested too deep, or not an object.
    """
    if not json_depth_ok(body, max_depth):
        raise ApiError(400, f"The body may be nested {max_depth} levels deep at most.", code="json_invalid")
    try:
        value = _loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(
            400,
            f"The body is not valid JSON: {error.msg} at byte {error.pos}.",
            code="json_invalid",
        ) from None
    if not isinstance(value, dict):
        raise ApiError(400, "The body must be a JSON object.", code="json_invalid")
    return value


def _loads(body: bytes) -> Any:
    """Large bodies without garbage collection: a million small objects would set it off again and again."""
    if len(body) < _GC_FREE_BYTES or not gc.isenabled():
        return orjson.loads(body)
    gc.disable()
    try:
        return orjson.loads(body)
    finally:
        gc.enable()


def validate(schema: type[RequestT], fields: dict[str, Any]) -> RequestT:
    """Check a request's fields.

    Raises:
        ApiError: 400; the first thing that is wrong, with `param`.
    """
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        param = _param(schema, first["loc"])
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
            param = name if _FIELD.fullmatch(name) else ""
        raise ApiError(400, clip(message), code=code, param=param or None) from None


def _param(schema: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """`messages[0].content` from pydantic's path.

    Only names of the schema's own fields are kept: pydantic also puts names of union members into the path,
    and keys of objects that the client made up.
    """
    names = _field_names(schema)
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part in names:
            path += f".{part}" if path else part
    return path


@cache
def _field_names(schema: type[BaseModel]) -> frozenset[str]:
    """Names of all fields of a schema and of what it holds."""
    names: set[str] = set()

    def collect(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(properties := node.get("properties"), dict):
                names.update(properties)
            for value in node.values():
                collect(value)
        elif isinstance(node, list):
            for value in node:
                collect(value)

    collect(schema.model_json_schema())
    return frozenset(names)
