"""`rhizome logs`: what the services of a background stack wrote, in one stream."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from rhizome_launcher.background.state_dir import StateDir
from rhizome_launcher.log_file import LogReader, older
from rhizome_launcher.plan import StackError

_STAMP: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z?")
_POLL_S: Final = 0.2

Line = tuple[str, str]
"""Name of a service, and what it wrote."""


def log_names(folder: StateDir, wanted: str) -> list[str]:
    """The services with a log, or the one that is wanted.

    Raises:
        StackError: there is none by that name.
    """
    names = sorted(path.stem for path in folder.log_dir.glob("*.log"))
    if not wanted:
        return names
    if wanted not in names:
        known = ", ".join(names) or "none: nothing was started there"
        raise StackError(f"there is no log of {wanted!r} in {folder.log_dir}; there are {known}.")
    return [wanted]


def last_lines(folder: StateDir, names: Sequence[str], count: int) -> list[Line]:
    """The last lines of several logs together, in the order of their times."""
    found: list[tuple[str, str, str]] = []
    for name in names:
        stamp = ""
        for line in _lines_of(folder.log(name), count):
            match = _STAMP.search(line[:200])
            stamp = match[0] if match else stamp  # a traceback belongs to the line before it
            found.append((stamp, name, line))
    found.sort(key=lambda entry: entry[0])
    return [(name, line) for _, name, line in found[-count:]] if count else []


def follow(folder: StateDir, wanted: str, readers: dict[str, LogReader]) -> Iterator[Line]:
    """New lines of logs as they are written, for ever; `readers` say how far they were read."""
    while True:
        names = [wanted] if wanted else [path.stem for path in folder.log_dir.glob("*.log")]
        for name in names:
            reader = readers.setdefault(name, LogReader(folder.log(name)))
            for line in reader.lines():
                yield name, line
        time.sleep(_POLL_S)


def readers_at_end(folder: StateDir, names: Sequence[str]) -> dict[str, LogReader]:
    """Readers that have read everything that is there now."""
    return {
        name: LogReader(path, path.stat().st_size) for name in names if (path := folder.log(name)).exists()
    }


def _lines_of(path: Path, count: int) -> list[str]:
    """The last lines of a log and, where it was rotated just now, of the one before."""
    lines: list[str] = []
    for file in (path, older(path, 1)):
        if len(lines) < count and file.exists():
            lines = file.read_text(errors="replace").splitlines()[-(count - len(lines)) :] + lines
    return lines
