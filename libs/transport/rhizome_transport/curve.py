"""CURVE: who an engine core lets in over TCP, and which core a client believes.

A key file has one key a line, the first word says which kind it is:

    curve-secret KEY NAME        in a file of its own, for its owner only (0600)
    curve-public KEY NAME        may be given to anybody; files may be joined, as those of SSH

A core has a secret key and a file with the public keys of those who may connect; a client has a secret key
and the public key of the core. Both sides prove that they have their secret key, and what travels is
encrypted (Bernstein's CurveCP handshake, as ZeroMQ's RFC 26 has it).
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import zmq

_SECRET: Final = "curve-secret"  # noqa: S105 - a word of the file format
_PUBLIC: Final = "curve-public"
_KEY: Final = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
"""32 bytes in Z85, which has neither quotes nor spaces."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MOST_BYTES: Final = 1 << 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ClientCurve:
    """What a client needs to reach a core over TCP.

    Attributes:
        name: the client's own key's.
        public: the client's own key, Z85.
        secret: the other half of it, Z85.
        server: the core's public key, Z85.
    """

    name: str
    public: bytes
    secret: bytes = field(repr=False)
    server: bytes

    @classmethod
    def from_files(cls, key: Path | None, server: Path | None) -> Self | None:
        """Read what settings name; None where they name nothing, which leaves `ipc://` only.

        Raises:
            ValueError: a file is missing, holds something else, or may be read by others.
        """
        if key is None and server is None:
            return None
        if key is None or server is None:
            raise ValueError("CURVE needs a secret key of our own and the public key of the core; give both")
        name, secret = read_secret(key)
        believed = read_public(server)
        if len(believed) != 1:
            raise ValueError(f"{server} must hold one {_PUBLIC} line, the core's, not {len(believed)}")
        return cls(name, zmq.curve_public(secret), secret, next(iter(believed)))

    def apply(self, socket: zmq.Socket[Any]) -> None:
        """Before it connects."""
        socket.curve_serverkey = self.server
        socket.curve_publickey = self.public
        socket.curve_secretkey = self.secret


class ServerCurve:
    """A core's own key, and who may connect.

    The file with the public keys is read again when it changed, so that a key can be added or revoked while
    the core runs. One that cannot be read lets in whom the last good one did.

    Args:
        key: file with the core's secret key.
        clients: file with the public keys of those who may connect.

    Attributes:
        secret: the core's secret key, Z85.

    Raises:
        ValueError: a file is missing, holds something else, or may be read or written by others.
    """

    def __init__(self, key: Path, clients: Path) -> None:
        _, self.secret = read_secret(key)
        self._path = clients
        self._state = _state(clients)
        self._names: Mapping[bytes, str] = read_public(clients)

    @classmethod
    def from_files(cls, key: Path | None, clients: Path | None) -> Self | None:
        """Read what settings name; None where they name nothing.

        Raises:
            ValueError: as the class does, or only one of them is given.
        """
        if key is None and clients is None:
            return None
        if key is None or clients is None:
            raise ValueError("CURVE needs the core's secret key and the keys that may connect; give both")
        return cls(key, clients)

    def name_of(self, public: bytes) -> str | None:
        """Who has this key, Z85; None for somebody who may not connect."""
        state = _state(self._path)
        if state != self._state:
            self._state = state
            try:
                self._names = read_public(self._path)
            except ValueError as error:
                _log.warning("the keys that may connect stay as they were: %s", error)
            else:
                _log.info("%s lists %d keys that may connect", self._path, len(self._names))
        return self._names.get(public)


def read_secret(path: Path) -> tuple[str, bytes]:
    """Name and secret key in a file of one line.

    Raises:
        ValueError: it is missing, holds something else, or others may read it.
    """
    mode = stat.S_IMODE(_status(path).st_mode)
    if mode & 0o077:
        raise ValueError(
            f"{path} is for a secret key, but mode {mode:04o} lets others read it; chmod 0600 {path}"
        )
    keys = _parse(path, _SECRET)
    if len(keys) != 1:
        raise ValueError(f"{path} must hold one {_SECRET} line, not {len(keys)}")
    ((secret, name),) = keys.items()
    return name, secret


def read_public(path: Path) -> Mapping[bytes, str]:
    """Names by public key.

    Raises:
        ValueError: it is missing, holds something else or nothing, or others may write to it.
    """
    if _status(path).st_mode & 0o022:
        raise ValueError(f"{path} says who is believed, but others may write to it; chmod go-w {path}")
    keys = _parse(path, _PUBLIC)
    if not keys:
        raise ValueError(f"{path} holds no {_PUBLIC} line")
    return keys


def new_key(directory: Path, name: str) -> tuple[Path, Path]:
    """Make a key: `NAME.secret` for its owner and `NAME.public` for those who are to believe it.

    Raises:
        ValueError: that is no name for a file and a log.
        FileExistsError: there is such a key already.
        OSError: the files cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name; use up to 64 letters, digits, dots, dashes and underscores")
    public, secret = zmq.curve_keypair()
    files = directory / f"{name}.secret", directory / f"{name}.public"
    for path in files:
        if path.exists():
            raise FileExistsError(f"{path} exists; choose another name, or remove it first")
    for path, kind, key, mode in zip(
        files, (_SECRET, _PUBLIC), (secret, public), (0o600, 0o644), strict=True
    ):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(file, "w") as out:
            out.write(f"{kind} {key.decode()} {name}\n")
    return files


def _parse(path: Path, kind: str) -> dict[bytes, str]:
    try:
        text = path.read_bytes()[:_MOST_BYTES].decode()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text file with keys") from None
    keys: dict[bytes, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if (
            len(words) != 3
            or words[0] != kind
            or not _KEY.fullmatch(words[1])
            or not _NAME.fullmatch(words[2])
        ):
            # Whatever it is may be secret, so it is not shown.
            raise ValueError(
                f"{path}, line {number}: expected `{kind} KEY NAME`, as `rhizome keys curve` writes"
            )
        if keys.setdefault(words[1].encode(), words[2]) != words[2]:
            raise ValueError(f"{path}, line {number}: this key has another name above")
    return keys


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
