"""A real engine that speaks mutual TLS."""

from pathlib import Path

import pytest

from rhizome_engine.settings import EngineSettings, parse_settings
from rhizome_testing.certificates import Authority
from rhizome_transport.grpc_client import GrpcEngineClient
from rhizome_transport.tls import ClientTls


async def test_an_engine_with_mutual_tls_answers_its_clients_only(start_engine, tmp_path: Path):
    authority = Authority(tmp_path)
    server, own = authority.issue("engine"), authority.issue("gateway")
    engine = start_engine(
        *("--tls-cert", str(server.cert), "--tls-key", str(server.key)),
        *("--tls-client-ca", str(authority.ca)),
    )
    mutual = ClientTls.from_files(authority.ca, own.cert, own.key)
    client = GrpcEngineClient(engine.target, peer_name="test", tls=mutual)
    try:
        await client.wait_ready(90)
        assert (await client.model_info()).model == "tiny"
        for tls in (None, ClientTls.from_files(authority.ca)):
            stranger = GrpcEngineClient(engine.target, peer_name="stranger", tls=tls)
            assert not await stranger.serving(timeout_s=5)
            await stranger.close()
    finally:
        await client.close()


def test_a_certificate_without_its_key_is_a_wrong_setting(checkpoint, capsys):
    with pytest.raises(SystemExit) as stopped:
        arguments = ["--model", str(checkpoint), "--tls-cert", "engine.pem"]
        parse_settings(EngineSettings, arguments, program="rhizome-engine")
    assert stopped.value.code == 2
    assert "come together" in capsys.readouterr().err
