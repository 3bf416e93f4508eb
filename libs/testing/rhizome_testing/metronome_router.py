"""The ZeroMQ side of a `metronome_engine`, on its event loop."""

from __future__ import annotations

import asyncio
from functools import partial

import zmq

from rhizome.engine.v1.frames_pb2 import ClientFrame
from rhizome_testing.metronome import Metronome
from rhizome_testing.metronome_conversation import MetronomeConversation, MetronomeModel
from rhizome_transport.channel import MAX_MESSAGE_BYTES
from rhizome_transport.ipc import IpcLock

_PROBE_EVERY_S = 0.5


class MetronomeRouter:
    """Serves any number of peers on one endpoint.

    Args:
        endpoint: `ipc:///path`, in a private directory.
        metronome: gives the tokens.
        model: answers calls.

    Raises:
        ValueError, OSError: as `rhizome_transport.ipc.IpcLock` does.
    """

    def __init__(self, endpoint: str, metronome: Metronome, model: MetronomeModel) -> None:
        self._metronome = metronome
        self._model = model
        self._conversations: dict[bytes, MetronomeConversation] = {}
        self._reached: set[bytes] = set()
        self._lock = IpcLock(endpoint)
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.router_mandatory = True
        self._socket.sndhwm = 0  # credit bounds what is under way
        self._socket.linger = 0
        self._socket.maxmsgsize = MAX_MESSAGE_BYTES
        self._socket.bind(endpoint)
        self._lock.restrict()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._receive)
        self._probing = self._loop.call_later(_PROBE_EVERY_S, self._probe)

    def close(self) -> None:
        """End without a word to anybody."""
        self._probing.cancel()
        self._loop.remove_reader(self._socket.fileno())
        for identity in tuple(self._conversations):
            self._conversations.pop(identity).close()
        self._context.destroy(linger=0)
        self._lock.release()

    def _receive(self) -> None:
        # The descriptor tells of changes only: everything has to be read, after sending, too.
        while not self._socket.closed:
            try:
                identity, payload = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            conversation = self._conversations.get(identity)
            if conversation is None:
                send = partial(self._send, identity)
                conversation = MetronomeConversation(self._metronome, self._model, send)
                self._conversations[identity] = conversation
            conversation.take(ClientFrame.FromString(payload))

    def _send(self, identity: bytes, frame: bytes) -> None:
        self._reached.add(identity)
        try:
            self._socket.send_multipart((identity, frame), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._loop.call_soon(self._lose, identity)
        if int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
            self._loop.call_soon(self._receive)

    def _lose(self, identity: bytes) -> None:
        conversation = self._conversations.pop(identity, None)
        if conversation is not None:
            conversation.close()

    def _probe(self) -> None:
        """Find out who left: an empty frame cannot be sent to them, and says nothing to the others.

        Those that got a frame lately are not probed, so that no measurement has more frames than steps.
        """
        for identity in self._conversations.keys() - self._reached:
            self._send(identity, b"")
        self._reached.clear()
        self._probing = self._loop.call_later(_PROBE_EVERY_S, self._probe)
