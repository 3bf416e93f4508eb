"""Heads of responses, and whole responses that the proxy itself gives."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

from rhizome_relay.errors import Headers, HttpError
from rhizome_relay.request import RelayRequest

_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus
}


@dataclass(frozen=True, slots=True)
class Answer:
    """A response that is made here.

    Attributes:
        status: HTTP status.
        body: all of it.
        content_type: of the body.
        headers: further ones.
    """

    status: int
    body: bytes
    content_type: bytes = b"application/json"
    headers: Headers = ()

    @classmethod
    def of_error(cls, error: HttpError) -> Answer:
        """The error's envelope."""
        return cls(error.status, error.body(), headers=error.headers)


Handler = Callable[[RelayRequest], Awaitable[Answer]]
"""Answers a path of the proxy's own."""


def status_line(status: int) -> bytes:
    """The first line of a response."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def render(answer: Answer, *, head_only: bool, keep_alive: bool, extra: bytes = b"") -> bytes:
    """A whole response.

    Args:
        answer: what to say.
        head_only: whether the request was HEAD.
        keep_alive: whether the connection stays.
        extra: more header lines.
    """
    lines = b"".join([b"%b: %b\r\n" % pair for pair in answer.headers])
    return b"%bdate: %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n%b%b%b\r\n%b" % (
        status_line(answer.status),
        formatdate(usegmt=True).encode(),
        answer.content_type,
        len(answer.body),
        lines,
        extra,
        b"" if keep_alive else b"connection: close\r\n",
        b"" if head_only else answer.body,
    )
