"""Certificate authorities of one test, made on the spot by the `openssl` command."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from rhizome_transport.tls import ClientTls, ServerTls

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@dataclass(frozen=True)
class Certificate:
    """A certificate and its private key, PEM files."""

    cert: Path
    key: Path


class Authority:
    """Issues certificates.

    Args:
        folder: where files go.
        name: told apart by it.

    Attributes:
        ca: its own certificate, a PEM file.
    """

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self._name = name
        self.ca = folder / f"{name}.pem"
        self._key = folder / f"{name}.key"
        _request(self.ca, self._key, name)

    def issue(self, name: str, subject_alternative_name: str = "IP:127.0.0.1,DNS:localhost") -> Certificate:
        """Make a certificate for a server or a client."""
        stem = self._folder / f"{self._name}-{name}"
        issued = Certificate(stem.with_suffix(".pem"), stem.with_suffix(".key"))
        signed = ("-CA", str(self.ca), "-CAkey", str(self._key))
        extensions = ("-addext", f"subjectAltName={subject_alternative_name}")
        basic = ("-addext", "basicConstraints=critical,CA:FALSE")
        _request(issued.cert, issued.key, name, *signed, *extensions, *basic)
        return issued


def server_tls(authority: Authority, client_ca: Path | None = None, **names: str) -> ServerTls:
    """Settings of a server with a certificate of `authority`; see `Authority.issue` for names."""
    issued = authority.issue("server", **names)
    tls = ServerTls.from_files(issued.cert, issued.key, client_ca)
    assert tls is not None
    return tls


def client_tls(authority: Authority, own: Authority | None = None, name: str = "") -> ClientTls:
    """Settings of a client that believes `authority`, with a certificate of `own` if that is given."""
    issued = own.issue("client", "DNS:client") if own else None
    cert, key = (issued.cert, issued.key) if issued else (None, None)
    tls = ClientTls.from_files(authority.ca, cert, key, name)
    assert tls is not None
    return tls


def _request(cert: Path, key: Path, name: str, *options: str) -> None:
    command = ["openssl", "req", "-x509", *_NEW_KEY, "-days", "2", "-subj", f"/CN={name}"]
    command += ["-out", str(cert), "-keyout", str(key), *options]
    subprocess.run(command, check=True, capture_output=True)
