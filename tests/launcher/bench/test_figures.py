"""Percentiles, rates and goodput, against numpy and against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhizome_launcher.bench.errors import BenchError
from rhizome_launcher.bench.figures import QUANTILES, Distribution, percentile, summarise
from rhizome_launcher.bench.records import RequestRecord
from rhizome_launcher.bench.slo import Slo

TIMES = st.lists(st.floats(0, 1e4), min_size=1, max_size=60)


def record(start: float, text_s: list[float], end: float, **values: object) -> RequestRecord:
    fields = {"output_tokens": len(text_s), "prompt_tokens": 10, "counted_by_server": True, **values}
    return RequestRecord(start, end, text_s, **fields)  # type: ignore[arg-type]


@given(TIMES, st.floats(0, 1))
def test_percentiles_are_numpys(values: list[float], quantile: float) -> None:
    expected = float(np.quantile(values, quantile))
    assert percentile(sorted(values), quantile) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(TIMES)
def test_a_distribution_is_in_milliseconds(values: list[float]) -> None:
    distribution = Distribution.of(values)
    assert distribution is not None
    assert distribution.count == len(values)
    assert distribution.mean == pytest.approx(1e3 * float(np.mean(values)), rel=1e-9, abs=1e-9)
    expected = 1e3 * np.quantile(values, list(QUANTILES.values()))
    assert list(distribution.percentiles.values()) == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-9)


def test_no_times_have_no_distribution() -> None:
    assert Distribution.of([]) is None
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_latencies_of_one_request() -> None:
    one = record(10.0, [10.5, 10.6, 10.9], 11.0, output_tokens=6)
    assert one.ttft_s == pytest.approx(0.5)
    assert one.gaps_s == pytest.approx([0.1, 0.3])
    assert one.e2e_s == pytest.approx(1.0)
    assert one.tpot_s == pytest.approx((1.0 - 0.5) / (6 - 1))


def test_an_answer_of_one_token_has_no_time_per_further_token() -> None:
    assert record(0.0, [1.0], 1.0, output_tokens=1).tpot_s is None
    assert record(0.0, [], 1.0, output_tokens=3).tpot_s is None


def test_rates_are_over_the_time_from_the_first_start_to_the_last_end() -> None:
    records = [
        record(100.0, [101.0, 102.0], 102.0, prompt_tokens=30, output_tokens=8, cached_tokens=4),
        record(101.0, [102.0], 104.0, prompt_tokens=50, output_tokens=12),
        RequestRecord(100.5, 103.0, error="http_500", detail="first"),
        RequestRecord(100.5, 103.0, error="http_500", detail="second"),
        RequestRecord(100.5, 103.0, error="timeout", detail="slow"),
    ]
    report = summarise(records, unfinished=2, client_cpu_s=1.0).to_json()
    assert report["duration_s"] == pytest.approx(4.0)
    assert report["requests_s"] == pytest.approx(2 / 4)
    assert report["output_tok_s"] == pytest.approx(20 / 4)
    assert report["total_tok_s"] == pytest.approx(100 / 4)
    assert report["client_cpu_share"] == pytest.approx(1 / 4)
    assert (report["requests"], report["succeeded"], report["failed"]) == (5, 2, 3)
    assert report["errors"] == {"http_500": 2, "timeout": 1}
    assert report["unfinished"] == 2
    assert report["cached_tokens"] == 4
    assert report["goodput_requests_s"] is None


def test_failed_requests_have_no_latencies() -> None:
    records = [record(0.0, [1.0], 2.0), record(0.0, [9.0], 9.0, error="truncated")]
    assert summarise(records).latencies["ttft"] == Distribution(1, 1e3, dict.fromkeys(QUANTILES, 1e3))


def test_nothing_measured_is_all_zero_and_none() -> None:
    report = summarise([]).to_json()
    assert report["requests"] == report["output_tok_s"] == report["duration_s"] == 0
    assert report["ttft_ms_p50"] is None and report["e2e_ms_mean"] is None


def test_goodput_counts_requests_within_every_bound() -> None:
    slo = Slo.parse("ttft:200ms, tpot=50ms,e2e:2s")
    records = [
        record(0.0, [0.2, 0.25], 0.25),  # exactly at two bounds
        record(0.0, [0.201, 0.25], 0.25),  # first token late
        record(0.0, [0.1, 0.2], 0.2),  # 100 ms per token
        record(0.0, [0.1], 2.01, output_tokens=100),  # end late
        record(0.0, [0.1], 0.1, output_tokens=1),  # a single token has no TPOT to miss
        record(0.0, [0.1, 0.11], 0.11, error="truncated"),
        record(3.0, [3.1, 3.11], 4.0, output_tokens=100),
    ]
    figures = summarise(records, slo=slo)
    assert figures.good == 3
    assert figures.to_json()["goodput_requests_s"] == pytest.approx(3 / 4.0)
    assert figures.to_json()["good_share"] == pytest.approx(3 / 7)


@pytest.mark.parametrize("text", ["", "ttft", "ttft:200", "p99:1s", "ttft:-1ms", "ttft:1ms;e2e:2s"])
def test_an_slo_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(BenchError, match="--slo does not understand"):
        Slo.parse(text)


def test_decode_of_a_wave_begins_when_every_stream_has_its_first_piece() -> None:
    wave = [
        record(0.0, [1.0, 2.0, 3.0, 4.0], 4.0, prompt_tokens=30),
        record(0.0, [2.5, 3.5, 4.5], 4.5, prompt_tokens=20, output_tokens=6),
    ]
    figures = summarise(wave, waves=[wave])
    assert figures.prefill_tok_s == pytest.approx(50 / 2.5)
    # From 2.5 to 4.5: two pieces of one token, and two pieces of two.
    assert figures.decode_tok_s == pytest.approx((2 * 1 + 2 * 2) / 2.0)


def test_a_wave_with_a_failure_or_of_single_tokens_has_no_decode_rate() -> None:
    failed = [record(0.0, [1.0, 2.0], 2.0), record(0.0, [1.0], 2.0, error="timeout")]
    single = [record(0.0, [1.0], 1.0), record(0.0, [3.0], 3.0)]
    figures = summarise([*failed, *single], waves=[failed, single])
    assert figures.decode_tok_s is None
    assert figures.prefill_tok_s == pytest.approx(20 / 3.0)


@given(st.lists(TIMES, min_size=1, max_size=5))
def test_every_gap_of_every_request_counts_once(gaps: list[list[float]]) -> None:
    records = []
    for row in gaps:
        text_s = [1.0, *(1.0 + math.fsum(row[: place + 1]) for place in range(len(row)))]
        records.append(record(0.0, text_s, text_s[-1]))
    itl = summarise(records).latencies["itl"]
    assert itl is not None
    assert itl.count == sum(map(len, gaps))
    assert itl.mean * itl.count == pytest.approx(1e3 * sum(map(sum, gaps)), rel=1e-6, abs=1e-6)
