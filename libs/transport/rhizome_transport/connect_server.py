"""`Connect` over gRPC from the side that is called: Hello, then frames both ways until either side ends.

Hello, Credit and Ping are answered here; conversations get the rest.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from rhizome.engine.v1.frames_pb2 import CallResult, Cancel, ClientFrame, EngineFrame, Hello, Pong, Welcome
from rhizome_transport.channel import PROTOCOL_VERSION
from rhizome_transport.errors import EngineError
from rhizome_transport.frame_queue import FrameQueue
from rhizome_transport.wire import cut

Context = grpc.aio.ServicerContext[bytes, bytes]

_SUBMIT = ClientFrame.DESCRIPTOR.fields_by_name["submit"].number
_LAST_WRITE_S = 5.0
_log = logging.getLogger(__name__)


class Conversation(Protocol):
    """Answers one peer.

    Attributes:
        idle: set while nothing of the peer's is open.
    """

    idle: asyncio.Event

    def submit(self, payload: bytes) -> None:
        """Take a serialised Submit.

        Raises:
            DecodeError: it is none, which ends the stream.
            EngineError: ends the stream.
        """
        ...

    def cancel(self, cancel: Cancel) -> None:
        """End a request, if it is open."""
        ...

    def close(self) -> None:
        """The stream has ended, whatever is open."""
        ...


AnyConversation = TypeVar("AnyConversation", bound=Conversation)


class ConnectServer(Generic[AnyConversation]):
    """Holds the conversations with all peers.

    Args:
        begin: makes a conversation, given the peer's name and what takes the frames for it.
        instance_id: told to each peer.

    Attributes:
        conversations: those under way.
    """

    def __init__(self, begin: Callable[[str, FrameQueue], AnyConversation], instance_id: str) -> None:
        self.conversations: set[AnyConversation] = set()
        self._begin = begin
        self._welcome = Welcome(protocol_version=PROTOCOL_VERSION, instance_id=instance_id)
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """End each stream when what is open on it has ended."""
        self._draining.set()

    def handler(self) -> grpc.RpcMethodHandler[Any, Any]:
        """The method's handler, with frames left as bytes."""
        return grpc.stream_stream_rpc_method_handler(self._connect)

    async def _connect(self, _frames: object, context: Context) -> None:
        hello = await _read_hello(context)
        queue = FrameQueue(hello.initial_credit)
        queue.put_control(EngineFrame(welcome=self._welcome).SerializeToString())
        conversation = self._begin(hello.peer_name or context.peer(), queue)
        self.conversations.add(conversation)
        reading = asyncio.create_task(_read(conversation, queue, context))
        writing = asyncio.create_task(_write(queue, context))
        draining = asyncio.create_task(self._draining.wait())
        try:
            done, _ = await asyncio.wait((reading, writing, draining), return_when=asyncio.FIRST_COMPLETED)
            if writing in done:
                _log.info("peer %s cannot be written to: %r", hello.peer_name, writing.exception())
            else:
                # The peer says nothing more, or we are to stop: answer what is open, then end the stream.
                if reading in done:
                    await reading
                await conversation.idle.wait()
                await queue.flushed()
        finally:
            self.conversations.discard(conversation)
            conversation.close()
            queue.close()
            # grpc cannot end a stream while a write is under way, and cancelling the task does not stop that.
            await asyncio.wait((writing,), timeout=_LAST_WRITE_S)
            for task in (reading, writing, draining):
                task.cancel()
            await asyncio.gather(reading, writing, draining, return_exceptions=True)


async def _read_hello(context: Context) -> Hello:
    payload = await context.read()
    try:
        frame = ClientFrame.FromString(payload if isinstance(payload, bytes) else b"")
    except DecodeError as error:
        raise _invalid(f"a frame is no ClientFrame of rhizome.engine.v1: {error}") from None
    if not frame.HasField("hello"):
        raise _invalid("the first frame of Connect must be Hello; nothing else opens it")
    if frame.hello.protocol_version != PROTOCOL_VERSION:
        raise EngineError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"this server speaks frame protocol {PROTOCOL_VERSION}, the peer "
            f"{frame.hello.protocol_version}; run the same release of Rhizome on both sides",
        )
    return frame.hello


async def _read(conversation: Conversation, queue: FrameQueue, context: Context) -> None:
    while isinstance(payload := await context.read(), bytes):
        try:
            rest, submit = cut(payload, _SUBMIT)
            if submit is not None and not rest:
                conversation.submit(submit)
                continue
            frame = ClientFrame.FromString(payload)
        except DecodeError as error:
            raise _invalid(f"a frame is no ClientFrame of rhizome.engine.v1: {error}") from None
        match frame.WhichOneof("frame"):
            case "cancel":
                conversation.cancel(frame.cancel)
            case "credit":
                queue.add_credit(frame.credit.frames)
            case "ping":
                queue.put_control(EngineFrame(pong=Pong(nonce=frame.ping.nonce)).SerializeToString())
            case "call":
                text = "this server takes no Call frames; call the method of EngineService over gRPC"
                status = EngineError(grpc.StatusCode.UNIMPLEMENTED, text).to_status()
                result = CallResult(call_id=frame.call.call_id, status=status, final=True)
                queue.put_control(EngineFrame(call_results=[result]).SerializeToString())
            case "hello":
                raise _invalid("a second Hello came; one opens the stream, once")
            case _:
                _log.warning("a peer sent a frame of an unknown kind; it is ignored")


async def _write(queue: FrameQueue, context: Context) -> None:
    while (item := await queue.next()) is not None:
        frame, written = item
        await context.write(frame)
        if written is not None:
            written()


def _invalid(message: str) -> EngineError:
    return EngineError(grpc.StatusCode.INVALID_ARGUMENT, message)
