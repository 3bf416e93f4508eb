"""Many requests over one stream of frames, with reconnection."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any, Final

import grpc

from rhizome.common.v1.common_pb2 import TraceContext
from rhizome.engine.v1.frames_pb2 import Call, ClientFrame, Submit
from rhizome.engine.v1.generate_pb2 import GenerateResponse
from rhizome.engine.v1.load_pb2 import Load
from rhizome_telemetry.random_ids import random_hex
from rhizome_transport.channel import MAX_MESSAGE_BYTES
from rhizome_transport.deadlines import duration, left, too_late
from rhizome_transport.errors import EngineError
from rhizome_transport.frame_connection import OpenConnection
from rhizome_transport.inbox import DRAINING, CallInbox, RequestInbox
from rhizome_transport.request_stream import RequestStream, each_event
from rhizome_transport.session import Session
from rhizome_transport.split_request import AnyRequest, SplitRequest
from rhizome_transport.wire import field

_log = logging.getLogger(__name__)

_FIRST_RETRY_S = 0.05
LONGEST_RETRY_S: Final = 2.0
"""Between two attempts to connect, at most."""
_SUBMIT = ClientFrame.DESCRIPTOR.fields_by_name["submit"].number
_REQUEST = Submit.DESCRIPTOR.fields_by_name["request"].number
_RETIRED_POLL_S = 0.1
_GREETING_LIMIT_S = 10.0
"""A core answers Hello between two steps, and a step on a CPU may last seconds."""
_USUAL_OUTPUT = 512
"""Tokens that a request without a limit is taken to make."""
_DEADLINE_SLACK_S = 0.5
"""The engine watches deadlines itself; only if it fails to, this side does."""

# Trying again cannot help against these.
_PERMANENT = frozenset(
    {
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.FAILED_PRECONDITION,
    }
)


class FrameMultiplexer:
    """Keeps one frame stream to an engine open and runs requests and calls over it.

    The stream is opened with the first use and reopened in the background whenever it breaks. Requests that
    are open when it breaks fail: UNAVAILABLE while they have no events, else ABORTED with reason ENGINE_LOST.
    A peer that refuses a request because it is going away keeps what it has; the request goes out again on a
    stream that is opened anew, as another one may listen at the same address.

    Args:
        connect: makes a new connection or raises EngineError.
        target: what it connects to, for messages.
        peer_name: who we are, for the engine's log.
        initial_credit: frames with events the engine may send ahead.
        connect_timeout_s: how long a request waits for a connection before it fails with UNAVAILABLE.

    Attributes:
        elsewhere: is given each request of which nothing came and that another engine may take; whether it
            sees to that.
        latest_load: the newest report that the engine sent by itself.
    """

    def __init__(
        self,
        connect: OpenConnection,
        *,
        target: str,
        peer_name: str,
        initial_credit: int = 64,
        connect_timeout_s: float = 5.0,
    ) -> None:
        if initial_credit < 1:
            raise ValueError(f"initial_credit is {initial_credit}; it must be at least 1")
        self._connect = connect
        self._target = target
        self._peer_name = peer_name
        self._initial_credit = initial_credit
        self._connect_timeout_s = connect_timeout_s
        self._session: Session | None = None
        self._changed = asyncio.Event()
        self._last_error: EngineError | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._closed = False
        self._retired: list[Session] = []
        self._leaving: set[asyncio.Task[None]] = set()
        self.elsewhere: Callable[[str, RequestInbox, EngineError], bool] = lambda *_: False
        self.latest_load: Load | None = None

    @property
    def instance_id(self) -> str:
        """Which engine core answers now; empty while disconnected."""
        return self._session.instance_id if self._session else ""

    @property
    def open_requests(self) -> int:
        """Requests that the engine has not ended, cancelled ones included."""
        return sum(len(one.requests) for one in (self._session, *self._retired) if one is not None)

    @property
    def open_tokens(self) -> int:
        """What requests that the engine has not ended may cost, prompts and outputs together."""
        return sum(one.open_tokens for one in (self._session, *self._retired) if one is not None)

    @property
    def leaving(self) -> bool:
        """Whether who answered last is going away, and somebody else should be asked."""
        return self._last_error is not None and self._last_error.reason == DRAINING

    @property
    def connected(self) -> bool:
        """Whether a request could be sent right now."""
        return self._session is not None

    async def open(
        self,
        request: AnyRequest,
        on_arrival: Callable[[], None],
        *,
        timeout_s: float | None = None,
        trace: TraceContext | None = None,
    ) -> RequestStream:
        """Start one request; see `client.EngineClient.open`."""
        asked = request if isinstance(request, SplitRequest) else SplitRequest(request, None)
        loop = asyncio.get_running_loop()
        deadline = None if timeout_s is None else loop.time() + timeout_s
        session = self._session or await self.connection(timeout_s)
        request_id = asked.head.request_id = asked.head.request_id or random_hex()
        if request_id in session.requests:
            raise EngineError(
                grpc.StatusCode.ALREADY_EXISTS,
                f"a request with id {request_id!r} is open already; every request needs an id of its own",
                param="request_id",
            )
        submit = Submit(trace=trace)
        expiry = None
        if deadline is not None:
            submit.timeout.CopyFrom(duration(deadline - loop.time()))
            expiry = deadline + _DEADLINE_SLACK_S, too_late(timeout_s)
        # In the message, the prompt would be parsed and written once more.
        whole = field(_REQUEST, asked.serialize())
        frame = _within_limit(field(_SUBMIT, whole, submit.SerializeToString()))
        inbox = RequestInbox(on_arrival, _tokens(asked))
        session.submit(request_id, inbox, frame)
        return RequestStream(inbox, request_id, expiry)

    def generate(
        self,
        request: AnyRequest,
        *,
        timeout_s: float | None = None,
        trace: TraceContext | None = None,
    ) -> AsyncGenerator[GenerateResponse, None]:
        """Run one request; see `client.EngineClient.generate`."""
        return each_event(partial(self.open, request, timeout_s=timeout_s, trace=trace))

    async def cancel(self, request_id: str, *, satisfied: bool = False) -> None:
        """End a request but keep reading it; see `client.EngineClient.cancel`."""
        for session in (self._session, *self._retired):
            if session is not None and request_id in session.requests:
                session.cancel(request_id, satisfied=satisfied)

    async def call(
        self,
        method: str,
        request: bytes,
        *,
        timeout_s: float | None = 10.0,
        trace: TraceContext | None = None,
    ) -> list[bytes]:
        """Call a method of the engine's services inside the stream; giving up cancels it.

        Args:
            method: such as `GetModelInfo`.
            request: the serialised request message.
            timeout_s: give up after this time.
            trace: the caller's span.

        Returns:
            The serialised answers: one, or several where the method streams.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        session = await self.connection(timeout_s)
        call_id = random_hex()
        call = Call(call_id=call_id, method=method, request=request, trace=trace)
        if deadline is not None:
            call.timeout.CopyFrom(duration(deadline - time.monotonic()))
        frame = _within_limit(ClientFrame(call=call).SerializeToString())
        inbox = session.calls[call_id] = CallInbox()
        session.send(frame)
        answers = []
        try:
            async with asyncio.timeout(left(deadline)):
                while (answer := await inbox.read()) is not None:
                    answers.append(answer)
        except TimeoutError:
            raise too_late(timeout_s) from None
        finally:
            session.calls.pop(call_id, None)
            if not inbox.ended:
                session.cancel(call_id)
        return answers

    def begin(self) -> None:
        """Connect in the background, and again whenever the stream breaks."""
        if self._keeping is None and not self._closed:
            # A context of its own: the first request's trace id must not show up in this task's log lines.
            self._keeping = asyncio.create_task(
                self._keep_connected(), name=f"frames to {self._target}", context=Context()
            )

    async def connection(self, timeout_s: float | None = None, *, limit_s: float | None = None) -> Session:
        """Wait for the stream to be open.

        Args:
            timeout_s: the caller's own time-out; the shorter of it and the limit counts.
            limit_s: wait at most this long; the connect time-out when absent.

        Raises:
            EngineError: UNAVAILABLE, or why a connection is refused for good.
        """
        if self._closed:
            raise EngineError(grpc.StatusCode.CANCELLED, "this client was closed")
        if self._session is not None:
            return self._session
        self.begin()
        limit = self._connect_timeout_s if limit_s is None else limit_s
        if timeout_s is not None:
            limit = min(limit, timeout_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(limit):
                while True:
                    if self._session is not None:
                        return self._session
                    if self._last_error is not None and self._last_error.code in _PERMANENT:
                        raise self._last_error
                    await self._changed.wait()
                    if self._closed:
                        raise EngineError(grpc.StatusCode.CANCELLED, "this client was closed")
        why = f": {self._last_error.message}" if self._last_error else ""
        raise EngineError(
            grpc.StatusCode.UNAVAILABLE,
            f"no connection to the engine at {self._target} within {limit:g} s{why}",
            reason=self._last_error.reason if self._last_error else "",
        )

    async def close(self) -> None:
        """Cancel what is open and stop reconnecting."""
        self._closed = True
        if self._session is not None:
            self._session.fail(EngineError(grpc.StatusCode.CANCELLED, "this client was closed"))
        for session in self._retired:
            session.fail(EngineError(grpc.StatusCode.CANCELLED, "this client was closed"))
        tasks = [*self._leaving, *([self._keeping] if self._keeping is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._announce(None)

    async def _keep_connected(self) -> None:
        retry_s = _FIRST_RETRY_S
        while True:
            try:
                session = await self._open_session()
            except EngineError as error:
                self._last_error = error
                _log.debug("no connection to %s: %s", self._target, error.message)
            except Exception as error:
                # Nobody awaits this task: were it to end, no request would ever be served again.
                self._last_error = EngineError(
                    grpc.StatusCode.UNAVAILABLE, f"{type(error).__name__}: {error}"
                )
                _log.exception("connecting to %s failed", self._target)
            else:
                retry_s = _FIRST_RETRY_S
                self._last_error = None
                self._announce(session)
                try:
                    self._last_error = await self._carry(session)
                finally:
                    self._session = None
                _log.info("lost the engine at %s: %s", self._target, self._last_error.message)
            self._announce(None)
            await asyncio.sleep(retry_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads retries
            retry_s = min(retry_s * 2, LONGEST_RETRY_S)

    async def _carry(self, session: Session) -> EngineError:
        """Return, with the reason, once nothing new can be sent there."""
        running = asyncio.create_task(session.run())
        retired = asyncio.create_task(session.retired.wait())
        try:
            await asyncio.wait((running, retired), return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                return running.result()
        except asyncio.CancelledError:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            raise
        finally:
            retired.cancel()
        self._retired.append(session)
        self._later(self._finish(session, running))
        return EngineError(grpc.StatusCode.UNAVAILABLE, "it is going away", reason=DRAINING)

    async def _finish(self, session: Session, running: asyncio.Task[EngineError]) -> None:
        """Let what a peer that goes away still has come to its end."""
        try:
            while (session.requests or session.calls) and not running.done():
                await asyncio.wait((running,), timeout=_RETIRED_POLL_S)
        finally:
            running.cancel()
            self._retired.remove(session)
            await asyncio.gather(running, return_exceptions=True)

    def _on_refused(self, session: Session, request_id: str, inbox: RequestInbox, why: EngineError) -> bool:
        if self._closed:
            return False
        leaves = why.reason == DRAINING and session.alive
        if leaves:
            session.retired.set()
            if self._session is session:
                self._announce(None)
        if self.elsewhere(request_id, inbox, why):
            return True
        if leaves:
            self._later(self._submit_again(request_id, inbox))
        return leaves

    async def _submit_again(self, request_id: str, inbox: RequestInbox) -> None:
        frame = inbox.take_submit()
        if frame is None:
            return
        try:
            session = await self.connection()
        except EngineError as error:
            inbox.fail(error)
            return
        except BaseException:  # this client is closed
            inbox.fail(EngineError(grpc.StatusCode.CANCELLED, "this client was closed"))
            raise
        if not inbox.wanted:  # given up meanwhile
            return
        session.submit(request_id, inbox, frame)
        inbox.submit = None  # who is refused again goes away no more than that

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, context=Context())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _open_session(self) -> Session:
        connection = await self._connect()
        session = Session(
            connection, self._peer_name, self._initial_credit, self._note_load, self._on_refused
        )
        await session.greet(_GREETING_LIMIT_S)
        return session

    def _note_load(self, load: Load) -> None:
        self.latest_load = load

    def _announce(self, session: Session | None) -> None:
        self._session = session
        self._changed.set()
        self._changed = asyncio.Event()


def _within_limit(frame: bytes) -> bytes:
    """Refuse what the engine would answer by cutting the connection, with everybody's requests on it."""
    size = len(frame)
    if size > MAX_MESSAGE_BYTES:
        raise EngineError(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"the request has {size} bytes, but a frame may have {MAX_MESSAGE_BYTES}; shorten the prompt",
            reason="REQUEST_TOO_LARGE",
        )
    return frame


def _tokens(request: SplitRequest) -> int:
    stop = request.head.stop
    return request.prompt_tokens + (stop.max_tokens if stop.HasField("max_tokens") else _USUAL_OUTPUT)
