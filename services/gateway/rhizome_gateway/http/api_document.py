"""The OpenAPI document: what FastAPI does not know of routes that it does not serve, and how errors look.

Every error of a route is told apart by its status only; the body has one schema per API. So the document has
one response per status and API, and operations refer to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
"""pydantic leaves these as they are where a validator stands before a number that may be null."""

_OF_FRAMEWORK = ("HTTPValidationError", "ValidationError")
"""FastAPI's own 422, which is never sent."""

_STATUSES = {
    400: "The request is not valid; `message` says what to change, `param` where.",
    401: "There is no valid API key.",
    403: "The key may not use this model, or the gateway does not answer to this host name.",
    404: "There is no such model, or nothing at this address.",
    405: "The address does not take this method; `Allow` lists those it takes.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not plain JSON.",
    429: "A limit of the key is used up; `Retry-After` says for how long.",
    500: "The server failed; its log says why.",
    503: "No engine is ready, or the server is full; `Retry-After` says when to try again.",
    504: "The answer took longer than a request may take.",
}
_RETRIED = (429, 503)
_OF_READING = (401, 403, 404, 500, 503)
_PROBES = ("/health", "/ready")

_ANSWERS: Mapping[str, tuple[str, ...]] = {
    "/v1/chat/completions": ("id", "object", "created", "model", "system_fingerprint", "choices", "usage"),
    "/v1/completions": ("id", "object", "created", "model", "system_fingerprint", "choices", "usage"),
    "/v1/embeddings": ("object", "data", "model", "usage"),
    "/v1/responses": ("id", "object", "created_at", "model", "status", "output", "usage"),
    "/v1/responses/input_tokens": ("object", "input_tokens"),
    "/tokenize": ("count", "max_model_len", "tokens"),
    "/detokenize": ("prompt",),
    "/v1/messages": ("id", "type", "role", "model", "content", "stop_reason", "usage"),
    "/v1/messages/count_tokens": ("input_tokens",),
    "/v1/models": ("object", "data"),
    "/v1/models/{model_id}": ("id", "object", "created", "owned_by"),
    "/health": ("status",),
    "/ready": ("status", "model_loaded"),
    "/version": ("version", "engine_version", "model"),
    "/v1/metrics": ("cpu", "memory", "gpu", "engine", "cache", "queue", "timestamp"),
    "/v1/rhizome/pulse": ("engines", "events", "trace_url", "admin"),
    "/v1/rhizome/cache": ("trees",),
    "/tokenizer_info": ("vocab_size", "model_max_length"),
}
"""Fields that every whole answer of a route has."""

_MODEL = {"model": "rhizome-demo"}
_CONVERSATION = {"messages": [{"role": "user", "content": "Say hello."}]}
_EXAMPLES: Mapping[str, Any] = {
    "/v1/chat/completions": _MODEL | _CONVERSATION,
    "/v1/completions": _MODEL | {"prompt": "Once upon a time", "max_tokens": 16},
    "/v1/embeddings": _MODEL | {"input": ["a lamp", "a light"]},
    "/v1/responses": _MODEL | {"input": "Say hello."},
    "/v1/responses/input_tokens": _MODEL | {"input": "Say hello."},
    "/tokenize": {"prompt": "Say hello."},
    "/detokenize": {"tokens": [72, 105]},
    "/v1/messages": _MODEL | _CONVERSATION | {"max_tokens": 64},
    "/v1/messages/count_tokens": _MODEL | _CONVERSATION,
}

_SCHEMAS: Mapping[str, Any] = {
    "ErrorResponse": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string", "minLength": 1},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
                "additionalProperties": False,
            },
        },
    },
    "AnthropicErrorResponse": {
        "type": "object",
        "required": ["type", "error", "request_id"],
        "properties": {
            "type": {"const": "error"},
            "error": {
                "type": "object",
                "required": ["type", "message"],
                "properties": {"type": {"type": "string"}, "message": {"type": "string", "minLength": 1}},
                "additionalProperties": False,
            },
            "request_id": {"type": ["string", "null"]},
        },
    },
}
_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "api_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def request_body(path: str, schema: str) -> dict[str, Any]:
    """The `requestBody` of a route, with an example that works on the bundled model.

    Args:
        path: of the route.
        schema: name of the body's schema.
    """
    media = {"schema": _reference(schema), "example": _EXAMPLES[path]}
    return {"required": True, "content": {"application/json": media}}


