"""The frames' own gRPC connection over TLS: it believes whom gRPC's channels believe."""

from __future__ import annotations

import asyncio
import ssl

from tests.transport.echo_server import echoes, fails, served

from rhizome_testing.certificates import Authority, client_tls, server_tls
from rhizome_transport.tls import ClientTls, ServerTls


async def test_only_servers_of_the_authority_are_believed(ours: Authority, theirs: Authority):
    async with served(tls=server_tls(ours)) as (_, target):
        assert await echoes(target, tls=client_tls(ours))
        assert await fails(target, "certificate", tls=client_tls(theirs))
        assert await fails(target, "broke|does not speak")
    async with served() as (_, target):
        assert await fails(target, "cannot be reached", tls=client_tls(ours))


async def test_a_certificate_that_is_no_root_is_believed_where_it_is_named(ours: Authority):
    """As gRPC's channels do, which carry the other calls to the same server."""
    issued = ours.issue("pinned")
    async with served(tls=ServerTls(issued.cert.read_bytes(), issued.key.read_bytes())) as (_, target):
        assert await echoes(target, tls=ClientTls(issued.cert.read_bytes()))
        assert await echoes(target, tls=client_tls(ours, name="localhost."))


async def test_only_clients_of_the_authority_come_in(ours: Authority, theirs: Authority):
    async with served(tls=server_tls(ours, client_ca=ours.ca)) as (_, target):
        assert await echoes(target, tls=client_tls(ours, own=ours))
        assert await fails(target, None, tls=client_tls(ours))
        assert await fails(target, None, tls=client_tls(ours, own=theirs))


async def test_a_server_must_have_the_name_that_it_is_called_by(ours: Authority):
    async with served(tls=server_tls(ours, subject_alternative_name="DNS:engine.internal")) as (_, target):
        assert await fails(target, "mismatch", tls=client_tls(ours))
        assert await echoes(target, tls=client_tls(ours, name="engine.internal"))
        assert await fails(target, "mismatch", tls=client_tls(ours, name="other.internal"))


async def test_a_server_whose_tls_has_no_http2_is_not_spoken_to(ours: Authority):
    issued = ours.issue("plain")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.cert, issued.key)
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context)
    target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    assert await fails(target, "does not speak HTTP/2", tls=client_tls(ours))
    server.close()
