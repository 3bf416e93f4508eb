"""From URLs to origins."""

from __future__ import annotations

import pytest

from rhizome_relay.origin import read_origin


@pytest.mark.parametrize(
    ("url", "host", "port", "base", "authority"),
    [
        ("http://10.0.0.1:8000", "10.0.0.1", 8000, b"", b"10.0.0.1:8000"),
        ("http://vllm", "vllm", 80, b"", b"vllm"),
        ("http://vllm:8000/", "vllm", 8000, b"", b"vllm:8000"),
        ("http://[::1]:8000", "::1", 8000, b"", b"[::1]:8000"),
        ("http://host:1/a/b/", "host", 1, b"/a/b", b"host:1"),
        ("http://host:1/v1", "host", 1, b"", b"host:1"),
        ("http://host:1/api/v1/", "host", 1, b"/api", b"host:1"),
    ],
)
def test_reads_a_url(url: str, host: str, port: int, base: bytes, authority: bytes) -> None:
    origin = read_origin(url)
    assert (origin.host, origin.port, origin.base, origin.authority, origin.tls) == (
        host, port, base, authority, None,
    )  # fmt: skip


def test_https_backends_share_connections() -> None:
    origin = read_origin("https://api.example")
    assert (origin.port, origin.authority) == (443, b"api.example")
    assert origin.tls is not None
    assert origin == read_origin("https://api.example:443/v1")
    assert origin != read_origin("http://api.example:443")


@pytest.mark.parametrize(
    "url",
    [
        "host:8000", "ftp://host", "http://", "http://:8000", "http://user:word@host", "http://host/?a=1",
        "http://host/#a", "http://host:70000", "http://host:0", "http://host:x", "http://[::1", "http://höst",
        "http://host/ä", "http://ho st", "http://host/\r\nx: y", "",
    ],
)  # fmt: skip
def test_refuses_what_is_none(url: str) -> None:
    with pytest.raises(ValueError, match="is no backend; write http"):
        read_origin(url)
