"""What the relay needs from the pool: targets in order, a lease on each one tried, a budget for retries."""

from __future__ import annotations

import enum
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from rhizome_relay.request import RelayRequest


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a backend listens; connections are shared by equal origins.

    Attributes:
        host: name or address.
        port: TCP port.
        base: path before every request's own, such as `/openai`; empty or beginning with a slash.
        tls: how to speak TLS; `None` for plaintext.
        authority: the Host header.
    """

    host: str
    port: int
    base: bytes = b""
    tls: ssl.SSLContext | None = None
    authority: bytes = field(init=False, compare=False)
    _hash: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == (443 if self.tls else 80) else f":{self.port}"
        object.__setattr__(self, "authority", f"{host}{port}".encode("ascii"))
        object.__setattr__(self, "_hash", hash((self.host, self.port, self.base, self.tls)))

    def __hash__(self) -> int:
        return self._hash  # every request looks for its connections by it


class Ending(enum.Enum):
    """How an attempt at a backend ended."""

    COMPLETE = "complete"  # it answered, whatever the status
    REFUSED = "refused"  # it answered a status that another backend may do better than
    CANCELLED = "cancelled"  # the client went away; says nothing about the backend
    UNREACHABLE = "unreachable"  # no connection
    LOST = "lost"  # the connection ended before the response's head was complete
    MALFORMED = "malformed"  # what it sent is no HTTP response
    TIMED_OUT = "timed out"  # it said nothing for too long
    TRUNCATED = "truncated"  # it began to answer and did not end


class Outcome(NamedTuple):
    """What an attempt says about its backend.

    Attributes:
        ending: how it ended.
        status: of the response; 0 when there was none.
        retry_after_s: for how long the backend asked to be left alone.
        first_byte_s: from sending the request to the response's head; 0 when there was none.
    """

    ending: Ending
    status: int = 0
    retry_after_s: float = 0.0
    first_byte_s: float = 0.0


class Result(NamedTuple):
    """What became of a request.

    Attributes:
        status: of the response; 0 when there was none.
        whole: whether the client was given all of it.
        backend: who answered last; empty when nobody did.
        attempts: backends that were tried.
        queue_s: how long the picker took.
        first_byte_s: from the request's start to the first byte of a response's body; 0 when there was none.
        duration_s: of all of it.
        pieces: of the body, as the backend sent them; in a stream about one for each event.
        usage: the end of the last of them that tells how many tokens were used; empty where none does.
    """

    status: int
    whole: bool
    backend: str
    attempts: int
    queue_s: float
    first_byte_s: float
    duration_s: float
    pieces: int = 0
    usage: bytes = b""


class Lease(Protocol):
    """One attempt's place in a backend's in-flight count."""

    def first_byte(self) -> None:
        """The body of its response has begun: the prompt is read."""

    def release(self, outcome: Outcome) -> None:
        """The attempt is over; called exactly once."""


class Target(Protocol):
    """A backend that a request may go to.

    Attributes:
        name: for clients to see; no address.
        kind: such as `vllm`.
        origin: where it listens.
        headers: added to requests (names in lower case) in place of the client's, such as its key.
    """

    name: str
    kind: str
    origin: Origin
    headers: Sequence[tuple[bytes, bytes]]

    def body(self, request: RelayRequest) -> bytes:
        """What to send of a held body: `request.body`, unless the model has another name there."""

    def lease(self, cut: Callable[[], None], heard_at: Callable[[], float]) -> Lease:
        """Count one more request there.

        Args:
            cut: makes the request leave, for when the backend is to go away.
            heard_at: when the backend last sent a piece of the answer, in the loop's time; 0 for never.
        """


class Continuation(Protocol):
    """How another backend goes on with a stream of events.

    Attributes:
        possible: whether one can, with what the client has got.
    """

    possible: bool

    def take(self, data: bytes, ended: bool) -> bytes:
        """A piece of a backend's events has arrived, the last one if `ended`; what the client gets of it."""

    def end(self) -> bytes | None:
        """What completes the stream, where nothing else is missing; `None` where more is."""

    def next_target(self) -> Target | None:
        """A backend that may go on; `None` if there is none now."""

    def body(self, target: Target) -> bytes:
        """The request for the rest."""


class Picker(Protocol):
    """Chooses backends."""

    def continuation(self, request: RelayRequest) -> Continuation | None:
        """What sees to it that a stream goes on; `None` for other requests. Called before `pick`."""

    def pick(self, request: RelayRequest) -> Iterable[Target] | Awaitable[Iterable[Target]]:
        """Targets in the order in which to try them; the next one is only asked for when it is needed.

        A picker that queues requests returns an awaitable; it is cancelled when the client goes away.

        Raises:
            HttpError: the client is told, such as 404 for a model that nobody serves.
        """

    def ended(self, request: RelayRequest, result: Result) -> None:
        """A request that was to be picked for is over; called exactly once, also where picking failed."""


class RetryBudget(Protocol):
    """Bounds what retries add to the load. Attempts that follow an unreachable backend are free."""

    def on_request(self) -> None:
        """A request came in."""

    def take(self) -> bool:
        """Whether one more retry is within the budget; counts it."""
