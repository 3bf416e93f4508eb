"""The private folder of one core's socket: made by its front, removed by the last of the two to leave.

Where both were killed at once nobody was left to do it; the next front that makes one does.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rhizome_engine.core_record import PRIVATE_FOLDER_PREFIX, read_core_record
from rhizome_engine.settings import EngineSettings

_log = logging.getLogger(__name__)

_SOCKET = "core.ipc"
_LOCK = "front.lock"
_FRESH_S = 60.0
"""A folder without a lock may be just being made."""


@contextlib.contextmanager
def core_endpoint(settings: EngineSettings) -> Iterator[str]:
    """The core's ipc endpoint: as configured, or in a private directory that is removed at the end."""
    if settings.core_endpoint:
        folder = Path(settings.core_endpoint.removeprefix("ipc://")).parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield settings.core_endpoint
        return
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    parent = Path(runtime if runtime and os.access(runtime, os.W_OK) else tempfile.gettempdir())
    remove_abandoned(parent)
    private = Path(tempfile.mkdtemp(prefix=PRIVATE_FOLDER_PREFIX, dir=parent))  # mode 0700
    try:
        with _locked(private / _LOCK):
            yield f"ipc://{private / _SOCKET}"
    finally:
        shutil.rmtree(private, ignore_errors=True)


def remove_abandoned(parent: Path) -> list[Path]:
    """Remove folders of ours whose front and core are both gone; returns them."""
    removed = []
    for folder in parent.glob(f"{PRIVATE_FOLDER_PREFIX}*"):
        with contextlib.suppress(OSError):  # somebody else's, or gone meanwhile
            if folder.stat().st_uid == os.geteuid() and _is_abandoned(folder):
                shutil.rmtree(folder)
                removed.append(folder)
    if removed:
        _log.info("removed what engines that were killed left behind: %s", ", ".join(map(str, removed)))
    return removed


def _is_abandoned(folder: Path) -> bool:
    if read_core_record(f"ipc://{folder / _SOCKET}") is not None:
        return False
    lock = folder / _LOCK
    if not lock.exists():
        return time.time() - folder.stat().st_mtime > _FRESH_S
    try:
        with _locked(lock):
            return True
    except BlockingIOError:
        return False


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file.

    Raises:
        BlockingIOError: another process does.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
