"""Who may talk to an engine core: the owner of the directory that its socket is in, nobody else.

Whoever can connect can read every prompt. A socket file's own permissions are not enough: ZeroMQ makes it
with whatever the umask allows, and binding a path that is in use succeeds silently and takes it over. Hence
the private directory and the lock.
"""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

_SCHEME = "ipc://"
_MAX_PATH_BYTES = 107
"""`sun_path` of Linux, less the final NUL."""


def check_endpoint(endpoint: str) -> Path:
    """Accept `ipc:///path` only.

    Returns:
        The path of the socket.

    Raises:
        ValueError: it is something else, or too long for a socket.
    """
    if not endpoint.startswith(_SCHEME):
        raise ValueError(
            f"endpoint {endpoint!r} is refused: frames are neither encrypted nor authenticated outside of a "
            "private directory, so this must be ipc:///path; between hosts there is gRPC, or CURVE over tcp"
        )
    path = Path(endpoint.removeprefix(_SCHEME))
    if not path.is_absolute():
        raise ValueError(f"endpoint {endpoint!r} needs an absolute path, as in ipc:///run/rhizome/core.sock")
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise ValueError(
            f"endpoint {endpoint!r} is longer than the {_MAX_PATH_BYTES} bytes a socket's path may have; "
            "choose a shorter directory"
        )
    return path


class IpcLock:
    """Owns the path of one socket while it is open.

    Opening it makes the directory (0700) if need be, takes the lock and removes a socket that a dead process
    left behind.

    Args:
        endpoint: `ipc:///path`.

    Raises:
        ValueError: see `check_endpoint`.
        PermissionError: others may enter the directory, or it is not ours.
        BlockingIOError: another process serves this endpoint.
        FileExistsError: something that is no socket is in the way.
    """

    def __init__(self, endpoint: str) -> None:
        self.path = check_endpoint(endpoint)
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(self.path.parent)
        self._lock = os.open(
            self.path.with_name(self.path.name + ".lock"),
            os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o600,
        )
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._remove_socket()
        except BlockingIOError as error:
            os.close(self._lock)
            raise BlockingIOError(
                f"another engine core serves {endpoint}; stop it or choose another endpoint"
            ) from error
        except BaseException:
            os.close(self._lock)
            raise

    def restrict(self) -> None:
        """After binding: let only the owner connect, whatever the umask was."""
        self.path.chmod(0o600)

    def release(self) -> None:
        """Remove the socket and let others have the path. The lock file stays: removing it would race."""
        self._remove_socket()
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _remove_socket(self) -> None:
        try:
            mode = self.path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise FileExistsError(f"{self.path} exists and is no socket; move it away or choose another path")
        self.path.unlink()


def _check_private(directory: Path) -> None:
    status = directory.stat()
    if status.st_uid != os.geteuid():
        raise PermissionError(
            f"{directory} belongs to user {status.st_uid}, not to us ({os.geteuid()}); choose a directory of "
            "our own for the engine's socket"
        )
    if status.st_mode & 0o077:
        raise PermissionError(
            f"{directory} has mode {stat.S_IMODE(status.st_mode):04o}, but whoever can enter it can read all "
            f"prompts; run: chmod 0700 {directory}"
        )
