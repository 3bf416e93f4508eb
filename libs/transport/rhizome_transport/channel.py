"""gRPC options that every Rhizome channel and server share."""

from __future__ import annotations

import grpc.aio

from rhizome_transport.tls import ClientTls
from rhizome_transport.token_channel import TokenChannel
from rhizome_transport.tokens import Tokens

ENGINE_SERVICE = "rhizome.engine.v1.EngineService"
ENGINE_ADMIN_SERVICE = "rhizome.engine.v1.EngineAdminService"
PROTOCOL_VERSION = 2

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""A 128k-token prompt with log probabilities fits; a mistaken upload does not."""

KEEPALIVE_TIME_MS = 30_000
"""Who hears nothing for so long asks whether somebody is there."""
KEEPALIVE_TIMEOUT_MS = 10_000
"""Who is not answered for so long holds the connection for lost."""
_MIN_PING_INTERVAL_MS = 10_000

CLIENT_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    # Also how long one attempt to connect may take, so not less on a busy machine.
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # `http_proxy` in the environment is for the outside world, not for traffic between our own services.
    ("grpc.enable_http_proxy", 0),
    # A connection of its own: one that is shared by target also shares the back-off of whoever failed there.
    ("grpc.use_local_subchannel_pool", 1),
)

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", -1),
    # Otherwise a second server on the same port starts without an error and takes half of the connections.
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
    ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
)


def open_channel(
    target: str, *, tls: ClientTls | None = None, tokens: Tokens | None = None
) -> grpc.aio.Channel:
    """Open a channel with a connection of its own; must run inside the loop that uses it.

    Args:
        target: `host:port`, or `unix:/path`.
        tls: absent for plaintext.
        tokens: the first of them is shown with each call; absent for none.
    """
    if tls is not None:
        options = (*CLIENT_OPTIONS, *tls.options())
        channel = grpc.aio.secure_channel(target, tls.credentials(), options=options)
    else:
        channel = grpc.aio.insecure_channel(target, options=CLIENT_OPTIONS)
    return channel if tokens is None else TokenChannel(channel, tokens)
