"""What each key has used: in memory for one process, in `shared_ledger` for several."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from rhizome_gateway.auth.token_bucket import TokenBucket


def _full() -> TokenBucket:
    return TokenBucket(float("inf"), 0.0)


@dataclass(slots=True)
class Account:
    """What a key has used.

    Attributes:
        requests: what is left of requests per minute.
        tokens: what is left of tokens per minute.
        open_here: requests of this process that are open, where their number is limited.
        open_elsewhere: those of the other processes.
    """

    requests: TokenBucket = field(default_factory=_full)
    tokens: TokenBucket = field(default_factory=_full)
    open_here: int = 0
    open_elsewhere: int = 0


class Ledger(Protocol):
    """Lends out accounts; while one is lent, no other process reads or changes it."""

    def account(self, key: str) -> AbstractContextManager[Account]:
        """The account of a key, by its name; changes are kept when the block ends without an error."""
        ...

    def now(self) -> float:
        """Seconds of a clock that never goes back and that all processes share."""
        ...


class MemoryLedger:
    """Accounts of one process.

    Args:
        now: a clock that never goes back, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._accounts: dict[str, Account] = {}

    def account(self, key: str) -> AbstractContextManager[Account]:
        """See `Ledger`; there is one thread, so nothing is locked."""
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = Account()
        return nullcontext(account)

    def now(self) -> float:
        """See `Ledger`."""
        return self._now()
