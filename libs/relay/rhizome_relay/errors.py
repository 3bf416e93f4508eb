"""What the proxy itself answers when it cannot relay: OpenAI's envelope."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

Headers = Sequence[tuple[bytes, bytes]]


class HttpError(Exception):
    """An error that the client is told.

    Attributes:
        status: HTTP status.
        message: what was wrong and what to do; never the client's input, never an address.
        code: the error's name, for programs.
        headers: to send along.
    """

    def __init__(self, status: int, code: str, message: str, *, headers: Headers = ()) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers

    def body(self) -> bytes:
        """The envelope."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        return orjson.dumps(
            {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}
        )


def bad_request(message: str) -> HttpError:
    """A request that is not well-formed HTTP."""
    return HttpError(400, "bad_request", message)


def unavailable(message: str, retry_after_s: float = 1.0) -> HttpError:
    """Nothing can take the request now, but waiting may help."""
    return HttpError(503, "backend_unavailable", message, headers=(retry_after(retry_after_s),))


def retry_after(seconds: float) -> tuple[bytes, bytes]:
    """The header that says how long to wait, at least a second."""
    return b"retry-after", b"%d" % max(1, -int(-seconds // 1))


def refusal(status: int, after_s: float) -> HttpError:
    """What backends answered, when every other one fails too."""
    if status == 429:
        message = "The backends have too many requests. Try again later."
        return HttpError(429, "rate_limit_exceeded", message, headers=(retry_after(after_s),))
    return unavailable("The backends cannot take the request now. Try again later.", after_s)


def too_long(target: bytes = b"") -> HttpError:
    """A head beyond what is read: its target, where that is already too long."""
    if target:
        return HttpError(414, "uri_too_long", "The path and the query are too long.")
    return HttpError(431, "headers_too_large", "The headers are too long or too many; send fewer of them.")


def too_large() -> HttpError:
    """A body beyond what is read."""
    return HttpError(413, "body_too_large", "The body is longer than this server takes.")


NO_PATH = HttpError(404, "unknown_path", "There is nothing here for clients at this path.")
LOOP = HttpError(508, "loop_detected", "The request has passed this proxy before; check its backends.")
BUG = HttpError(500, "internal_error", "The proxy failed; its log names the cause under x-request-id.")
NONE_READY = unavailable("No backend is ready for this request. Try again in a moment.")
NONE_REACHED = unavailable("No backend could be reached. Try again in a moment.")
LOST = HttpError(502, "backend_lost", "The backend was lost before it answered. Try again.")
LATE = HttpError(504, "backend_timeout", "The backend did not answer in time. Try again later.")
SLOW_BODY = HttpError(408, "request_timeout", "The rest of the request did not arrive in time.")
GIVEN_UP = unavailable("The request was given up before a backend had it. Try again.")
