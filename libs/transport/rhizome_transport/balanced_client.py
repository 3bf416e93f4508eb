"""EngineClient over several engine cores on this host, for a gateway without a proxy.

Requests go where the fewest tokens are open. One that is refused, or whose core is lost, before anything
came of it goes to the next core; nothing that has begun goes on elsewhere, and nobody looks at caches: that
is what a proxy is for.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any, TypeVar

import grpc

from rhizome.common.v1.common_pb2 import TraceContext
from rhizome.engine.v1.engine_service_pb2 import EmbedRequest, EmbedResponse, GetModelInfoResponse
from rhizome.engine.v1.generate_pb2 import GenerateResponse
from rhizome.engine.v1.load_pb2 import Load
from rhizome_transport.client import TokenizerFiles
from rhizome_transport.deadlines import left
from rhizome_transport.errors import EngineError
from rhizome_transport.frames import LONGEST_RETRY_S
from rhizome_transport.inbox import DRAINING, RequestInbox
from rhizome_transport.load_sum import sum_loads
from rhizome_transport.request_stream import RequestStream, each_event
from rhizome_transport.split_request import AnyRequest
from rhizome_transport.zmq_client import ZmqEngineClient

_log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

_TRY_NEXT = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED})


class BalancedClient:
    """Talks to engine cores that serve the same model; implements `client.EngineClient`.

    Must be made inside the running loop; nothing is sent before the first use.

    Args:
        clients: one for each core, closed with this one.
        connect_timeout_s: how long a request waits for a connection to any of them.
    """

    def __init__(self, clients: Sequence[ZmqEngineClient], *, connect_timeout_s: float = 5.0) -> None:
        self.clients = tuple(clients)
        self._connect_timeout_s = connect_timeout_s
        self._moving: set[asyncio.Task[None]] = set()
        for client in self.clients:
            client.frames.elsewhere = partial(self._elsewhere, client)

    async def open(
        self,
        request: AnyRequest,
        on_arrival: Callable[[], None],
        *,
        timeout_s: float | None = None,
        trace: TraceContext | None = None,
    ) -> RequestStream:
        """See `client.EngineClient`."""
        return await self._ask_next(
            lambda client: client.open(request, on_arrival, timeout_s=timeout_s, trace=trace), timeout_s
        )

    def generate(
        self, request: AnyRequest, *, timeout_s: float | None = None, trace: TraceContext | None = None
    ) -> AsyncGenerator[GenerateResponse, None]:
        """See `client.EngineClient`."""
        return each_event(partial(self.open, request, timeout_s=timeout_s, trace=trace))

    async def cancel(self, request_id: str, *, satisfied: bool = False) -> None:
        """See `client.EngineClient`."""
        for client in self.clients:
            await client.cancel(request_id, satisfied=satisfied)

    async def embed(
        self, request: EmbedRequest, *, timeout_s: float | None = None, trace: TraceContext | None = None
    ) -> EmbedResponse:
        """See `client.EngineClient`."""
        return await self._ask_next(
            lambda client: client.embed(request, timeout_s=timeout_s, trace=trace), timeout_s
        )

    async def model_info(self, model: str = "") -> GetModelInfoResponse:
        """See `client.EngineClient`; FAILED_PRECONDITION where the cores do not serve the same."""
        await self._connected(None)
        told = await asyncio.gather(
            *(client.model_info(model) for client in self._ready()), return_exceptions=True
        )
        infos = [one for one in told if isinstance(one, GetModelInfoResponse)]
        for problem in told:
            if not infos and isinstance(problem, BaseException):
                raise problem
        if len({(info.model, info.tokenizer_sha256) for info in infos}) > 1:
            names = ", ".join(sorted({info.model for info in infos}))
            raise EngineError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the engine cores serve different models ({names}); behind one gateway without a proxy all "
                "must serve the same",
            )
        if not infos:
            raise EngineError(grpc.StatusCode.UNAVAILABLE, "the engine cores went away while they were asked")
        return infos[0]

    async def tokenizer_files(self, model: str = "") -> TokenizerFiles:
        """See `client.EngineClient`."""
        return await self._ask_next(lambda client: client.tokenizer_files(model), None)

    async def load(self) -> Load:
        """See `client.EngineClient`; the sum over the cores that answer."""
        await self._connected(None)
        told = await asyncio.gather(*(client.load() for client in self._ready()), return_exceptions=True)
        loads = [one for one in told if isinstance(one, Load)]
        for problem in told:
            if not loads and isinstance(problem, BaseException):
                raise problem
        return sum_loads(loads)

    async def wait_ready(self, timeout_s: float) -> None:
        """See `client.EngineClient`: returns with the first core that serves."""
        await self._connected(timeout_s, limit_s=timeout_s)

    async def close(self) -> None:
        """See `client.EngineClient`."""
        for task in self._moving:
            task.cancel()
        await asyncio.gather(*self._moving, return_exceptions=True)
        await asyncio.gather(*(client.close() for client in self.clients))

    async def _ask_next(
        self, ask: Callable[[ZmqEngineClient], Awaitable[Answer]], timeout_s: float | None
    ) -> Answer:
        """Ask one core after another until one answers, least busy first.

        Raises:
            EngineError: the last one's, or the first that no other core would answer differently.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        await self._connected(timeout_s)
        tried: tuple[object, ...] = ()
        while True:
            client = self._least_busy(tried)
            if client is None:  # it left between two looks
                raise EngineError(grpc.StatusCode.UNAVAILABLE, "no engine core is connected; try again")
            try:
                return await ask(client)
            except EngineError as error:
                tried = (*tried, client)
                if error.code not in _TRY_NEXT or not await self._another(tried, error, left(deadline)):
                    raise

    def _ready(self) -> list[ZmqEngineClient]:
        return [client for client in self.clients if client.frames.connected]

    def _least_busy(self, tried: tuple[object, ...]) -> ZmqEngineClient | None:
        ready = [client for client in self._ready() if client not in tried]
        return min(ready, key=lambda client: client.frames.open_tokens, default=None)

    def _untried(self, tried: tuple[object, ...]) -> list[ZmqEngineClient]:
        return [client for client in self.clients if client not in tried]

    async def _another(
        self, tried: tuple[object, ...], why: EngineError, timeout_s: float | None = None
    ) -> bool:
        """Whether a core that was not tried is connected. After a loss, those that are about to be count.

        A core that was started a moment ago may be between two attempts to connect to it.
        """
        untried = self._untried(tried)
        if why.code is grpc.StatusCode.UNAVAILABLE and untried and self._least_busy(tried) is None:
            with suppress(EngineError):
                await self._connected(timeout_s, limit_s=LONGEST_RETRY_S, among=untried)
        return self._least_busy(tried) is not None

    async def _connected(
        self,
        timeout_s: float | None,
        *,
        limit_s: float | None = None,
        among: Sequence[ZmqEngineClient] | None = None,
    ) -> None:
        """Wait for a connection to any of some cores, while all are tried in the background.

        Raises:
            EngineError: UNAVAILABLE, or why each of them refuses for good.
        """
        for client in self.clients:
            client.frames.begin()
        among = self.clients if among is None else among
        if any(client.frames.connected for client in among):
            return
        limit_s = self._connect_timeout_s if limit_s is None else limit_s
        waiting = {
            asyncio.ensure_future(client.frames.connection(timeout_s, limit_s=limit_s)) for client in among
        }
        try:
            pending = set(waiting)
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                if any(one.exception() is None for one in done):
                    return
            raise next(error for one in waiting if (error := one.exception()) is not None)
        finally:
            for one in waiting:
                one.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def _elsewhere(
        self, client: ZmqEngineClient, request_id: str, inbox: RequestInbox, why: EngineError
    ) -> bool:
        """Give a request of which nothing came to another core, if one is left that has not had it."""
        inbox.tried = (*inbox.tried, client)
        # Whoever drains may come back at the same address: its own client asks there again.
        lost = why.code is grpc.StatusCode.UNAVAILABLE and why.reason != DRAINING
        about_to_connect = lost and bool(self._untried(inbox.tried))
        if self._least_busy(inbox.tried) is None and not about_to_connect:
            return False
        _log.info("%s did not take a request, another engine core gets it: %s", client.endpoint, why.message)
        self._later(self._submit_elsewhere(request_id, inbox, why))
        return True

    async def _submit_elsewhere(self, request_id: str, inbox: RequestInbox, why: EngineError) -> None:
        frame = inbox.take_submit()
        if frame is None:  # nobody waits any more
            return
        wishes: list[bool] = []  # of a reader that cancels while nobody has the request
        inbox.cancel = lambda _request_id, *, satisfied=False: wishes.append(satisfied)
        try:
            client = self._least_busy(inbox.tried) if await self._another(inbox.tried, why) else None
            if client is None:
                raise why
            session = await client.frames.connection()
        except EngineError as error:
            inbox.fail(error)
            return
        except BaseException:  # this client is closed
            inbox.fail(why)
            raise
        if not inbox.wanted:
            return
        session.submit(request_id, inbox, frame)
        for satisfied in wishes:
            session.cancel(request_id, satisfied=satisfied)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, context=Context())
        self._moving.add(task)
        task.add_done_callback(self._moving.discard)
