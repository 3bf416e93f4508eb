"""TLS between services, with certificates of the test's own authorities."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from rhizome_testing.certificates import client_tls, server_tls
from rhizome_transport import probe
from rhizome_transport.channel import ENGINE_SERVICE
from rhizome_transport.grpc_client import GrpcEngineClient
from rhizome_transport.grpc_server import GrpcServer
from rhizome_transport.tls import ClientTls, ServerTls


@asynccontextmanager
async def listening(tls: ServerTls | None) -> AsyncIterator[str]:
    server = GrpcServer("127.0.0.1:0", service_names=(ENGINE_SERVICE,), tls=tls)
    target = f"127.0.0.1:{await server.start()}"
    server.set_serving(ENGINE_SERVICE, True)
    try:
        yield target
    finally:
        await server.drain_and_stop(0)


async def reaches(target: str, tls: ClientTls | None) -> bool:
    client = GrpcEngineClient(target, peer_name="test", tls=tls)
    try:
        return await client.serving(timeout_s=5)
    finally:
        await client.close()


async def test_a_client_believes_only_servers_of_its_authority(ours, theirs):
    async with listening(server_tls(ours)) as target:
        assert await reaches(target, client_tls(ours))
        assert not await reaches(target, client_tls(theirs))
        assert not await reaches(target, None)


async def test_a_client_with_tls_does_not_fall_back_to_plaintext(ours):
    async with listening(None) as target:
        assert await reaches(target, None)
        assert not await reaches(target, client_tls(ours))


async def test_with_mutual_tls_only_clients_of_the_authority_come_in(ours, theirs):
    async with listening(server_tls(ours, client_ca=ours.ca)) as target:
        assert await reaches(target, client_tls(ours, own=ours))
        assert not await reaches(target, client_tls(ours))
        assert not await reaches(target, client_tls(ours, own=theirs))


async def test_a_server_must_have_the_name_that_it_is_called_by(ours):
    tls = server_tls(ours, subject_alternative_name="DNS:engine.internal")
    async with listening(tls) as target:
        assert not await reaches(target, client_tls(ours))
        assert await reaches(target, client_tls(ours, name="engine.internal"))
        assert not await reaches(target, client_tls(ours, name="other.internal"))


async def test_the_probe_of_a_container_speaks_tls(ours):
    issued = ours.issue("probe", "DNS:probe")
    arguments = ["--tls-ca", str(ours.ca), "--tls-cert", str(issued.cert), "--tls-key", str(issued.key)]
    async with listening(server_tls(ours, client_ca=ours.ca)) as target:
        assert await asyncio.to_thread(probe.main, [target, *arguments]) == probe.SERVING
        assert await asyncio.to_thread(probe.main, [target]) == probe.UNREACHABLE
    with pytest.raises(SystemExit):
        probe.main([target, "--tls-cert", str(issued.cert)])


def test_nothing_given_is_plaintext():
    assert ClientTls.from_files(None) is None
    assert ServerTls.from_files(None, None) is None


def test_what_cannot_work_is_refused_at_the_start(ours, theirs, folder):
    own, other = ours.issue("own"), theirs.issue("other")
    junk = folder / "junk.pem"
    junk.write_text("not a certificate")
    locked = folder / "locked.key"
    lock_key(own.key, locked)
    for problem, make in [
        ("come together", lambda: ServerTls.from_files(own.cert, None)),
        ("come together", lambda: ServerTls.from_files(None, own.key)),
        ("come together", lambda: ClientTls.from_files(ours.ca, own.cert)),
        ("authority", lambda: ClientTls.from_files(None, own.cert, own.key)),
        ("authority", lambda: ClientTls.from_files(None, server_name="x")),
        ("over TLS", lambda: ServerTls.from_files(None, None, ours.ca)),
        ("No such file", lambda: ClientTls.from_files(folder / "none.pem")),
        ("No such file", lambda: ServerTls.from_files(own.cert, folder / "none.key")),
        ("junk.pem holds no PEM", lambda: ClientTls.from_files(junk)),
        ("not a certificate and its", lambda: ServerTls.from_files(junk, own.key)),
        ("not a certificate and its", lambda: ServerTls.from_files(own.cert, other.key)),
        ("without a password", lambda: ServerTls.from_files(own.cert, locked)),
        ("junk.pem holds no PEM", lambda: ServerTls.from_files(own.cert, own.key, junk)),
    ]:
        with pytest.raises(ValueError, match=problem):
            make()


def lock_key(key: Path, locked: Path) -> None:
    command = ["openssl", "pkcs8", "-topk8", "-in", key, "-out", locked, "-passout", "pass:secret"]
    subprocess.run(command, check=True, capture_output=True)


def test_private_keys_are_not_shown(ours):
    for shown in (repr(server_tls(ours)), repr(client_tls(ours, own=ours))):
        assert "PRIVATE" not in shown


def test_settings_are_read_before_grpc_is_loaded():
    """The engine sets a variable that gRPC reads once, after it has read its settings."""
    check = "import sys, rhizome_transport.tls, rhizome_engine.settings; sys.exit('grpc' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_certificates_that_grpc_gets_are_those_of_the_files(ours):
    issued = ours.issue("same")
    tls = ServerTls.from_files(issued.cert, issued.key, ours.ca)
    assert tls == ServerTls(issued.cert.read_bytes(), issued.key.read_bytes(), ours.ca.read_bytes())
    assert isinstance(tls.credentials(), grpc.ServerCredentials)
