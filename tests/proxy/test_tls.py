"""TLS on both sides of the proxy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rhizome.engine.v1.engine_service_pb2 import GetModelInfoResponse
from rhizome.engine.v1.engine_service_pb2_grpc import add_EngineServiceServicer_to_server
from rhizome_proxy.server import ProxyServer
from rhizome_proxy.settings import ProxySettings, parse_settings
from rhizome_testing.certificates import Authority
from rhizome_transport.channel import ENGINE_SERVICE
from rhizome_transport.grpc_client import GrpcEngineClient
from rhizome_transport.grpc_server import EngineServicerBase, GrpcServer
from rhizome_transport.tls import ClientTls, ServerTls


class Servicer(EngineServicerBase):
    async def GetModelInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        return GetModelInfoResponse(model="served")


async def test_a_proxy_speaks_mutual_tls_to_clients_and_engines(tmp_path: Path):
    outside, inside = Authority(tmp_path, "outside"), Authority(tmp_path, "inside")
    engine_cert = inside.issue("engine", "DNS:engine.internal")
    proxy_cert, proxy_client, gateway = (
        outside.issue("proxy"),
        inside.issue("proxy"),
        outside.issue("gateway"),
    )
    engine = GrpcServer(
        "127.0.0.1:0",
        service_names=(ENGINE_SERVICE,),
        tls=ServerTls.from_files(engine_cert.cert, engine_cert.key, inside.ca),
    )
    engine.add(add_EngineServiceServicer_to_server, Servicer())
    engine_target = f"127.0.0.1:{await engine.start()}"
    engine.set_serving(ENGINE_SERVICE, True)
    settings = ProxySettings(
        backends=engine_target,
        port=0,
        tls_cert=proxy_cert.cert,
        tls_key=proxy_cert.key,
        tls_client_ca=outside.ca,
        engine_tls_ca=inside.ca,
        engine_tls_cert=proxy_client.cert,
        engine_tls_key=proxy_client.key,
        engine_tls_name="engine.internal",
    )
    proxy = ProxyServer(settings)
    try:
        target = f"127.0.0.1:{await proxy.start()}"
        client = GrpcEngineClient(
            target, peer_name="test", tls=ClientTls.from_files(outside.ca, gateway.cert, gateway.key)
        )
        await client.wait_ready(10)
        assert (await client.model_info()).model == "served"
        await client.close()
        for tls in (None, ClientTls.from_files(outside.ca)):
            stranger = GrpcEngineClient(target, peer_name="stranger", tls=tls)
            assert not await stranger.serving(timeout_s=5)
            await stranger.close()
    finally:
        await proxy.stop(0)
        await engine.drain_and_stop(0)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--tls-cert", "proxy.pem"], "come together"),
        (["--tls-client-ca", "ca.pem"], "over TLS"),
        (["--engine-tls-name", "engine.internal"], "authority"),
        (["--engine-tls-ca", "none.pem"], "No such file"),
    ],
)
def test_settings_that_cannot_work_are_refused(arguments, problem, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        parse_settings(["--backends", "127.0.0.1:1", *arguments])
    assert problem in capsys.readouterr().err
