import pytest

from rhizome_engine.scheduler.load import LoadMeter
from rhizome_engine.scheduler.request import Timings


def test_the_rate_covers_the_last_five_seconds():
    meter = LoadMeter(start=0.0)
    for tenth in range(200):
        meter.generated(10, tenth / 10)
    assert meter.tokens_per_second(20.0) == pytest.approx(100, rel=0.06)
    assert meter.tokens_per_second(22.5) == pytest.approx(50, rel=0.15)
    assert meter.tokens_per_second(30.0) == 0.0
    assert meter.totals.generated_tokens == 2000


def test_the_rate_is_right_from_the_start():
    meter = LoadMeter(start=100.0)
    meter.generated(50, 100.5)
    assert meter.tokens_per_second(101.0) == 50.0


def test_means_cover_the_last_hundred_requests():
    meter = LoadMeter(start=0.0)
    assert meter.mean_times() is None
    for _ in range(50):
        meter.ended("completed", Timings(100.0, 100.0, 100.0, 100.0))
    for _ in range(100):
        meter.ended("completed", Timings(1.0, 2.0, 3.0, 3.0))
    times = meter.mean_times()
    assert (times.queue_s, times.prefill_s, times.decode_s) == (1.0, 2.0, 3.0)
    assert meter.totals.completed == 150


def test_only_completed_requests_count_for_the_means_and_all_for_the_totals():
    meter = LoadMeter(start=0.0)
    for outcome in ("completed", "aborted", "expired", "failed", "failed"):
        meter.ended(outcome, Timings(1.0, 2.0, 4.0, 3.0))
    totals = meter.totals
    assert (totals.completed, totals.aborted, totals.expired, totals.failed) == (1, 1, 1, 2)
    assert (totals.queue_s, totals.prefill_s, totals.decode_s) == (5.0, 10.0, 20.0)
    meter.ended("aborted", Timings(1000.0, 1000.0, 1000.0, 1000.0))
    assert meter.mean_times().prefill_s == 2.0


def test_the_retry_hint_follows_how_long_requests_take_within_bounds():
    meter = LoadMeter(start=0.0)
    assert meter.retry_after_s(1000, 4) == 1.0
    meter.ended("completed", Timings(0.0, 1.0, 7.0, 1.0))
    assert meter.retry_after_s(100, 4) == 20.0  # ten of the hundred, four at once, 8 s each
    assert meter.retry_after_s(1, 4) == 0.5
    assert meter.retry_after_s(10**6, 4) == 30.0
