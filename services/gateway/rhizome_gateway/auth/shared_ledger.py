"""Accounts that several worker processes share: records in a mapped file, locked one by one.

    +--------+--------+--------+----- record 0, for one key ------+---- record 1 ...
    | byte 0 | byte 1 | ...    | digest | 2 buckets | open[0..63] |
    +--------+--------+--------+----------------------------------+----
      each worker holds a lock     `open[w]`: requests of worker w
      on its byte while it lives

A worker that dies loses its locks, whatever it died of, so others can lock its byte. They take what it had
open as closed, and the next worker to start may have its byte. The locks are the operating system's (POSIX
record locks), so nothing waits for a dead process.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from rhizome_gateway.auth.ledger import Account
from rhizome_gateway.auth.token_bucket import TokenBucket

MAX_WORKERS = 64
MAX_ACCOUNTS = 16384
"""Four times as many as a keys file may have, since keys that were renamed or removed stay."""

_RECORD = struct.Struct(f"=32s4d{MAX_WORKERS}H")
_FILE_BYTES = MAX_WORKERS + MAX_ACCOUNTS * _RECORD.size
_NO_DIGEST = bytes(32)


class SharedLedger:
    """Accounts in a file that all workers map; the clock is the system's monotonic one.

    A process opens a given file once, and not before it forks: locks belong to processes, and closing the
    file anywhere in a process releases them all.

    Args:
        path: the file, made by `create_ledger`.

    Raises:
        OSError: the file is missing or not a ledger, or all places for workers are taken.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(self._file).st_size != _FILE_BYTES:
                raise OSError(f"{path} is no ledger of this version; make one with create_ledger")
            self._records = mmap.mmap(self._file, _FILE_BYTES)
            self._worker = self._take_place()
        except OSError:
            os.close(self._file)
            raise
        self._offsets: dict[str, int] = {}

    def now(self) -> float:
        """See `ledger.Ledger`."""
        return time.monotonic()

    @contextlib.contextmanager
    def account(self, key: str) -> Iterator[Account]:
        """See `ledger.Ledger`.

        Raises:
            OSError: there are more keys than the file has records for.
        """
        offset = self._offsets.get(key) or self._find(key)
        with self._locked(offset):
            digest, requests, requests_at, tokens, tokens_at, *counts = _RECORD.unpack_from(
                self._records, offset
            )
            for worker, count in enumerate(counts):
                if count and worker != self._worker and self._is_gone(worker):
                    counts[worker] = 0
            here = counts[self._worker]
            account = Account(
                TokenBucket(requests, requests_at),
                TokenBucket(tokens, tokens_at),
                open_here=here,
                open_elsewhere=sum(counts) - here,
            )
            yield account
            counts[self._worker] = account.open_here
            used = (account.requests.level, account.requests.at, account.tokens.level, account.tokens.at)
            _RECORD.pack_into(self._records, offset, digest, *used, *counts)

    def close(self) -> None:
        """Give up this process's place, with all that it has open."""
        self._records.close()
        os.close(self._file)

    def _take_place(self) -> int:
        for worker in range(MAX_WORKERS):
            if self._try_lock(worker):
                for offset in range(MAX_WORKERS, _FILE_BYTES, _RECORD.size):
                    place = offset + _RECORD.size - 2 * (MAX_WORKERS - worker)
                    if self._records[place : place + 2] != b"\0\0":
                        with self._locked(offset):
                            self._records[place : place + 2] = b"\0\0"
                return worker
        raise OSError(f"at most {MAX_WORKERS} workers share a ledger")

    def _is_gone(self, worker: int) -> bool:
        if not self._try_lock(worker):
            return False
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, worker)
        return True

    def _try_lock(self, worker: int) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, worker)
        except (BlockingIOError, PermissionError):  # either, says POSIX
            return False
        return True

    def _find(self, key: str) -> int:
        """The offset of a key's record; the first free one where it has none yet."""
        digest = hashlib.sha256(key.encode()).digest()
        first = int.from_bytes(digest[:8], "big") % MAX_ACCOUNTS
        for step in range(MAX_ACCOUNTS):
            offset = MAX_WORKERS + (first + step) % MAX_ACCOUNTS * _RECORD.size
            with self._locked(offset):
                found = self._records[offset : offset + 32]
                if found == _NO_DIGEST:
                    full = (float("inf"), 0.0)
                    _RECORD.pack_into(self._records, offset, digest, *full, *full, *([0] * MAX_WORKERS))
                    found = digest
            if found == digest:
                self._offsets[key] = offset
                return offset
        raise OSError(f"more than {MAX_ACCOUNTS} keys were used since the start; restart the gateway")

    @contextlib.contextmanager
    def _locked(self, offset: int) -> Iterator[None]:
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, offset)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, offset)


def create_ledger(path: Path) -> None:
    """Make an empty file for `SharedLedger`, for this user only; who makes it removes it.

    A new one for each start: its times are those of the system's monotonic clock.

    Raises:
        OSError: the file exists, cannot be made, or there is no space for it.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(file, _FILE_BYTES)
        if hasattr(os, "posix_fallocate"):  # writing into a hole of a full disk would kill a worker by SIGBUS
            os.posix_fallocate(file, 0, _FILE_BYTES)
    finally:
        os.close(file)
