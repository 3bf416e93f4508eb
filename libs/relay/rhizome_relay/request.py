"""A client's request, as pickers and the relay see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

if TYPE_CHECKING:
    from rhizome_relay.known_heads import KnownRequest

Pairs = list[tuple[bytes, bytes]]

_UNREAD: Final = object()
_NO_FIELDS: Final[dict[bytes, bytes]] = {}


class RelayRequest:
    """A request whose head is known; its body may still arrive.

    Attributes:
        method: such as `POST`.
        target: path and query, as sent.
        path: the target before its query, decoded.
        version: `1.0` or `1.1`.
        headers: names in lower case, values as sent, in order, repeated ones kept.
        fields: the first value of each of them by name.
        known: what was found out about its head before; `None` for a new one.
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
        "_document", "_folded", "body", "complete", "expects_continue", "fields", "headers", "held", "host",
        "id", "keep_alive", "known", "length", "method", "path", "peer", "state", "target", "trace_id",
        "trusted", "version",
    )  # fmt: skip

    def __init__(
        self,
        method: bytes,
        target: bytes,
        path: bytes,
        version: str,
        headers: Pairs,
        fields: dict[bytes, bytes] | None = None,
    ) -> None:
        self.method = method
        self.target = target
        self.path = path
        self.version = version
        self.headers = headers
        self.fields = first_values(headers) if fields is None else fields
        self.known: KnownRequest | None = None
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
        return self.fields.get(name)

    def json(self) -> Any:
        """The body as JSON; `None` when it is none or is not held. Parsed once, on the first call."""
        document = self._document
        if document is _UNREAD:
            document = None
            if self.held and self.body:
                try:
                    document = orjson.loads(self.body)
                except orjson.JSONDecodeError:
                    document = None  # the backend says what is wrong
            self._document = document
        return document

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
            self._drop_head()

    def unfold(self) -> None:
        """Have the headers again."""
        if not self.headers and self._folded:
            lines = [line.partition(b":") for line in self._folded.split(b"\n")]
            self.headers = [(name, value) for name, _, value in lines]
            self.fields = first_values(self.headers)

    def forget(self) -> None:
        """Drop what is not needed once a response has begun: thousands of streams may be open for long."""
        self._note_trace()
        self._drop_head()
        self.body = b""
        self._document = None

    def _note_trace(self) -> None:
        """Remember which trace the client says that this is a part of, where nobody else says so."""
        if (told := self.fields.get(b"traceparent")) is not None and not self.trace_id:
            self.trace_id = told[3:35].decode("latin-1")

    def _drop_head(self) -> None:
        self.headers = []
        self.fields = _NO_FIELDS
        self.known = None


def first_values(headers: Pairs) -> dict[bytes, bytes]:
    """Headers by name; of a repeated one the first counts."""
    fields = dict(headers)
    return fields if len(fields) == len(headers) else dict(reversed(headers))
