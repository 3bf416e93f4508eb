"""One conversation over one connection, from Hello until that breaks.

A request belongs to the conversation it was submitted in: when that ends, the request has ended too, because
the engine cancels what a vanished peer left open. So nothing is ever resumed here; that is for a proxy.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import grpc
from google.protobuf.message import DecodeError

from rhizome.engine.v1.frames_pb2 import Cancel, ClientFrame, Credit, Hello, Welcome
from rhizome.engine.v1.load_pb2 import Load
from rhizome.engine.v1.relay_pb2 import PeerFrame
from rhizome_transport.channel import PROTOCOL_VERSION
from rhizome_transport.errors import EngineError
from rhizome_transport.frame_connection import FrameConnection
from rhizome_transport.inbox import CallInbox, RequestInbox

_log = logging.getLogger(__name__)

ENGINE_LOST = "ENGINE_LOST"


class Session:
    """Sends frames in order and hands what arrives to whom it belongs.

    Args:
        connection: freshly opened.
        peer_name: who we are, for the engine's log.
        initial_credit: frames with events that may be under way.
        on_load: is given every load report.
        on_refused: is given each request that somebody else may take, and why; whether it sees to it that
            the request goes elsewhere.

    Attributes:
        retired: set when nothing new is to be sent here.
        open_tokens: what all open requests may cost.
    """

    def __init__(
        self,
        connection: FrameConnection,
        peer_name: str,
        initial_credit: int,
        on_load: Callable[[Load], None],
        on_refused: Callable[[Session, str, RequestInbox, EngineError], bool] = lambda *_: False,
    ) -> None:
        self.retired = asyncio.Event()
        self.open_tokens = 0
        self._on_refused = on_refused
        self._connection = connection
        self._peer_name = peer_name
        self._initial_credit = initial_credit
        self._on_load = on_load
        self._owed_credit = 0
        self.requests: dict[str, RequestInbox] = {}
        self.calls: dict[str, CallInbox] = {}
        self.instance_id = ""
        self.undecodable_frames = 0
        self.alive = False

    async def greet(self, timeout_s: float) -> None:
        """Exchange Hello and Welcome; the connection is closed where that fails.

        Raises:
            EngineError: no Welcome in time, or another protocol version.
        """
        try:
            await self._exchange(timeout_s)
        except BaseException:
            self._connection.close()
            raise
        self.alive = True

    async def _exchange(self, timeout_s: float) -> None:
        hello = Hello(
            protocol_version=PROTOCOL_VERSION,
            peer_name=self._peer_name,
            initial_credit=self._initial_credit,
        )
        try:
            async with asyncio.timeout(timeout_s):
                self._connection.post(ClientFrame(hello=hello).SerializeToString())
                welcome = await self._welcome()
        except DecodeError:
            raise EngineError(
                grpc.StatusCode.UNAVAILABLE, "what listens there does not speak Rhizome's frames"
            ) from None
        except TimeoutError:
            raise EngineError(
                grpc.StatusCode.UNAVAILABLE, f"the engine did not answer Hello within {timeout_s:g} s"
            ) from None
        if welcome.protocol_version != PROTOCOL_VERSION:
            raise EngineError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the engine speaks frame protocol {welcome.protocol_version}, this peer speaks "
                f"{PROTOCOL_VERSION}; run the same release of Rhizome on both sides",
            )
        self.instance_id = welcome.instance_id

    async def run(self) -> EngineError:
        """Carry frames until the connection breaks; then fail everything that is open and say why."""
        try:
            await self._connection.carry(self.dispatch)
        except EngineError as error:
            cause = error
        except Exception as error:
            _log.exception("the frame stream failed")
            cause = EngineError(grpc.StatusCode.INTERNAL, f"the frame stream failed: {error}")
        finally:
            self.alive = False
            self._connection.close()
        self.fail(cause)
        return cause

    def submit(self, request_id: str, inbox: RequestInbox, frame: bytes) -> None:
        """Ask, by a serialised frame, for a request whose events `inbox` takes from now on."""
        inbox.submit, inbox.cancel = frame, self.cancel
        self.requests[request_id] = inbox
        self.open_tokens += inbox.tokens
        self.send(frame)

    def send(self, frame: bytes) -> None:
        """Send one serialised frame after those before it."""
        self._connection.post(frame)

    def cancel(self, request_id: str, *, satisfied: bool = False) -> None:
        """Ask the engine to end a request."""
        cancel = Cancel(request_id=request_id, satisfied=satisfied)
        self.send(ClientFrame(cancel=cancel).SerializeToString())

    def fail(self, cause: EngineError) -> None:
        """End everything that is open: what has not begun may be tried elsewhere, the rest may not."""
        self.alive = False
        self.open_tokens = 0
        requests, self.requests = self.requests, {}
        for request_id, request in requests.items():
            if request.end(_failure(cause, request.used)) and not self._moved(request_id, request):
                request.tell()
        for call in self.calls.values():
            call.fail(_failure(cause, call.used))
        self.calls.clear()

    def _moved(self, request_id: str, inbox: RequestInbox) -> bool:
        why = inbox.movable
        return why is not None and self._on_refused(self, request_id, inbox, why)

    async def _welcome(self) -> Welcome:
        while True:
            frame = PeerFrame.FromString(await self._connection.receive())
            if frame.HasField("welcome"):
                return frame.welcome

    def dispatch(self, payloads: Sequence[bytes]) -> None:
        """Hand out what some serialised EngineFrames hold.

        Readers are told once all frames were read: whoever cannot keep up gets fewer and longer pieces.
        """
        news: list[RequestInbox] = []
        try:
            for payload in payloads:
                try:
                    frame = PeerFrame.FromString(payload)
                except DecodeError:
                    self.undecodable_frames += 1
                    continue
                self._take(frame, news)
        finally:  # whatever is wrong with a later frame
            for inbox in news:
                inbox.tell()

    def _take(self, frame: PeerFrame, news: list[RequestInbox]) -> None:
        requests = self.requests
        for event in frame.events:
            inbox = requests.get(event.request_id)
            if inbox is not None:
                told = inbox.has_news
                if inbox.put(event):
                    del requests[event.request_id]
                    self.open_tokens -= inbox.tokens
                    if self._moved(event.request_id, inbox):
                        continue
                if not told:
                    news.append(inbox)
        for result in frame.call_results:
            call = self.calls.get(result.call_id)
            if call is not None:
                call.put(result)
                if call.ended:
                    del self.calls[result.call_id]
        if frame.HasField("load"):
            self._on_load(frame.load)
        if frame.HasField("welcome") and frame.welcome.instance_id != self.instance_id:
            raise EngineError(grpc.StatusCode.UNAVAILABLE, "the engine core was started anew")
        if frame.events:
            self._repay()

    def _repay(self) -> None:
        # Inboxes merge, so a frame is digested once it is dispatched; waiting for the slowest reader would
        # let it hold back all the others. Half a window at a time saves most of the Credit frames.
        self._owed_credit += 1
        if self._owed_credit * 2 >= self._initial_credit:
            self.send(ClientFrame(credit=Credit(frames=self._owed_credit)).SerializeToString())
            self._owed_credit = 0


def _failure(cause: EngineError, begun: bool) -> EngineError:
    if begun:
        text = f"the engine was lost after it had begun to answer: {cause.message}"
        return EngineError(grpc.StatusCode.ABORTED, text, reason=ENGINE_LOST)
    return EngineError(
        grpc.StatusCode.UNAVAILABLE, cause.message, reason=cause.reason, retry_after_s=cause.retry_after_s
    )
