"""TLS between services: who is believed, and who one is.

Plaintext is for loopback and for networks that are trusted as a whole. With TLS a client checks the server;
with mutual TLS the server takes only clients whose certificates come from its own authority.
"""

from __future__ import annotations

import ssl
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    import grpc

ALPN: Final = "h2"
"""What gRPC speaks inside TLS."""


@dataclass(frozen=True, slots=True)
class ClientTls:
    """How a client speaks TLS.

    Attributes:
        ca: PEM certificates of the authorities that servers are believed from.
        cert: PEM chain of the client's own certificate, for servers that ask for one.
        key: its private key, PEM.
        server_name: the name that the server's certificate must hold; the target's own where empty.
    """

    ca: bytes
    cert: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    server_name: str = ""

    @classmethod
    def from_files(
        cls, ca: Path | None, cert: Path | None = None, key: Path | None = None, server_name: str = ""
    ) -> Self | None:
        """Read what settings name; None where they name nothing, which means plaintext.

        Raises:
            ValueError: a file is missing or no PEM, or something that belongs together is not.
        """
        if ca is None:
            if cert or key or server_name:
                raise ValueError("TLS needs the certificate of the authority that servers are believed from")
            return None
        _check_authority(ca)
        own, own_key = _read_pair(cert, key)
        return cls(_read(ca), own, own_key, server_name)

    def credentials(self) -> grpc.ChannelCredentials:
        """As gRPC wants them."""
        import grpc  # not above: settings are read before gRPC may be loaded

        return grpc.ssl_channel_credentials(self.ca, self.key, self.cert)

    def context(self) -> ssl.SSLContext:
        """The same for who connects without gRPC, which also believes an authority that is not a root."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(cadata=self.ca.decode("ascii", "ignore"))
        context.set_alpn_protocols([ALPN])
        if self.cert is not None and self.key is not None:
            with tempfile.NamedTemporaryFile() as pair:  # readable by nobody else; ssl reads files only
                pair.write(self.cert + b"\n" + self.key)
                pair.flush()
                context.load_cert_chain(pair.name, password=lambda: "")
        return context

    def options(self) -> tuple[tuple[str, str], ...]:
        """Options of a channel."""
        return (("grpc.ssl_target_name_override", self.server_name),) if self.server_name else ()


@dataclass(frozen=True, slots=True)
class ServerTls:
    """How a server speaks TLS.

    Attributes:
        cert: PEM chain of the server's certificate.
        key: its private key, PEM.
        client_ca: PEM certificates of the authorities that clients must have theirs from; any client may come
            where absent.
    """

    cert: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None = None

    @classmethod
    def from_files(cls, cert: Path | None, key: Path | None, client_ca: Path | None = None) -> Self | None:
        """Read what settings name; None where they name nothing, which means plaintext.

        Raises:
            ValueError: a file is missing or no PEM, or something that belongs together is not.
        """
        own, own_key = _read_pair(cert, key)
        if own is None or own_key is None:
            if client_ca is not None:
                raise ValueError("clients can only be checked over TLS; give a certificate and its key, too")
            return None
        if client_ca is None:
            return cls(own, own_key)
        _check_authority(client_ca)
        return cls(own, own_key, _read(client_ca))

    def credentials(self) -> grpc.ServerCredentials:
        """As gRPC wants them."""
        import grpc

        return grpc.ssl_server_credentials(
            [(self.key, self.cert)], self.client_ca, require_client_auth=self.client_ca is not None
        )


def _read_pair(cert: Path | None, key: Path | None) -> tuple[bytes | None, bytes | None]:
    if cert is None and key is None:
        return None, None
    if cert is None or key is None:
        raise ValueError("a certificate and its private key come together; give both")
    pair = _read(cert), _read(key)
    try:
        # gRPC would only say at the first connection that it cannot use them.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: "")
    except ssl.SSLError as error:
        raise ValueError(
            f"{cert} and {key} are not a certificate and its private key, both PEM and without a password: "
            f"{error.reason or error}"
        ) from None
    return pair


def _check_authority(ca: Path) -> None:
    _read(ca)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca)
    except ssl.SSLError as error:
        raise ValueError(f"{ca} holds no PEM certificates: {error.reason or error}") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
