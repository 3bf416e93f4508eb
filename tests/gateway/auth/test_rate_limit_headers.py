"""Headers as OpenAI's clients read them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhizome_gateway.auth.caller import Limits
from rhizome_gateway.auth.ledger import Account
from rhizome_gateway.auth.rate_limit_headers import duration, rate_limit_headers
from rhizome_gateway.auth.token_bucket import TokenBucket


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0001, "1ms"),
        (0.017, "17ms"),
        (1, "1s"),
        (8.64, "8.64s"),
        (59.9999, "1m0s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (90.951, "1m30.951s"),
        (3600, "1h0m0s"),
    ],
)
def test_durations_are_written_as_go_writes_them(seconds, text):
    assert duration(seconds) == text


@given(st.floats(0, 1e6))
def test_a_duration_is_never_shorter_than_the_wait(seconds):
    units = {"h": 3600, "m": 60, "s": 1, "ms": 0.001}
    parts = re.findall(r"([\d.]+)(h|ms|m|s)", duration(seconds))
    assert "".join(number + unit for number, unit in parts) == duration(seconds)
    read = sum(float(number) * units[unit] for number, unit in parts)
    assert seconds - 1e-6 <= read <= seconds + 0.00101


def test_only_limits_that_there_are_have_headers():
    account = Account(requests=TokenBucket(59.0, 0.0), tokens=TokenBucket(-3.0, 0.0))
    assert rate_limit_headers(account, Limits(requests_per_minute=60)) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
    }
    assert rate_limit_headers(account, Limits(tokens_per_minute=60)) == {
        "x-ratelimit-limit-tokens": "60",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "1m3s",
    }
    assert rate_limit_headers(account, Limits(max_concurrency=3)) == {}
