"""When the contract is offered, and what is said where a package for it is missing."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from tests.compat.conftest import DEMO

from rhizome_engine.compat.front_part import VLLM_ENGINE, RouterCompatibility
from rhizome_engine.front.core_link import CoreLink, loading_error
from rhizome_engine.settings import EngineSettings, parse_settings
from rhizome_text.tokenizer import Tokenizer
from rhizome_transport.grpc_server import GrpcServer

vllm = pytest.importorskip("smg_grpc_proto", reason="pip install smg-grpc-proto").vllm_engine_pb2
from smg_grpc_proto import vllm_engine_pb2_grpc  # noqa: E402
from smg_grpc_proto.generated import common_pb2 as common  # noqa: E402

TOKENIZER = Tokenizer.from_directory(DEMO)


def settings(*options: str) -> EngineSettings:
    given = ["--model", str(DEMO), *options]
    return parse_settings(EngineSettings, given, program="rhizome-engine")


def no_core() -> CoreLink:
    raise loading_error()


def part(*options: str) -> RouterCompatibility:
    return RouterCompatibility(settings(*options), no_core, TOKENIZER)


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a package look as if it were not installed."""
    find = importlib.util.find_spec

    def hide(package: str) -> None:
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest)
        )

    return hide


def test_the_contract_is_offered_where_its_package_is_installed(missing: Callable[[str], None]) -> None:
    assert part().service_names == part("--vllm-grpc", "on").service_names == (VLLM_ENGINE,)
    assert part("--vllm-grpc", "off").service_names == ()
    missing("smg_grpc_proto")
    assert part().service_names == ()
    with pytest.raises(OSError, match="needs the package smg-grpc-proto; install it with"):
        part("--vllm-grpc", "on")


def test_kv_events_need_a_package(missing: Callable[[str], None]) -> None:
    missing("msgspec")
    with pytest.raises(OSError, match="needs the package msgspec"):
        part("--kv-events-endpoint", "tcp://127.0.0.1:5557")
    part()


async def first_of_kv_events(*options: str) -> grpc.aio.AioRpcError:
    """Why a subscription ends that finds no core."""
    compatibility = part(*options)
    server = GrpcServer("127.0.0.1:0", service_names=compatibility.service_names)
    compatibility.add_to(server)
    port = await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub: Any = vllm_engine_pb2_grpc.VllmEngineStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.SubscribeKvEvents(common.SubscribeKvEventsRequest()).read()
            health = await stub.HealthCheck(vllm.HealthCheckRequest())
            assert not health.healthy and "loading" in health.message
            return caught.value
    finally:
        await server.drain_and_stop(0.0)


async def test_tokens_are_told_where_everybody_who_asks_may_know_them(tmp_path: Path) -> None:
    """On loopback, or where callers are known, or by the operator's word; nobody else is told."""
    tokens = tmp_path / "tokens"
    tokens.write_text("a-token-of-a-friend-and-of-nobody-else\n")
    tokens.chmod(0o600)
    public = ("--host", "0.0.0.0")  # the setting decides; the server of this test is on loopback
    refused = await first_of_kv_events(*public)
    assert refused.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "--expose-token-ids" in (refused.details() or "")
    for options in (
        ("--host", "127.0.0.1"),
        (*public, "--expose-token-ids", "true"),
        (*public, "--token-file", str(tokens)),
    ):
        allowed = await first_of_kv_events(*options)
        assert allowed.code() is grpc.StatusCode.UNAVAILABLE, "there is only no core"
