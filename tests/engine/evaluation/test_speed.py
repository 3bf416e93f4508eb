"""Rates of streams that start together, by hand and on a real checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from rhizome_engine.evaluation.speed import Wave, level_figures, measure_speed
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint


def test_decode_begins_when_every_stream_has_its_first_token() -> None:
    wave = Wave(50, [[1.0, 2.0, 3.0, 4.0], [2.5, 3.5, 4.5], [2.0, 3.0, 5.0, 6.0]])
    assert wave.prefill_tok_s == 50 / 2.5
    # After 2.5, the last first token: two, two and three tokens until 6.0.
    assert wave.decode_tok_s == 7 / 3.5
    # Until 4.0, the first end: 3.0, 4.0, 3.5 and 3.0.
    assert wave.full_decode_tok_s == 4 / 1.5
    assert wave.output_tok_s == 11 / 6.0
    assert wave.ttft_s == pytest.approx((1.0 + 2.5 + 2.0) / 3)


def test_one_stream_decodes_from_its_first_token_to_its_last() -> None:
    wave = Wave(10, [[1.0, 1.5, 2.0, 3.0]])
    assert wave.decode_tok_s == wave.full_decode_tok_s == 3 / 2.0


def test_streams_that_never_decode_together_have_no_full_rate() -> None:
    wave = Wave(10, [[1.0, 2.0], [2.0, 3.0]])
    assert (wave.decode_tok_s, wave.full_decode_tok_s) == (1.0, None)
    assert Wave(10, [[1.0]]).decode_tok_s is None


def test_a_level_reports_medians_and_the_spread() -> None:
    waves = [Wave(10, [[1.0, 1.0 + step]] * 2) for step in (0.5, 0.1, 0.2)]
    figures = level_figures(waves)
    assert figures["streams"] == 2
    assert figures["decode_tok_s"] == pytest.approx(2 / 0.2)
    assert figures["decode_tok_s_min"] == pytest.approx(2 / 0.5)
    assert figures["decode_tok_s_max"] == pytest.approx(2 / 0.1)
    assert figures["full_decode_tok_s"] == figures["decode_tok_s"]
    assert figures["step_ms"] == pytest.approx(200)
    assert figures["e2e_ms"] == pytest.approx(1200)


def test_measures_a_checkpoint_with_more_streams_than_a_batch_has_by_default(tmp_path: Path) -> None:
    model = write_llama_checkpoint(tmp_path / "model", LlamaShape())
    told: list[str] = []
    reports = list(
        measure_speed(
            str(model),
            {"num_pages": 400, "num_threads": 1},
            streams=[1, 40],
            input_tokens=20,
            output_tokens=30,
            repeat=2,
            progress=told.append,
        )
    )
    assert [len(report["levels"]) for report in [reports[-1]]] == [2]
    report = reports[-1]
    assert report["kv_tokens"] == 400 * 16
    assert report["rss_peak_bytes"] >= report["rss_loaded_bytes"] > 0
    assert report["load_s"] > 0
    for level, streams in zip(report["levels"], (1, 40), strict=True):
        assert level["streams"] == streams
        assert level["decode_tok_s_min"] <= level["decode_tok_s"] <= level["decode_tok_s_max"]
        assert 0 < level["ttft_ms"] < level["e2e_ms"]
        # The whole wave, its prompts included, cannot be faster than decoding alone, to which the first of
        # the thirty tokens does not count.
        assert level["output_tok_s"] < level["decode_tok_s_max"] * 30 / 29
    assert "40 streams: run 2 of 2" in told
