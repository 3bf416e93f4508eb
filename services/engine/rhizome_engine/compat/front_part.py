"""The front's part for other people's routers: what is switched on, and what is missing for it."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from rhizome_engine.settings import EngineSettings
from rhizome_transport.grpc_server import GrpcServer
from rhizome_transport.tokens import is_loopback

if TYPE_CHECKING:
    from rhizome_engine.compat.kv_publisher import KvEventPublisher
    from rhizome_engine.front.core_link import CoreLink
    from rhizome_text.tokenizer import Tokenizer

VLLM_ENGINE = "vllm.grpc.engine.VllmEngine"
ENDLESS_METHODS = frozenset({"SubscribeKvEvents"})
"""RPCs that a drain does not wait for."""

_INSTALL = "install it with: pip install 'rhizome-engine[routers]'"

_log = logging.getLogger(__name__)


class RouterCompatibility:
    """vLLM's gRPC contract on the front's listener, and the publisher of KV events.

    Args:
        settings: of the engine.
        link: gives the link to a serving core or raises EngineError.
        tokenizer: the model's.

    Attributes:
        service_names: of the gRPC services that it adds.

    Raises:
        OSError: something that was asked for needs a package that is not installed.
    """

    def __init__(self, settings: EngineSettings, link: Callable[[], CoreLink], tokenizer: Tokenizer) -> None:
        self._settings = settings
        self._link = link
        self._tokenizer = tokenizer
        self._publisher: KvEventPublisher | None = None
        self.service_names = (VLLM_ENGINE,) if _wants_facade(settings) else ()
        if settings.kv_events() is not None and not _installed("msgspec"):
            raise OSError(f"--kv-events-endpoint needs the package msgspec; {_INSTALL}")

    def add_to(self, server: GrpcServer) -> None:
        """Register the contract, where it is offered."""
        if not self.service_names:
            return
        # Only here: who does not want it loads none of it.
        from smg_grpc_proto import vllm_engine_pb2_grpc

        from rhizome_engine.compat.vllm_facts import ModelFacts
        from rhizome_engine.compat.vllm_servicer import VllmEngineService

        settings = self._settings
        facts = ModelFacts.read(settings.model, settings.served_model_name, self._tokenizer)
        service = VllmEngineService(
            self._link,
            facts,
            lambda: server.is_serving(VLLM_ENGINE),
            max_batch_size=settings.max_batch_size,
            tell_tokens=_may_tell_tokens(settings),
        )
        server.add(vllm_engine_pb2_grpc.add_VllmEngineServicer_to_server, service)

    def start(self) -> None:
        """Begin to publish, where that is asked for.

        Raises:
            OSError: an endpoint is taken or not of this machine.
        """
        kv_events = self._settings.kv_events()
        if kv_events is None:
            return
        from rhizome_engine.compat.kv_publisher import KvEventPublisher

        self._publisher = KvEventPublisher(kv_events, self._link)
        self._publisher.start()
        where = "connected to" if kv_events.connect else "listening on"
        _log.info("%s %s (ZeroMQ, KV events)", where, self._publisher.endpoint)
        if self._publisher.replay_endpoint:
            _log.info("listening on %s (ZeroMQ, old KV events)", self._publisher.replay_endpoint)

    async def stop(self) -> None:
        """End what `start` began."""
        if self._publisher is not None:
            await self._publisher.stop()


def _wants_facade(settings: EngineSettings) -> bool:
    if settings.vllm_grpc == "off":
        return False
    if _installed("smg_grpc_proto"):
        return True
    if settings.vllm_grpc == "on":
        raise OSError(f"--vllm-grpc on needs the package smg-grpc-proto; {_INSTALL}")
    return False


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _may_tell_tokens(settings: EngineSettings) -> bool:
    """Who reaches the listener is of this host, is known, or the operator does not mind."""
    guarded = settings.tls_client_ca is not None or settings.token_file is not None
    return is_loopback(settings.host) or guarded or settings.expose_token_ids