def generating_responses(path: str, *, streams: bool, anthropic: bool) -> dict[str, Any]:
    """The `responses` of a route that reads a body.

    Args:
        path: of the route.
        streams: the answer may be a stream of events.
        anthropic: errors are in Anthropic's envelope.
    """
    content = _answer(path)
    if streams:
        content["text/event-stream"] = {}  # events differ, and OpenAPI 3.1 has no schema for them
    suffix = "Anthropic" if anthropic else ""
    return {"200": {"description": "The answer.", "content": content}} | _errors(_STATUSES, suffix)


def complete(document: dict[str, Any], *, needs_key: bool) -> None:
    """Add what all routes share, and take out what is FastAPI's and not so.

    Args:
        document: whose operations are all there; changed in place.
        needs_key: there is a keys file.
    """
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in _OF_FRAMEWORK:
        schemas.pop(name, None)
    for schema in schemas.values():
        _name_bounds(schema)
    schemas.update(_SCHEMAS)
    components["responses"] = _shared_responses()
    components["securitySchemes"] = _SECURITY_SCHEMES
    document["security"] = [{"bearer": []}, {"api_key": []}, *([] if needs_key else [{}])]
    for path, operations in document["paths"].items():
        if "get" in operations:
            _complete_reading(path, operations["get"])


def _complete_reading(path: str, operation: dict[str, Any]) -> None:
    """A route of FastAPI's: it knows neither our errors nor what bare responses hold."""
    content = {"text/plain": {"schema": {"type": "string"}}} if path == "/metrics" else _answer(path)
    operation["responses"] = {"200": {"description": "The answer.", "content": content}}
    wrong = (400,) if any(one["in"] == "query" for one in operation.get("parameters", ())) else ()
    operation["responses"] |= _errors((*wrong, *_OF_READING), "")
    if path in _PROBES:
        operation["security"] = []
    if path == "/ready":
        not_ready = {"allOf": [_reference("ErrorResponse"), _object(_ANSWERS[path])]}
        operation["responses"]["503"] = _response(503, not_ready)


def _answer(path: str) -> dict[str, Any]:
    return {"application/json": {"schema": _object(_ANSWERS[path])}}


def _object(fields: Iterable[str]) -> dict[str, Any]:
    return {"type": "object", "required": list(fields)}


def _errors(statuses: Iterable[int], suffix: str) -> dict[str, Any]:
    return {str(status): {"$ref": f"#/components/responses/{suffix}Error{status}"} for status in statuses}


def _shared_responses() -> dict[str, Any]:
    return {
        f"{suffix}Error{status}": _response(status, _reference(f"{suffix}ErrorResponse"))
        for suffix in ("", "Anthropic")
        for status in _STATUSES
    }


def _response(status: int, schema: dict[str, Any]) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": _STATUSES[status],
        "content": {"application/json": {"schema": schema}},
    }
    if status in _RETRIED:
        seconds = {"schema": {"type": "integer", "minimum": 1}, "required": True, "description": "seconds"}
        response["headers"] = {"Retry-After": seconds}
    return response


def _reference(schema: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{schema}"}


def _name_bounds(schema: Any) -> None:
    """Bounds of numbers under JSON Schema's names."""
    if isinstance(schema, list):
        for part in schema:
            _name_bounds(part)
    elif isinstance(schema, dict):
        if schema.get("type") == "integer":
            for ours, theirs in _BOUNDS.items():
                if ours in schema:
                    schema[theirs] = schema.pop(ours)
        for part in schema.values():
            _name_bounds(part)
