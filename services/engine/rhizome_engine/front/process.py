"""The front process: what is started, in which order it stops, and what the signals mean."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rhizome.engine.v1.engine_admin_service_pb2 import DrainRequest
from rhizome.engine.v1.engine_admin_service_pb2_grpc import add_EngineAdminServiceServicer_to_server
from rhizome.engine.v1.engine_service_pb2_grpc import add_EngineServiceServicer_to_server
from rhizome_engine.core_record import PRIVATE_FOLDER_PREFIX
from rhizome_engine.front.admin_service import EngineAdminService
from rhizome_engine.front.service import EngineService
from rhizome_engine.front.supervisor import CoreFailedError, CoreSupervisor
from rhizome_engine.settings import EngineSettings
from rhizome_text.tokenizer import Tokenizer
from rhizome_transport.channel import ENGINE_ADMIN_SERVICE, ENGINE_SERVICE
from rhizome_transport.errors import EngineError
from rhizome_transport.grpc_server import GrpcServer

if TYPE_CHECKING:
    from rhizome_telemetry.metrics import MetricsListener

_log = logging.getLogger(__name__)

_ORPHAN_GRACE_S = 10.0
_CORE_STOP_S = 5.0


class Front:
    """The engine's front: listeners and the supervisor of the core, in one event loop.

    Args:
        settings: with `core_endpoint` set.
        tokenizer: the model's.
    """

    def __init__(self, settings: EngineSettings, tokenizer: Tokenizer) -> None:
        self._settings = settings
        self._draining: asyncio.Task[None] | None = None
        self._supervisor = CoreSupervisor(settings, self._set_serving)
        self._server = GrpcServer(
            f"{settings.host}:{settings.port}",
            service_names=(ENGINE_SERVICE,),
            open_requests=lambda: int(self._draining is not None and not self._draining.done()),
            tls=settings.tls(),
        )
        self._service = EngineService(self._supervisor.link, tokenizer, settings.served_model_name)
        self._server.add_handlers(ENGINE_SERVICE, self._service.raw_handlers())
        self._server.add(add_EngineServiceServicer_to_server, self._service)
        self._admin: GrpcServer | None = None
        self._drained = False
        if settings.admin_port:
            self._admin = GrpcServer(
                f"127.0.0.1:{settings.admin_port}", service_names=(ENGINE_ADMIN_SERVICE,)
            )
            admin_service = EngineAdminService(self._supervisor.link, tokenizer, self._on_drain)
            self._admin.add(add_EngineAdminServiceServicer_to_server, admin_service)

    async def run(self) -> int:
        """Serve until a signal; the exit status.

        SIGTERM and the first SIGINT drain: NOT_SERVING, open requests finish within `drain_timeout_s`, then
        the core and the listeners stop. The second SIGINT ends at once.
        """
        stop, stop_now = asyncio.Event(), asyncio.Event()

        def on_signal() -> None:
            (stop_now if stop.is_set() else stop).set()

        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_signal_handler(signal.SIGINT, on_signal)
        port = await self._server.start()
        _log.info("listening on %s:%d (gRPC)", self._settings.host, port)
        if self._admin is not None:
            admin_port = await self._admin.start()
            self._admin.set_serving(ENGINE_ADMIN_SERVICE, True)
            _log.info("listening on 127.0.0.1:%d (gRPC, admin)", admin_port)
        metrics = self._serve_metrics()
        supervising = asyncio.ensure_future(self._supervisor.run())
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({supervising, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if supervising.done():
                supervising.result()
            _log.info("draining for at most %.0f s", self._settings.drain_timeout_s)
            await self._drain(stop_now)
            return 0
        except CoreFailedError as error:
            _log.error("%s", error)
            return 1
        finally:
            await _cancelled(supervising, stopping)
            await self._supervisor.stop(0.0 if stop_now.is_set() else _CORE_STOP_S)
            for server in (self._server, self._admin):
                if server is not None:
                    await server.drain_and_stop(0.0)
            if metrics is not None:
                await asyncio.to_thread(metrics.close)

    def _serve_metrics(self) -> MetricsListener | None:
        settings = self._settings
        if not settings.metrics_port:
            return None
        # Only here: who does not want metrics loads none of it.
        from rhizome_engine.front.metrics import EngineCollector
        from rhizome_telemetry.metrics import MetricsListener

        loop = asyncio.get_running_loop()
        collector = EngineCollector(self._service.load, loop, settings.served_model_name)
        listener = MetricsListener(settings.metrics_host, settings.metrics_port, collector)
        _log.info("listening on %s:%d (HTTP, /metrics)", settings.metrics_host, listener.port)
        return listener

    async def _drain(self, stop_now: asyncio.Event) -> None:
        self._draining = asyncio.ensure_future(self._drain_core())
        closing = asyncio.ensure_future(self._server.drain_and_stop(self._settings.drain_timeout_s + 1.0))
        hurried = asyncio.ensure_future(stop_now.wait())
        await asyncio.wait({closing, hurried}, return_when=asyncio.FIRST_COMPLETED)
        await _cancelled(self._draining, closing, hurried)

    async def _drain_core(self) -> None:
        """The core knows which requests are open, those inside `Connect` streams included."""
        request = DrainRequest()
        request.timeout.FromMilliseconds(int(self._settings.drain_timeout_s * 1000))
        with contextlib.suppress(EngineError):  # no core, nothing open
            await self._supervisor.link().client.call(
                "Drain", request.SerializeToString(), timeout_s=self._settings.drain_timeout_s + 5.0
            )

    def _set_serving(self, serving: bool) -> None:
        self._server.set_serving(ENGINE_SERVICE, serving and not self._drained)

    def _on_drain(self) -> None:
        self._drained = True
        self._set_serving(False)


async def _cancelled(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def core_endpoint(settings: EngineSettings) -> Iterator[str]:
    """The core's ipc endpoint: as configured, or in a private directory that is removed at the end."""
    if settings.core_endpoint:
        folder = Path(settings.core_endpoint.removeprefix("ipc://")).parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield settings.core_endpoint
        return
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    parent = runtime if runtime and os.access(runtime, os.W_OK) else None
    private = tempfile.mkdtemp(prefix=PRIVATE_FOLDER_PREFIX, dir=parent)  # mode 0700
    try:
        yield f"ipc://{private}/core.ipc"
    finally:
        shutil.rmtree(private, ignore_errors=True)


def run_front(settings: EngineSettings) -> int:
    """Run the front until it is told to stop; the exit status."""
    try:
        tokenizer = Tokenizer.from_directory(settings.model)
    except (OSError, ValueError) as error:
        _log.error("%s cannot be served: %s", settings.model, error)
        return 1

    async def serve(complete: EngineSettings) -> int:
        try:
            return await Front(complete, tokenizer).run()
        except OSError as error:
            _log.error("%s", error)
            return 1

    with core_endpoint(settings) as endpoint:
        complete = settings.model_copy(
            update={
                "core_endpoint": endpoint,
                "orphan_grace_s": _ORPHAN_GRACE_S
                if settings.orphan_grace_s is None
                else settings.orphan_grace_s,
            }
        )
        with asyncio.Runner(loop_factory=_event_loop) as runner:
            return runner.run(serve(complete))


def _event_loop() -> asyncio.AbstractEventLoop:
    """A uvloop where there is one; it is measurably faster with grpc.aio."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
