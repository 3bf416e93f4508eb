"""The frames' gRPC call, on a connection of its own that the event loop itself reads and writes.

grpc's channel does its I/O in threads of its own: each message wakes one of them and then the loop, in either
direction. For one write and one read that was five times the work of the two system calls, and half of what a
chat cost a gateway. What goes over the wire is the same (`http2_call`), so servers and proxies on the way see
no difference. Calls that are rare stay with grpc.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, cast

import grpc

from rhizome_transport.channel import ENGINE_SERVICE, KEEPALIVE_TIME_MS, KEEPALIVE_TIMEOUT_MS
from rhizome_transport.errors import EngineError
from rhizome_transport.frame_connection import FrameConnection
from rhizome_transport.grpc_target import GrpcTarget
from rhizome_transport.http2_call import Http2Call
from rhizome_transport.tls import ALPN, ClientTls
from rhizome_transport.tokens import Tokens

_CONNECT_S: Final = 2.0
"""For one address, TLS and the server's first words included; a host that is off says nothing."""
_RESOLVE_S: Final = 5.0
_LOOK_S: Final = KEEPALIVE_TIMEOUT_MS / 1000
_SILENT_LOOKS: Final = KEEPALIVE_TIME_MS // KEEPALIVE_TIMEOUT_MS
_LAST_WORDS_S: Final = 1.0
"""What was written before the end may still go out for so long."""
_READ_BYTES: Final = 65_536


class GrpcConnection(FrameConnection, asyncio.Protocol):
    """Carries the messages of one call; see `frame_connection.FrameConnection`.

    Args:
        call: not begun yet.
        target: where to, for messages.
    """

    def __init__(self, call: Http2Call, target: str) -> None:
        super().__init__()
        self._call = call
        self._target = target
        self._transport: asyncio.Transport | None = None
        self._unsent = memoryview(b"")
        self._paused = False
        self._silent_looks = 0
        self._looking: asyncio.TimerHandle | None = None
        self._answered: asyncio.Future[None] = self._loop.create_future()
        self._why = EngineError(grpc.StatusCode.CANCELLED, "this connection was closed")

    def send_now(self, payload: bytes) -> bool:
        """See `frame_connection.FrameConnection`; what the server does not take yet is kept."""
        if self.broken or self._unsent or self._transport is None or self._transport.is_closing():
            return False
        self._unsent = memoryview(Http2Call.packed(payload))
        self._push()
        return True

    def close(self) -> None:
        """See `frame_connection.FrameConnection`. The engine frees at once what was open here."""
        if self._closed:
            return
        self._closed = True
        if self._transport is not None and not self._transport.is_closing():
            with suppress(RuntimeError):  # uvloop's, where it was given up while it was being opened
                self._transport.write(Http2Call.cancel())
        self._end(self._why)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)
        if self.broken:
            self._transport.abort()
            return
        encrypted = transport.get_extra_info("ssl_object")
        if encrypted is not None and encrypted.selected_alpn_protocol() != ALPN:
            self._end(EngineError(grpc.StatusCode.UNAVAILABLE, "who listens there does not speak HTTP/2"))
            return
        own = transport.get_extra_info("socket")
        if own.family in (socket.AF_INET, socket.AF_INET6):
            # A host that vanished acknowledges nothing; TCP itself would send again for a quarter of an hour.
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, KEEPALIVE_TIMEOUT_MS)
        self._transport.write(self._call.begin())
        self._looking = self._loop.call_later(_LOOK_S, self._look)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self.broken or self._transport is None:
            return
        self._silent_looks = 0
        reply = self._read(data)
        if self._call.outcome is not None:
            self._end(self._call.outcome)
        elif not self._transport.is_closing():
            if reply:
                self._transport.write(reply)
            if self._unsent:
                self._push()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        if isinstance(exc, OSError) and not self.broken:
            self._read_rest()
        self._transport = None
        text = f"the connection to {self._target} broke: {_said(exc) if exc else 'it was closed there'}"
        self._end(self._call.outcome or EngineError(grpc.StatusCode.UNAVAILABLE, text))

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._paused = True

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._paused = False
        if not self.broken:
            self._push()

    async def reach(
        self, address: str | tuple[str, int], tls: ssl.SSLContext | None, name: str | None
    ) -> None:
        """Connect, begin the call, and wait until somebody answers who speaks HTTP/2.

        Who only takes connections may be a load balancer with nobody behind it, or a process that stands
        still.

        Args:
            address: a socket's path, or host and port.
            tls: absent for plaintext.
            name: what the server's certificate must hold; absent for plaintext.

        Raises:
            OSError: nobody is there, or nobody to believe.
            EngineError: who is there does not answer as a server should.
        """
        if isinstance(address, str):
            await self._loop.create_unix_connection(lambda: self, address, ssl=tls, server_hostname=name)
        else:
            await self._loop.create_connection(lambda: self, *address, ssl=tls, server_hostname=name)
        await self._answered
        if not self._call.answered:
            raise self._lost()

    def _read(self, data: bytes) -> bytes:
        """Hand over the messages in what arrived; returns what to answer."""
        messages: list[bytes] = []
        reply = self._call.receive(data, messages)
        if self._call.answered:
            self._wake(self._answered)
        if messages:
            self._arrived.extend(messages)
            self._deliver()
        return reply

    def _read_rest(self) -> None:
        """Take what had arrived: who writes first is told of the end before it has read."""
        transport = self._transport
        if transport is None or transport.get_extra_info("ssl_object") is not None:
            return
        with (
            suppress(OSError),
            socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as rest,
        ):
            rest.setblocking(False)
            while not self.broken and (data := rest.recv(_READ_BYTES)):
                self._read(data)

    def _push(self) -> None:
        """Write of what is unsent as much as may be written."""
        if self._transport is None or self._transport.is_closing():
            return
        while self._unsent and not self._paused:
            frames, size = self._call.data_frames(self._unsent)
            if not size:
                return
            self._unsent = self._unsent[size:]
            self._transport.write(frames)
        if not self._unsent:
            self._wake_writer()

    def _look(self) -> None:
        """See that the other side lives.

        Looks are counted, and not time: this process may have stood still itself, and what came meanwhile is
        read after the one look that it missed.
        """
        if self.broken or self._transport is None:
            return
        self._silent_looks += 1
        if self._silent_looks > _SILENT_LOOKS:
            text = f"{self._target} has said nothing for {_LOOK_S * _SILENT_LOOKS:g} s and more"
            self._end(EngineError(grpc.StatusCode.UNAVAILABLE, text))
            return
        if self._silent_looks == _SILENT_LOOKS:
            self._transport.write(Http2Call.ping())
        self._looking = self._loop.call_later(_LOOK_S, self._look)

    def _end(self, why: EngineError) -> None:
        if self.broken:
            return
        self._why = why
        if self._looking is not None:
            self._looking.cancel()
        self._unsent = memoryview(b"")
        self._wake(self._answered)
        if self._transport is not None:
            self._transport.close()
            self._loop.call_later(_LAST_WORDS_S, self._transport.abort)
        self._break()

    def _lost(self) -> EngineError:
        why = self._why  # another one each time: what is raised keeps where it was raised
        return EngineError(
            why.code, why.message, reason=why.reason, param=why.param, retry_after_s=why.retry_after_s
        )


