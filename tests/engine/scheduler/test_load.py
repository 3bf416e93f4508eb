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
        meter.completed(Timings(100.0, 100.0, 100.0, 100.0))
    for _ in range(100):
        meter.completed(Timings(1.0, 2.0, 3.0, 3.0))
    times = meter.mean_times()
    assert (times.queue_s, times.prefill_s, times.decode_s) == (1.0, 2.0, 3.0)
    assert meter.totals.completed == 150
