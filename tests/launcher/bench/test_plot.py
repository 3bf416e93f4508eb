"""Plots are PNGs of what was measured; without matplotlib the command says what to install."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rhizome_launcher.bench.errors import BenchError
from rhizome_launcher.bench.figures import summarise
from rhizome_launcher.bench.plot import plot_engine, plot_serve, require_matplotlib
from rhizome_launcher.bench.records import RequestRecord
from rhizome_launcher.bench.serve_bench import Level, LevelResult, ServeBenchResult

PNG = b"\x89PNG\r\n\x1a\n"


def result(*levels: Level) -> ServeBenchResult:
    records = [
        RequestRecord(start, start + 1, [start + 0.2, start + 0.5, start + 1], output_tokens=3)
        for start in (0.0, 0.1, 0.4)
    ]
    return ServeBenchResult("puppet", [LevelResult(level, summarise(records), records) for level in levels])


@pytest.mark.parametrize("levels", [[Level(concurrency=1), Level(concurrency=8)], [Level(rate=2.5)]])
def test_a_serve_plot_is_a_picture(tmp_path: Path, levels: list[Level]) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "plot.png"
    plot_serve(result(*levels), "a [title] with $signs", path)
    assert path.read_bytes().startswith(PNG)
    assert path.stat().st_size > 10_000


def test_an_engine_plot_is_a_picture_even_without_a_decode_rate(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "plot.png"
    runs = [{"streams": 1, "decode_tok_s": 30.5, "prefill_tok_s": 900.0}]
    plot_engine([*runs, {"streams": 8, "decode_tok_s": None, "prefill_tok_s": 1200.0}], "engine", path)
    assert path.read_bytes().startswith(PNG)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(BenchError, match="cannot be written"):
        plot_serve(result(Level(concurrency=1)), "title", tmp_path / "nowhere" / "plot.png")


def test_nothing_measured_is_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="nothing to draw"):
        plot_serve(ServeBenchResult("puppet"), "title", tmp_path / "plot.png")


def test_without_matplotlib_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(BenchError, match=r"pip install 'rhizome-launcher\[plot\]'"):
        require_matplotlib()
