"""Admission: a request enters within its key's limits and the gateway's, or is told when to come back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import Self

from rhizome_gateway.auth.caller import Caller, Limits
from rhizome_gateway.auth.ledger import Account, Ledger
from rhizome_gateway.auth.rate_limit_headers import rate_limit_headers
from rhizome_gateway.errors import ApiError

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_FULL_RETRY_S = 1.0
_MINUTE_S = 60.0


class Guard:
    """Admits requests.

    Args:
        ledger: what the keys have used.
        max_open_requests: most requests that are open in this process; more would only wait and take memory.

    Attributes:
        open_requests: requests that were admitted and not yet released.
    """

    def __init__(self, ledger: Ledger, *, max_open_requests: int) -> None:
        self._ledger = ledger
        self._max_open_requests = max_open_requests
        self.open_requests = 0

    def enter(self, caller: Caller) -> Permit:
        """Admit a request before anything about it is known, so that refusing costs nothing.

        Raises:
            ApiError: 503 when the gateway is full, 429 when the key's requests or open requests are used up.
                A refused request is not counted.
        """
        if self.open_requests >= self._max_open_requests:
            raise ApiError(
                503,
                "The server has as many open requests as it takes. Try again in a moment.",
                kind="server_error",
                code="overloaded",
                headers={"Retry-After": "1"},
            )
        limits = caller.limits
        if limits is None:
            self.open_requests += 1
            return Permit(self, caller.name, None, _NO_HEADERS)
        with self._ledger.account(caller.name) as account:
            _fill(account, limits, self._ledger.now())
            _take_request(account, limits)
            headers = rate_limit_headers(account, limits)
        self.open_requests += 1
        return Permit(self, caller.name, limits, headers)

    def admit(self, caller: Caller, *, prompt_tokens: int = 0, max_tokens: int = 0) -> Permit:
        """`enter` and `Permit.reserve` in one.

        Raises:
            ApiError: as both do; nothing is counted then.
        """
        permit = self.enter(caller)
        try:
            permit.reserve(prompt_tokens, max_tokens)
        except ApiError:
            permit.release()
            raise
        return permit

    def reserve(
        self, key: str, limits: Limits, prompt_tokens: int, max_tokens: int
    ) -> tuple[int, dict[str, str]]:
        """Used by `Permit`: take tokens, and say how many, with the headers."""
        per_minute = limits.tokens_per_minute
        with self._ledger.account(key) as account:
            _fill(account, limits, self._ledger.now())
            if per_minute is None:
                return 0, rate_limit_headers(account, limits)
            # An answer longer than the whole budget may begin on a full one, and is paid off afterwards.
            wanted = min(prompt_tokens + max_tokens, per_minute)
            wait_s = account.tokens.wait_s(wanted, per_minute)
            too_long = prompt_tokens > per_minute
            if not (too_long or wait_s):
                account.tokens.level -= wanted
            elif limits.requests_per_minute is not None:
                account.requests.level = min(account.requests.level + 1.0, limits.requests_per_minute)
            headers = rate_limit_headers(account, limits)
        if too_long:
            raise _refusal(
                f"The prompt alone is longer than the {per_minute} tokens per minute of this key; send a "
                "shorter one. Waiting does not help.",
                _MINUTE_S,
                headers | {"x-should-retry": "false"},
            )
        if wait_s:
            raise _refusal(
                f"This key may use {per_minute} tokens per minute, prompt and max_tokens counted together.",
                wait_s,
                headers,
            )
        return wanted, headers

    def give_back(self, key: str, limits: Limits, tokens: int) -> None:
        """Used by `Permit`: return tokens that were not used; a negative number charges more."""
        per_minute = limits.tokens_per_minute
        if per_minute is None:
            return
        with self._ledger.account(key) as account:
            account.tokens.fill(per_minute, self._ledger.now())
            account.tokens.level = min(account.tokens.level + tokens, float(per_minute))

    def leave(self, key: str, limits: Limits | None) -> None:
        """Used by `Permit`: one request less is open."""
        self.open_requests -= 1
        if limits is not None and limits.max_concurrency is not None:
            with self._ledger.account(key) as account:
                account.open_here = max(0, account.open_here - 1)


class Permit:
    """An admitted request. A context manager that releases.

    Attributes:
        headers: `x-ratelimit-...`, for the response; empty where the key has no limits.
    """

    __slots__ = ("_charged", "_guard", "_key", "_limits", "_released", "headers")

    def __init__(self, guard: Guard, key: str, limits: Limits | None, headers: Mapping[str, str]) -> None:
        self.headers = headers
        self._guard = guard
        self._key = key
        self._limits = limits
        self._charged = 0
        self._released = False

    def reserve(self, prompt_tokens: int, max_tokens: int) -> None:
        """Set tokens aside, once, as soon as the prompt's length is known.

        Args:
            prompt_tokens: tokens of the prompt, or of all prompts.
            max_tokens: most tokens of all answers together; an estimate will do, `settle` corrects it.

        Raises:
            ApiError: 429; the request is not counted, but stays open until `release`.
        """
        if self._limits is not None:
            self._charged, self.headers = self._guard.reserve(
                self._key, self._limits, prompt_tokens, max_tokens
            )

    def settle(self, tokens: int) -> None:
        """Charge what was used instead of what was reserved; the last call counts.

        Without it the reservation stays charged, so that going away early is never cheaper than staying.
        """
        if self._limits is not None:
            used = max(0, tokens)
            self._guard.give_back(self._key, self._limits, self._charged - used)
            self._charged = used

    def release(self) -> None:
        """Close the request; any further call does nothing."""
        if not self._released:
            self._released = True
            self._guard.leave(self._key, self._limits)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _fill(account: Account, limits: Limits, now: float) -> None:
    if limits.requests_per_minute is not None:
        account.requests.fill(limits.requests_per_minute, now)
    if limits.tokens_per_minute is not None:
        account.tokens.fill(limits.tokens_per_minute, now)


def _take_request(account: Account, limits: Limits) -> None:
    per_minute, most = limits.requests_per_minute, limits.max_concurrency
    if most is not None and account.open_here + account.open_elsewhere >= most:
        raise _refusal(
            f"This key may have {most} open requests at a time.",
            _FULL_RETRY_S,
            rate_limit_headers(account, limits),
        )
    if per_minute is not None:
        if wait_s := account.requests.wait_s(1.0, per_minute):
            raise _refusal(
                f"This key may send {per_minute} requests per minute.",
                wait_s,
                rate_limit_headers(account, limits),
            )
        account.requests.level -= 1.0
    if most is not None:
        account.open_here += 1


def _refusal(message: str, wait_s: float, headers: Mapping[str, str]) -> ApiError:
    retry_after = str(max(1, math.ceil(wait_s)))
    return ApiError(
        429,
        message,
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        headers={**headers, "Retry-After": retry_after},
    )
