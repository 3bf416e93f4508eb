"""Every error in OpenAI's envelope: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response

from rhizome_transport.errors import EngineError, http_error

MAX_MESSAGE_BYTES = 2048
"""No error text is longer, whatever went wrong; so a small request never gets a huge answer."""

INVALID = "invalid_request_error"


_INSIDE = {
    "engine_unavailable": "No engine is ready to answer. Try again in a moment.",
    "internal_error": "The engine was lost or failed while it worked on this request. Send it again; if that "
    "does not help, the server's log says more.",
}


class ApiError(Exception):
    """An error as a client sees it.

    Attributes:
        status: HTTP status.
        message: what was wrong, what was expected, what to do; without the client's input.
        kind: class of the error, `type` in the envelope.
        code: the error's name, for programs.
        param: the field that is wrong, where one is.
        headers: to send along, such as `Retry-After`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    @classmethod
    def from_engine(cls, error: EngineError) -> ApiError:
        """Translate by the one table of errors; where waiting helps, say how long.

        What failed inside is for the log: its text may name hosts, ports and files.
        """
        http = http_error(error)
        retry = {}
        if http.status in (429, 503):
            retry = {"Retry-After": str(max(1, math.ceil(error.retry_after_s or 1.0)))}
        return cls(
            http.status,
            _INSIDE.get(http.code, error.message),
            kind=http.type,
            code=http.code,
            param=error.param,
            headers=retry,
        )

    @classmethod
    def broken_answer(cls) -> ApiError:
        """The engine stopped talking without saying how it ended."""
        return cls(500, _INSIDE["internal_error"], kind="server_error", code="internal_error")

    def envelope(self) -> dict[str, Any]:
        """The body, as an object."""
        return {
            "error": {
                "message": clip(self.message),
                "type": self.kind,
                "param": None if self.param is None else clip(self.param, 128),
                "code": self.code,
            }
        }

    def body(self) -> bytes:
        """The body."""
        return orjson.dumps(self.envelope())

    def response(self) -> Response:
        """The whole response."""
        return Response(self.body(), self.status, self.headers, media_type="application/json")


def openai_error_body(error: ApiError, request_id: str) -> bytes:
    """OpenAI's envelope, which does not name the request."""
    return error.body()


def internal_error(request_id: str) -> ApiError:
    """For bugs: nothing about the inside, but what to look for in the log."""
    return ApiError(
        500,
        f"The server failed while it handled this request. Its log names the cause under request id "
        f"{request_id}.",
        kind="server_error",
        code="internal_error",
    )


def stopping_error() -> ApiError:
    """For requests that the end of the process cuts off."""
    return ApiError(
        503,
        "The server is shutting down. Send the request again.",
        kind="server_error",
        code="engine_unavailable",
        headers={"Retry-After": "1"},
    )


def clip(text: str, limit: int = MAX_MESSAGE_BYTES) -> str:
    """Cut a text to so many bytes of UTF-8."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= limit:
        return raw.decode()
    return raw[: limit - 3].decode("utf-8", "ignore") + "…"
