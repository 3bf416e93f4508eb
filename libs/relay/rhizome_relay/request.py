"""A client's request, as pickers and the relay see it."""

from __future__ import annotations

import contextlib
from typing import Any, Final

import orjson

Pairs = list[tuple[bytes, bytes]]

_UNREAD: Final = object()


class RelayRequest:
    """A request whose head is known; its body may still arrive.

    Attributes:
        method: such as `POST`.
        target: path and query, as sent.
        path: the target before its query, decoded.
        version: `1.0` or `1.1`.
        headers: names in lower case, values as sent, in order, repeated ones kept.
        host: whom the client thinks it talks to.
        peer: the client's address.
        trusted: whether the peer's X-Forwarded-* are believed.
        id: the request's id.
        length: of the body; `None` when it comes in chunks.
        keep_alive: whether the connection may serve further requests.
        expects_continue: whether the client waits for our word before it sends the body.
        body: what is held of the body.
        held: whether `body` is, or will be, all of it; otherwise it is passed on as it arrives.
        complete: whether all of the body has arrived.
        state: whatever the picker wants to remember.
        trace_id: of the trace that the request belongs to, for log lines.
    """

    __slots__ = (
        "_document", "_folded", "body", "complete", "expects_continue", "headers", "held", "host", "id",
        "keep_alive", "length", "method", "path", "peer", "state", "target", "trace_id", "trusted", "version",
    )  # fmt: skip

    def __init__(self, method: bytes, target: bytes, path: bytes, version: str, headers: Pairs) -> None:
        self.method = method
        self.target = target
        self.path = path
        self.version = version
        self.headers = headers
        self.host = b""
        self.peer = ""
        self.trusted = False
        self.id = b""
        self.trace_id = ""
        self.length: int | None = 0
        self.keep_alive = version == "1.1"
        self.expects_continue = False
        self.body = b""
        self.held = True
        self.complete = False
        self.state: Any = None
        self._document: Any = _UNREAD
        self._folded = b""

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header, by its name in lower case."""
        return next((value for key, value in self.headers if key == name), None)

    def json(self) -> Any:
        """The body as JSON; `None` when it is none or is not held. Parsed once, on the first call."""
        if self._document is _UNREAD:
            self._document = None
            if self.held and self.body:
                with contextlib.suppress(orjson.JSONDecodeError):  # the backend says what is wrong
                    self._document = orjson.loads(self.body)
        return self._document

    @property
    def model(self) -> str | None:
        """The model that the body names."""
        document = self.json()
        model = document.get("model") if isinstance(document, dict) else None
        return model if isinstance(model, str) else None

    @property
    def log_ids(self) -> dict[str, str]:
        """What a log record about the request is told as `extra`."""
        self._note_trace()
        return {"request_id": self.id.decode("latin-1"), "trace_id": self.trace_id}

    def fold(self) -> None:
        """Keep only what has to be sent again: thousands of streams may be open for long."""
        self._note_trace()
        self._document = _UNREAD
        if self.headers:
            self._folded = b"\n".join([b"%b:%b" % pair for pair in self.headers])
            self.headers = []

    def unfold(self) -> None:
        """Have the headers again."""
        if not self.headers and self._folded:
            lines = [line.partition(b":") for line in self._folded.split(b"\n")]
            self.headers = [(name, value) for name, _, value in lines]

    def forget(self) -> None:
        """Drop what is not needed once a response has begun: thousands of streams may be open for long."""
        self._note_trace()
        self.headers = []
        self.body = b""
        self._document = None

    def _note_trace(self) -> None:
        """Remember which trace the client says that this is a part of, where nobody else says so."""
        if not self.trace_id and (told := self.header(b"traceparent")) is not None:
            self.trace_id = told[3:35].decode("latin-1")
