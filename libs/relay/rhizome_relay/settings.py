"""Limits and habits of the HTTP face."""

from __future__ import annotations

import ipaddress
import secrets
from dataclasses import dataclass, field

MIB = 1 << 20

API_PATHS = frozenset(
    b"/completion /completions /chat/completions /embedding /embeddings /infill /apply-template /tokenize "
    b"/detokenize /rerank /reranking /score /classify /pooling /generate /generate_stream /api/chat "
    b"/api/generate /api/embed /api/embeddings".split()
)
"""What backends offer to users beside `/v1/`; their other paths are for operators."""


@dataclass(frozen=True)
class RelaySettings:
    """What a relay is told.

    Attributes:
        max_head_bytes: a request's line and headers.
        max_headers: how many fields.
        max_body_bytes: a longer body is answered 413.
        replay_bytes: a body up to this length is held, so that pickers can read it and another backend can
            get it; a longer one is passed on as it arrives, once.
        header_timeout_s: from a request's first byte to the end of its headers.
        body_timeout_s: between two pieces of a body.
        keep_alive_s: how long a client's connection may idle between requests.
        client_stall_s: how long a client may read nothing of what waits for it.
        connect_timeout_s: until a backend's connection stands.
        first_byte_timeout_s: from the request to the response's head; a long prompt is in it.
        idle_timeout_s: between two pieces of a response.
        total_timeout_s: of a whole exchange.
        backend_keep_alive_s: how long a connection to a backend may idle.
        backend_idle_connections: how many of them each backend may have.
        max_attempts: backends that may refuse a request; those lost or out of reach do not count.
        retry_statuses: responses that another backend may do better than.
        max_resumes: backends that may be lost under a stream which goes on at another one each time.
        resume_wait_s: how long such a stream waits for a backend that can go on.
        comment_s: between two comments to a client whose stream has to wait for a backend.
        forward_credentials: whether backends see Authorization, API keys and cookies of clients.
        allowed_prefixes: paths that are relayed begin so,
        allowed_paths: or are one of these,
        denied_paths: and none of these.
        trusted_proxies: whose X-Forwarded-* are believed.
        via: this proxy's name in Via. It must be its own: seeing it in a request means a loop.
        sweep_s: resolution of all time-outs but the connect time-out.
    """

    max_head_bytes: int = 32 << 10
    max_headers: int = 100
    max_body_bytes: int = 64 * MIB
    replay_bytes: int = 16 * MIB
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    keep_alive_s: float = 75.0
    client_stall_s: float = 60.0
    connect_timeout_s: float = 1.0
    first_byte_timeout_s: float = 300.0
    idle_timeout_s: float = 120.0
    total_timeout_s: float = float("inf")
    backend_keep_alive_s: float = 60.0
    backend_idle_connections: int = 512
    max_attempts: int = 3
    retry_statuses: frozenset[int] = frozenset((429, 502, 503))
    max_resumes: int = 3
    resume_wait_s: float = 5.0
    comment_s: float = 5.0
    forward_credentials: bool = False
    allowed_prefixes: tuple[bytes, ...] = (b"/v1/",)
    allowed_paths: frozenset[bytes] = API_PATHS
    denied_paths: frozenset[bytes] = frozenset((b"/v1/load_lora_adapter", b"/v1/unload_lora_adapter"))
    trusted_proxies: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()
    via: bytes = field(default_factory=lambda: b"rhizome-" + secrets.token_hex(4).encode())
    sweep_s: float = 0.25

    def allows(self, path: bytes) -> bool:
        """Whether backends get requests for a path, given without its query."""
        bare = path.rstrip(b"/")
        if bare in self.denied_paths:
            return False
        return path.startswith(self.allowed_prefixes) or bare in self.allowed_paths

    def trusts(self, peer: str) -> bool:
        """Whether X-Forwarded-* of this peer are believed."""
        if not self.trusted_proxies:
            return False
        address = ipaddress.ip_address(peer.partition("%")[0])
        return any(address in network for network in self.trusted_proxies)
