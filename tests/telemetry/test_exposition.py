"""Reading metrics, checked against the reader that comes with the writer."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from rhizome_telemetry.exposition import Sample, read_samples, total


def test_reads_wanted_samples_only() -> None:
    page = b'# TYPE a gauge\na 1\nb 2\na_total 3\nba 4\n# a 5\n a 6\na{x="1"} 7 1700000000\na\t8\n'
    found = read_samples(page, "a", "c")
    assert [sample.value for sample in found["a"]] == [1, 7, 8]
    assert found["c"] == []


def test_reads_the_first_and_an_unfinished_line() -> None:
    assert read_samples(b"a 1\na 2", "a")["a"] == [Sample(1.0, b""), Sample(2.0, b"")]


def test_names_may_begin_alike() -> None:
    found = read_samples(b'a:b_by_reason{r="x"} 1\na:b{} 2\na:b_c 3\n', "a:b", "a:b_c")
    assert [sample.value for sample in found["a:b"]] == [2]
    assert [sample.value for sample in found["a:b_c"]] == [3]


def test_labels_may_hold_anything() -> None:
    (sample,) = read_samples(b'a{x="}",y="\\\\\\"\\n {b=\\"1\\"} 9", z = "\xc3\xa4" ,} 5\n', "a")["a"]
    assert sample.value == 5
    assert sample.labels() == {"x": "}", "y": '\\"\n {b="1"} 9', "z": "ä"}


def test_reads_values_that_are_no_counts() -> None:
    values = [sample.value for sample in read_samples(b"a +Inf\na -Inf\na NaN\na 1.5e3\n", "a")["a"]]
    assert values[:2] == [math.inf, -math.inf]
    assert math.isnan(values[2])
    assert values[3] == 1500


def test_refuses_a_value_that_is_no_number() -> None:
    with pytest.raises(ValueError, match="could not convert"):
        read_samples(b"a many\n", "a")


def test_nothing_has_no_total() -> None:
    assert total([]) is None
    assert total([Sample(0.0, b"")]) == 0


@given(
    samples=st.lists(
        st.tuples(st.text(max_size=8), st.text('ab"\\\n{}= ,#', max_size=8), st.floats()), max_size=5,
        unique_by=lambda sample: sample[:2],
    )
)  # fmt: skip
def test_agrees_with_the_prometheus_client(samples: list[tuple[str, str, float]]) -> None:
    registry = CollectorRegistry()
    gauge = Gauge("vllm:a", 'help with "a" 1', ["first", "second"], registry=registry)
    histogram = Histogram("vllm:a_seconds", "help", ["first"], registry=registry)
    for first, second, value in samples:
        gauge.labels(first, second).set(value)
        histogram.labels(first).observe(1)
    page = generate_latest(registry)
    expected = {
        name: [
            (sample.labels, sample.value)
            for family in text_string_to_metric_families(page.decode())
            for sample in family.samples
            if sample.name == name
        ]
        for name in ("vllm:a", "vllm:a_seconds_count")
    }
    found = read_samples(page, *expected)
    assert {name: [(one.labels(), repr(one.value)) for one in found[name]] for name in expected} == {
        name: [(labels, repr(value)) for labels, value in expected[name]] for name in expected
    }
