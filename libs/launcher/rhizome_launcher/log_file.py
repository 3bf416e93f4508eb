"""A service's log: read while it grows, and kept small.

The service itself appends to the file, so that it can write on when nobody reads, and its launcher may die.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

TAIL_BYTES = 4000


class LogReader:
    """Takes the lines that were added to a log since the last time.

    Where the log was rotated in between, the lines that went into the older file come first.

    Args:
        path: the log; it may not exist yet.
        offset: where to begin, in bytes.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._path = path
        self._offset = offset
        self._rest = b""

    def lines(self) -> list[str]:
        """All complete lines that are new."""
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return []
        data = b""
        if size < self._offset:
            data, self._offset = _read_from(older(self._path, 1), self._offset), 0
        new = _read_from(self._path, self._offset)
        self._offset += len(new)
        *complete, self._rest = (self._rest + data + new).split(b"\n")
        return [line.decode(errors="replace").rstrip("\r") for line in complete]

    def remainder(self) -> list[str]:
        """What is new, with a last line that nobody will complete."""
        found = self.lines()
        rest, self._rest = self._rest, b""
        return [*found, rest.decode(errors="replace")] if rest else found


def older(path: Path, number: int) -> Path:
    """The log before the last `number` rotations: `engine.log.1` is younger than `engine.log.2`."""
    return path.with_name(f"{path.name}.{number}")


def tail(path: Path, max_bytes: int = TAIL_BYTES) -> str:
    """The end of a log, for an error message."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - max_bytes))
            text = log.read().decode(errors="replace").strip()
    except FileNotFoundError:
        text = ""
    return text or "(no output)"


def rotate(path: Path, max_bytes: int, kept: int) -> bool:
    """Move what a log holds to `NAME.1` once it has more than `max_bytes`; whether that happened.

    The file itself stays, because its writer has it open and goes on at its end; so a line that is written
    between the last read and the cut would be lost. That is a matter of microseconds.

    Raises:
        OSError: the disk is full, or the folder is gone; the log is as it was.
    """
    try:
        if path.stat().st_size <= max_bytes:
            return False
    except FileNotFoundError:
        return False
    for number in range(kept - 1, 0, -1):
        if older(path, number).exists():
            older(path, number).replace(older(path, number + 1))
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with path.open("r+b") as log, unfinished.open("wb") as copy:
            shutil.copyfileobj(log, copy, 1 << 20)
            copy.write(log.read())
            copy.flush()
            os.truncate(log.fileno(), 0)
        unfinished.replace(older(path, 1))
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    return True


def _read_from(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as log:
            log.seek(offset)
            return log.read()
    except FileNotFoundError:
        return b""
