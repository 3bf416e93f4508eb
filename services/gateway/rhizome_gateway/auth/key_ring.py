"""The keys in force: found by what a client presents, and read again when their file changes."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from rhizome_gateway.auth.caller import Caller
from rhizome_gateway.auth.keys_file import Key, KeysFileError, read_keys

_log = logging.getLogger(__name__)

_CHECK_INTERVAL_S = 1.0
_SETTLING_S = 0.2
"""A file that was written so recently may still be written, and a second write might not change its times."""

_Signature = tuple[int, int, int, int]


class KeyRing:
    """The keys of a file, as it is now.

    The file is looked at with the first request after a second has passed. A change counts at once for new
    requests; those under way go on. A file that cannot be used any more changes nothing and is logged once.

    Args:
        path: the keys file. Renaming another one over it, links and all, is noticed.
        now: seconds since the epoch.

    Raises:
        KeysFileError: the file cannot be used.
    """

    def __init__(self, path: Path, *, now: Callable[[], float] = time.time) -> None:
        self._path = path
        self._now = now
        self._signature = _signature(path)
        self._keys = read_keys(path)
        self._next_check = 0.0
        _log.info("%d keys in %s", len(self._keys), path)

    def find(self, presented: bytes) -> Caller | None:
        """The owner of a key; None for an unknown, disabled or expired one.

        Every key is compared, whichever matches, so that the time says nothing about any of them.
        """
        now = self._now()
        if not self._next_check - _CHECK_INTERVAL_S <= now < self._next_check:  # clocks are set back, too
            self._next_check = now + _CHECK_INTERVAL_S
            self._refresh(now)
        digest = hashlib.sha256(presented).digest()
        found: Key | None = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found.caller if found is not None and found.usable(now) else None

    def _refresh(self, now: float) -> None:
        signature = _signature(self._path)
        if signature == self._signature:
            return
        if signature is not None and 0 <= now - signature[0] / 1e9 < _SETTLING_S:
            self._next_check = now + _SETTLING_S
            return
        self._signature = signature
        try:
            self._keys = read_keys(self._path)
        except KeysFileError as error:
            _log.error("the keys stay as they were: %s", error)
        else:
            _log.info("%d keys in %s, read again", len(self._keys), self._path)


def _signature(path: Path) -> _Signature | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - every second, in the event loop
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size)
