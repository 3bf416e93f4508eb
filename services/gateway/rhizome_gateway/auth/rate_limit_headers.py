"""`x-ratelimit-...` headers, with OpenAI's names and formats."""

from __future__ import annotations

import math

from rhizome_gateway.auth.caller import Limits
from rhizome_gateway.auth.ledger import Account
from rhizome_gateway.auth.token_bucket import TokenBucket


def rate_limit_headers(account: Account, limits: Limits) -> dict[str, str]:
    """Limit, what remains, and the time until all of it is back; for each limit per minute there is.

    The account's buckets must be filled up to now.
    """
    headers: dict[str, str] = {}
    if limits.requests_per_minute is not None:
        _add(headers, "requests", account.requests, limits.requests_per_minute)
    if limits.tokens_per_minute is not None:
        _add(headers, "tokens", account.tokens, limits.tokens_per_minute)
    return headers


def _add(headers: dict[str, str], of: str, bucket: TokenBucket, per_minute: int) -> None:
    headers[f"x-ratelimit-limit-{of}"] = str(per_minute)
    headers[f"x-ratelimit-remaining-{of}"] = str(bucket.remaining)
    headers[f"x-ratelimit-reset-{of}"] = duration(bucket.reset_s(per_minute))


def duration(seconds: float) -> str:
    """A duration as Go writes it and OpenAI sends it: `17ms`, `8.64s`, `6m0s`; rounded up to milliseconds."""
    milliseconds = math.ceil(round(seconds * 1000, 3))
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text
