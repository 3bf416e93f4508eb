"""Over TCP only who has a key that is listed gets in, and only to the core that it believes."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import zmq

from rhizome_testing.engine_ways import ask, make_curve, tokens_of
from rhizome_testing.scripted_engine import ScriptedCore
from rhizome_transport.curve import ClientCurve, ServerCurve, new_key, read_public, read_secret
from rhizome_transport.endpoint import check_core_target, check_served
from rhizome_transport.errors import EngineError
from rhizome_transport.frame_server import FrameServer
from rhizome_transport.zmq_client import ZmqEngineClient

ANYWHERE = "tcp://127.0.0.1:0"


@pytest.fixture
async def core(endpoint: str, tmp_path: Path) -> AsyncIterator[tuple[ScriptedCore, ClientCurve]]:
    server, client = make_curve(tmp_path)
    core = ScriptedCore(endpoint, tcp_endpoint=ANYWHERE, curve=server)
    yield core, client
    core.stop()


async def code_of(client: ZmqEngineClient) -> grpc.StatusCode:
    """Why the client is not served."""
    try:
        with pytest.raises(EngineError) as caught:
            [event async for event in client.generate(ask("count-1"))]
        return caught.value.code
    finally:
        await client.close()


async def test_with_its_key_a_client_is_served_and_named(core):
    core, curve = core
    client = ZmqEngineClient(core.tcp_endpoint, peer_name="says what it likes", curve=curve)
    assert tokens_of([event async for event in client.generate(ask("count-1"))]) == list(range(5))
    (peer,) = core._server.peers
    assert (peer.key_name, peer.relayed) == ("client", True)
    await client.close()


async def test_ipc_beside_it_needs_no_key_and_has_no_name(core):
    core, _ = core
    client = ZmqEngineClient(core.endpoint, peer_name="local")
    assert tokens_of([event async for event in client.generate(ask("count-1"))]) == list(range(5))
    (peer,) = core._server.peers
    assert (peer.key_name, peer.relayed) == ("", False)
    await client.close()


async def test_a_key_that_is_not_listed_is_refused_and_told_so(core, tmp_path, until):
    core, _ = core
    stranger, _ = new_key(tmp_path, "stranger")
    curve = ClientCurve.from_files(stranger, tmp_path / "core.public")
    client = ZmqEngineClient(core.tcp_endpoint, peer_name="stranger", curve=curve, connect_timeout_s=20)
    assert await code_of(client) is grpc.StatusCode.UNAUTHENTICATED
    await until(lambda: core.counters.refused >= 1)
    assert core.peers == 0


async def test_a_core_with_another_key_is_not_believed(core, tmp_path):
    core, _ = core
    _, other = new_key(tmp_path, "other-core")
    curve = ClientCurve.from_files(tmp_path / "client.secret", other)
    client = ZmqEngineClient(core.tcp_endpoint, peer_name="careful", curve=curve, connect_timeout_s=1.0)
    assert await code_of(client) is grpc.StatusCode.UNAVAILABLE
    assert core.peers == 0


def test_who_speaks_no_curve_is_counted_and_gets_nothing(core, until):
    core, _ = core
    context = zmq.Context()
    plain = context.socket(zmq.DEALER)
    plain.linger = 0
    plain.connect(core.tcp_endpoint)
    plain.send(b"hello?")
    assert not plain.poll(300)
    for _ in range(200):
        if core.counters.refused:
            break
        plain.poll(50)
    context.destroy(linger=0)
    assert core.counters.refused >= 1
    assert core.counters.undecodable == 0


async def test_keys_are_added_and_revoked_while_the_core_runs(core, tmp_path):
    core, curve = core
    listed = tmp_path / "client.public"
    kept = listed.read_text()
    listed.write_text((tmp_path / "core.public").read_text() + "# nobody else for now\n")
    client = ZmqEngineClient(core.tcp_endpoint, peer_name="client", curve=curve, connect_timeout_s=20)
    assert await code_of(client) is grpc.StatusCode.UNAUTHENTICATED
    listed.write_text("what is this")  # a slip lets in whom the last good file did
    client = ZmqEngineClient(core.tcp_endpoint, peer_name="client", curve=curve, connect_timeout_s=20)
    assert await code_of(client) is grpc.StatusCode.UNAUTHENTICATED
    listed.write_text(kept + (tmp_path / "core.public").read_text())
    client = ZmqEngineClient(core.tcp_endpoint, peer_name="client", curve=curve, connect_timeout_s=20)
    assert tokens_of([event async for event in client.generate(ask("count-2"))]) == list(range(5))
    await client.close()


async def test_what_travels_cannot_be_read_on_the_way(core, tmp_path):
    """A recorder between both sees the whole conversation, and none of its words."""
    import asyncio

    core, curve = core
    seen = bytearray()

    async def record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = int(core.tcp_endpoint.rpartition(":")[2])
        there, towards = await asyncio.open_connection("127.0.0.1", port)

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                seen.extend(data)
                target.write(data)
            target.close()

        await asyncio.gather(copy(reader, towards), copy(there, writer), return_exceptions=True)

    server = await asyncio.start_server(record, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = ZmqEngineClient(f"tcp://127.0.0.1:{port}", peer_name="client", curve=curve, connect_timeout_s=20)
    await client.frames.connection()
    [event async for event in client.generate(ask("count-unmistakable-name"))]
    await client.close()
    server.close()
    assert len(seen) > 500
    assert b"unmistakable" not in seen
    assert b"core-1" not in seen


@pytest.mark.parametrize(
    "endpoint",
    ["tcp://", "tcp://127.0.0.1", "tcp://127.0.0.1:x", "tcp://127.0.0.1:70000", "tcp://::1:5", "tcp://a/b:5"],
)
def test_malformed_tcp_endpoints_are_refused(endpoint, tmp_path):
    server, client = make_curve(tmp_path)
    with pytest.raises(ValueError, match="tcp://host:port"):
        check_served(endpoint, server)
    with pytest.raises(ValueError, match="tcp://host:port"):
        check_core_target(endpoint, client)


def test_tcp_without_keys_is_refused_on_both_sides(endpoint):
    with pytest.raises(ValueError, match="refused without CURVE keys"):
        FrameServer(endpoint, tcp_endpoint="tcp://127.0.0.1:5555")
    with pytest.raises(ValueError, match="refused without CURVE keys"):
        check_core_target("tcp://127.0.0.1:5555")
    assert not Path(endpoint.removeprefix("ipc://")).exists()


def test_a_port_that_is_taken_is_an_os_error_and_leaves_nothing(endpoint, tmp_path):
    server, _ = make_curve(tmp_path)
    first = FrameServer(endpoint, tcp_endpoint=ANYWHERE, curve=server)
    other = endpoint.replace("core.sock", "other.sock")
    with pytest.raises(OSError, match="cannot listen on tcp://"):
        FrameServer(other, tcp_endpoint=first.tcp_endpoint, curve=server)
    first.close()
    FrameServer(other, tcp_endpoint=first.tcp_endpoint, curve=server).close()


def test_a_new_key_is_for_its_owner_and_is_not_overwritten(tmp_path):
    secret, public = new_key(tmp_path, "gateway-1")
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    name, key = read_secret(secret)
    assert name == "gateway-1"
    assert read_public(public) == {zmq.curve_public(key): "gateway-1"}
    assert key.decode() not in public.read_text()
    with pytest.raises(FileExistsError, match="choose another name"):
        new_key(tmp_path, "gateway-1")
    with pytest.raises(ValueError, match="is no name"):
        new_key(tmp_path, "../up")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_secret_that_others_may_read_is_refused(tmp_path, mode):
    secret, public = new_key(tmp_path, "core")
    secret.chmod(mode)
    with pytest.raises(ValueError, match="chmod 0600"):
        ServerCurve(secret, public)
    with pytest.raises(ValueError, match="chmod 0600"):
        ClientCurve.from_files(secret, public)


def test_a_list_that_others_may_write_to_is_refused(tmp_path):
    secret, public = new_key(tmp_path, "core")
    public.chmod(0o666)
    with pytest.raises(ValueError, match="chmod go-w"):
        ServerCurve(secret, public)


def test_what_belongs_together_comes_together(tmp_path):
    secret, public = new_key(tmp_path, "core")
    assert ClientCurve.from_files(None, None) is None
    assert ServerCurve.from_files(None, None) is None
    for kind in (ClientCurve, ServerCurve):
        with pytest.raises(ValueError, match="give both"):
            kind.from_files(secret, None)
        with pytest.raises(ValueError, match="give both"):
            kind.from_files(None, public)
        with pytest.raises(ValueError, match="No such file"):
            kind.from_files(secret, tmp_path / "nothing")


@pytest.mark.parametrize(
    "text", ["", "curve-secret", "curve-public short x", "\xff", "curve-public " + "a" * 40]
)
def test_what_is_no_key_file_is_refused_without_showing_it(tmp_path, text):
    secret, public = new_key(tmp_path, "core")
    line = secret.read_text()
    secret.write_bytes(line.encode() + text.encode("latin-1") + b"\n" if text else b"")
    with pytest.raises(ValueError, match=r"curve-secret|no text file") as caught:
        ServerCurve(secret, public)
    assert line.split()[1] not in str(caught.value)
    with pytest.raises(ValueError, match="curve-public"):
        ServerCurve.from_files(new_key(tmp_path, "again")[0], tmp_path / "again.secret")
