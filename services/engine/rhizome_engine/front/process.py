"""The front process: what is started, in which order it stops, and what the signals mean."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from typing import TYPE_CHECKING, Any

from rhizome.engine.v1.engine_admin_service_pb2 import DrainRequest, DrainResponse
from rhizome.engine.v1.engine_admin_service_pb2_grpc import add_EngineAdminServiceServicer_to_server
from rhizome.engine.v1.engine_service_pb2_grpc import add_EngineServiceServicer_to_server
from rhizome_engine.compat.front_part import ENDLESS_METHODS as ROUTER_ENDLESS_METHODS
from rhizome_engine.compat.front_part import RouterCompatibility
from rhizome_engine.front.admin_service import EngineAdminService
from rhizome_engine.front.core_folder import core_endpoint
from rhizome_engine.front.service import EngineService
from rhizome_engine.front.supervisor import CoreFailedError, CoreSupervisor
from rhizome_engine.settings import EXIT_CANNOT_SERVE, EXIT_FAILED, EXIT_INTERRUPTED, EngineSettings
from rhizome_telemetry.log_level import LevelSwitch
from rhizome_telemetry.sd_notify import ServiceManager
from rhizome_text.tokenizer import Tokenizer
from rhizome_transport.channel import ENGINE_ADMIN_SERVICE, ENGINE_SERVICE
from rhizome_transport.errors import EngineError
from rhizome_transport.grpc_server import ENDLESS_METHODS, GrpcServer
from rhizome_transport.tokens import is_loopback

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
        self._draining: asyncio.Task[int] | None = None
        self._supervisor = CoreSupervisor(settings, self._set_serving)
        tls, tokens = settings.tls(), settings.tokens()
        self._routers = RouterCompatibility(settings, self._supervisor.link, tokenizer)
        self._server = GrpcServer(
            f"{settings.host}:{settings.port}",
            service_names=(ENGINE_SERVICE, *self._routers.service_names),
            endless_methods=ENDLESS_METHODS | ROUTER_ENDLESS_METHODS,
            open_requests=lambda: int(self._draining is not None and not self._draining.done()),
            tls=tls,
            tokens=tokens,
        )
        self._service = EngineService(self._supervisor.link, tokenizer, settings.served_model_name)
        self._server.add_handlers(ENGINE_SERVICE, self._service.raw_handlers())
        self._server.add(add_EngineServiceServicer_to_server, self._service)
        self._routers.add_to(self._server)
        self._admin: GrpcServer | None = None
        self._drained = False
        if settings.admin_port:
            self._admin = GrpcServer(
                f"{settings.admin_host}:{settings.admin_port}",
                service_names=(ENGINE_ADMIN_SERVICE,),
                tls=None if is_loopback(settings.admin_host) else tls,
                tokens=tokens,
            )
            admin_service = EngineAdminService(self._supervisor.link, tokenizer, self._on_drain)
            self._admin.add(add_EngineAdminServiceServicer_to_server, admin_service)

    async def run(self) -> int:
        """Serve until a signal; the exit status, see `settings`.

        SIGTERM and the first SIGINT drain: NOT_SERVING, open requests finish within `drain_timeout_s`, then
        the core and the listeners stop. The second SIGINT ends at once.
        """
        stop, stop_now = asyncio.Event(), asyncio.Event()

        def on_signal() -> None:
            (stop_now if stop.is_set() else stop).set()

        loop = asyncio.get_running_loop()
        LevelSwitch(self._settings.log_level, self._supervisor.tell_level).install()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_signal_handler(signal.SIGINT, on_signal)
        try:
            metrics = await self._listen()
        except OSError:
            await self._stop_listening()
            raise
        manager = ServiceManager()
        manager.follow(lambda: self._server.is_serving(ENGINE_SERVICE), self._status)
        supervising = asyncio.ensure_future(self._supervisor.run())
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({supervising, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if supervising.done():
                supervising.result()
            manager.stopping()
            _log.info("draining for at most %.0f s", self._settings.drain_timeout_s)
            cut_off = await self._drain(stop_now)
            if stop_now.is_set():
                return EXIT_INTERRUPTED
            if cut_off:
                _log.warning("%d requests were cut off", cut_off)
            return EXIT_FAILED if cut_off else 0
        except CoreFailedError as error:
            _log.error("%s", error)
            return EXIT_CANNOT_SERVE
        finally:
            await _cancelled(supervising, stopping)
            await self._routers.stop()
            await self._supervisor.stop(0.0 if stop_now.is_set() else _CORE_STOP_S)
            await self._stop_listening()
            if metrics is not None:
                await asyncio.to_thread(metrics.close)

    async def _listen(self) -> MetricsListener | None:
        """Open all ports.

        Raises:
            OSError: one of them is taken; others may be open by then.
        """
        port = await self._server.start()
        _log.info("listening on %s:%d (gRPC)", self._settings.host, port)
        if self._admin is not None:
            admin_port = await self._admin.start()
            self._admin.set_serving(ENGINE_ADMIN_SERVICE, True)
            _log.info("listening on %s:%d (gRPC, admin)", self._settings.admin_host, admin_port)
        metrics = self._serve_metrics()
        self._routers.start()
        return metrics

    async def _stop_listening(self) -> None:
        for server in (self._server, self._admin):
            if server is not None:
                await server.drain_and_stop(0.0)

    def _serve_metrics(self) -> MetricsListener | None:
        settings = self._settings
        if not settings.metrics_port:
            return None
        # Only here: who does not want metrics loads none of it.
        from rhizome_engine.front.core_metrics import CoreCollector
        from rhizome_engine.front.dropped_frames import dropped_frames
        from rhizome_engine.front.metrics import EngineCollector, Families
        from rhizome_telemetry.metrics import MetricsListener

        loop = asyncio.get_running_loop()
        others: tuple[Families, ...] = (dropped_frames(settings.served_model_name),)
        if settings.metrics_vllm_names:
            from rhizome_engine.front.vllm_metrics import VllmNames

            others = (*others, VllmNames(settings.served_model_name).families)
        collector = EngineCollector(self._service.load, loop, settings.served_model_name, *others)
        cores = CoreCollector(self._supervisor, settings.served_model_name)
        listener = MetricsListener(settings.metrics_host, settings.metrics_port, collector, cores)
        _log.info("listening on %s:%d (HTTP, /metrics)", settings.metrics_host, listener.port)
        return listener

    async def _drain(self, stop_now: asyncio.Event) -> int:
        """Finish what is open; how many requests were not."""
        self._draining = asyncio.ensure_future(self._drain_core())
        closing = asyncio.ensure_future(self._server.drain_and_stop(self._settings.drain_timeout_s + 1.0))
        hurried = asyncio.ensure_future(stop_now.wait())
        await asyncio.wait({closing, hurried}, return_when=asyncio.FIRST_COMPLETED)
        unanswered = not self._draining.done()  # by a core that is stuck
        await _cancelled(self._draining, closing, hurried)
        return int(unanswered) if self._draining.cancelled() else self._draining.result()

    async def _drain_core(self) -> int:
        """The core knows which requests are open, those inside `Connect` streams included."""
        request = DrainRequest()
        request.timeout.FromMilliseconds(int(self._settings.drain_timeout_s * 1000))
        with contextlib.suppress(EngineError):  # no core, nothing open
            answers = await self._supervisor.link().client.call(
                "Drain", request.SerializeToString(), timeout_s=self._settings.drain_timeout_s + 5.0
            )
            return DrainResponse.FromString(answers[0]).cancelled_requests
        return 0

    def _set_serving(self, serving: bool) -> None:
        for service in (ENGINE_SERVICE, *self._routers.service_names):
            self._server.set_serving(service, serving and not self._drained)

    def _status(self) -> str:
        """One line for people."""
        serving = self._server.is_serving(ENGINE_SERVICE)
        what = "serving" if serving else "drained" if self._drained else "loading"
        return f"{what} {self._settings.served_model_name}"

    def _on_drain(self) -> None:
        self._drained = True
        self._set_serving(False)


async def _cancelled(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def run_front(settings: EngineSettings) -> int:
    """Run the front until it is told to stop; the exit status."""
    try:
        tokenizer = Tokenizer.from_directory(settings.model)
    except (OSError, ValueError) as error:
        _log.error("%s cannot be served: %s", settings.model, error)
        return EXIT_CANNOT_SERVE

    async def serve(complete: EngineSettings) -> int:
        try:
            front = Front(complete, tokenizer)
        except ValueError as error:  # what it reads of the checkpoint
            _log.error("%s cannot be served: %s", complete.model, error)
            return EXIT_CANNOT_SERVE
        try:
            return await front.run()
        except OSError as error:
            _log.error("%s", error)
            return EXIT_FAILED

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
