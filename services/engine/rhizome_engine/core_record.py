"""How a core and its front find each other: what lies beside the socket and how a front names itself."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import psutil

from rhizome_engine.core_pulse import pulse_path
from rhizome_engine.settings import CoreSettings, core_arguments
from rhizome_transport.ipc import IpcLock
from rhizome_transport.process_start import began_at, process_start

FRONT_PEER_NAME = "rhizome-engine-front"
"""How a supervising front introduces itself to its core; one that sees no front for long stops."""

PRIVATE_FOLDER_PREFIX = "rhizome-engine-"
"""How a front names the folder it makes for one core; the last of the two to leave removes it."""


@dataclass(frozen=True, slots=True)
class CoreRecord:
    """Who listens on a core endpoint.

    Attributes:
        pid: process id.
        started: when the process did, as `process_start` tells it; a reused pid is told apart.
        settings_sha256: hash of the settings it serves with.
        serving: whether it has loaded its model and listens.
    """

    pid: int
    started: float
    settings_sha256: str
    serving: bool = False

    @classmethod
    def of_this_process(cls, settings: CoreSettings) -> Self:
        """The record of this process, a core with these settings."""
        return cls(os.getpid(), process_start(os.getpid()), settings_sha256(settings))

    def write(self, endpoint: str) -> None:
        """Write it beside the socket, readable in whole or not at all."""
        path = record_path(endpoint)
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(asdict(self)))
        unfinished.replace(path)


def settings_sha256(settings: CoreSettings) -> str:
    """Hash of everything a core is told."""
    return hashlib.sha256("\0".join(core_arguments(settings)).encode()).hexdigest()


def record_path(endpoint: str) -> Path:
    """Where the record of the core on an ipc endpoint lies."""
    return Path(endpoint.removeprefix("ipc://") + ".json")


def remove_core_record(endpoint: str) -> None:
    """Remove the record of a core that ends, and the folder if a front made it only for this core."""
    path = record_path(endpoint)
    for left in (path, path.with_suffix(".tmp"), pulse_path(endpoint)):
        left.unlink(missing_ok=True)
    if path.parent.name.startswith(PRIVATE_FOLDER_PREFIX):
        shutil.rmtree(path.parent, ignore_errors=True)


def clear_endpoint(endpoint: str) -> None:
    """Remove what a core left that was killed; nothing where one runs."""
    if read_core_record(endpoint) is not None:
        return
    if record_path(endpoint).parent.exists():
        with contextlib.suppress(OSError, ValueError):  # somebody has the lock, or it is no folder of ours
            IpcLock(endpoint).release()
    remove_core_record(endpoint)


def read_core_record(endpoint: str) -> CoreRecord | None:
    """The record of the core that runs on an endpoint; None when there is none or that process ended."""
    try:
        record = CoreRecord(**json.loads(record_path(endpoint).read_text()))
        process = psutil.Process(record.pid)
        same_process = began_at(record.pid, record.started)
        return record if same_process and process.status() != psutil.STATUS_ZOMBIE else None
    except (OSError, ValueError, TypeError, psutil.Error):
        return None