class GrpcDialer:
    """Opens connections to one server, each with a `Connect` call on it.

    Args:
        target: see `grpc_target.GrpcTarget`.
        tls: absent for plaintext.
        tokens: the first of them is shown; absent for none.
    """

    def __init__(self, target: str, *, tls: ClientTls | None = None, tokens: Tokens | None = None) -> None:
        self._target = target
        self._tls = None if tls is None else tls.context()
        self._server_name = "" if tls is None else tls.server_name
        self._shown = () if tokens is None else (("authorization", tokens.authorization),)

    async def __call__(self) -> GrpcConnection:
        """Open one; what the server thinks of the call shows with the first message.

        Raises:
            EngineError: UNAVAILABLE, nobody can be reached there, or nobody to believe.
        """
        where = GrpcTarget.parse(self._target)
        # Without the dot of an absolute name, which no certificate has.
        name = (self._server_name or where.host or where.authority).rstrip(".") if self._tls else None
        problem: Exception | None = None
        try:
            for address in [where.path] if where.path else await _addresses(where):
                call = Http2Call(
                    f"/{ENGINE_SERVICE}/Connect",
                    self._server_name or where.authority,
                    tls=self._tls is not None,
                    metadata=self._shown,
                )
                connection = GrpcConnection(call, self._target)
                try:
                    async with asyncio.timeout(_CONNECT_S):
                        await connection.reach(address, self._tls, name)
                except (OSError, EngineError) as error:
                    problem = error
                except BaseException:  # given up, maybe just when it was there
                    connection.close()
                    raise
                else:
                    return connection
                connection.close()
        except (OSError, UnicodeError) as error:
            problem = error
        raise EngineError(
            grpc.StatusCode.UNAVAILABLE, f"{self._target} cannot be reached: {_said(problem)}"
        ) from None


async def _addresses(where: GrpcTarget) -> Iterable[str | tuple[str, int]]:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_RESOLVE_S):
            found = await loop.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise OSError(f"the name was not resolved within {_RESOLVE_S:g} s") from None
    return dict.fromkeys((str(address[0]), int(address[1])) for *_, address in found)


def _said(problem: Exception | None) -> str:
    """Without the addresses that asyncio's own texts hold."""
    if isinstance(problem, EngineError):
        return problem.message
    if isinstance(problem, ssl.SSLCertVerificationError):
        return problem.verify_message
    if isinstance(problem, ssl.SSLError):
        return str(problem.reason or "TLS failed").replace("_", " ").lower()
    if isinstance(problem, socket.gaierror):
        return str(problem.strerror)
    if isinstance(problem, TimeoutError) and not problem.errno:
        return f"nobody answered within {_CONNECT_S:g} s"
    if isinstance(problem, OSError) and problem.errno:
        return os.strerror(problem.errno).lower()
    return str(problem) if problem else "the name has no address"
