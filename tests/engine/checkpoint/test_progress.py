"""How a load tells how far it is: on a terminal, in a log, or not at all."""

from __future__ import annotations

import logging
import os
import pty
import subprocess
import sys

import pytest

from rhizome_engine.checkpoint.loader import load_checkpoint
from rhizome_engine.checkpoint.progress import LOG_INTERVAL_S, LoadProgress, log_lines, show_progress
from rhizome_engine.llm import LLM
from rhizome_engine.runner import ModelRunner
from rhizome_testing.checkpoints import write_llama_checkpoint

GIB = 2**30
ON_A_TERMINAL = """
from rhizome_engine.checkpoint.progress import show_progress
with show_progress(2**20, 3, shown=True) as load:
    load.advance(2**19)
    load.finish_tensor()
"""


def test_log_lines_come_now_and_then_with_bytes_percent_and_tensors(caplog):
    now = 0.0
    show = log_lines(clock=lambda: now)
    load = LoadProgress(4 * GIB, 8, show)
    with caplog.at_level(logging.INFO):
        for _ in range(30):
            now += LOG_INTERVAL_S / 10
            load.advance(GIB // 10 + 1)
        load.finish_tensor()
    assert [record.getMessage() for record in caplog.records] == [
        "loading weights: 25 %, 1.00 GiB of 4.00 GiB, 0 of 8 tensors",
        "loading weights: 50 %, 2.00 GiB of 4.00 GiB, 0 of 8 tensors",
        "loading weights: 75 %, 3.00 GiB of 4.00 GiB, 0 of 8 tensors",
    ]


def test_what_was_read_is_counted_to_the_last_byte(tmp_path, monkeypatch):
    seen: list[LoadProgress] = []
    directory = write_llama_checkpoint(tmp_path, num_shards=2)
    runner = ModelRunner(directory, device="cpu", num_pages=2)

    def watched(num_bytes: int, num_tensors: int, *, shown: bool):
        seen.append(LoadProgress(num_bytes, num_tensors, lambda _: None))
        return _Entered(seen[-1])

    monkeypatch.setattr("rhizome_engine.checkpoint.weights.show_progress", watched)
    load_checkpoint(directory).load_weights(runner.model.targets)
    (load,) = seen
    assert load.done_bytes == load.num_bytes > 400_000
    assert load.done_tensors == load.num_tensors == 20


class _Entered:
    def __init__(self, load: LoadProgress) -> None:
        self.load = load

    def __enter__(self) -> LoadProgress:
        return self.load

    def __exit__(self, *_: object) -> None:
        pass


def test_a_terminal_gets_a_bar():
    reader, writer = pty.openpty()
    done = subprocess.run([sys.executable, "-c", ON_A_TERMINAL], stderr=writer, timeout=60, check=True)
    os.close(writer)
    shown = os.read(reader, 65536).decode()
    os.close(reader)
    assert done.returncode == 0
    assert "loading weights" in shown
    assert "1 of 3 tensors" in shown
    assert "1.0 MiB" in shown


@pytest.mark.parametrize(("progress", "lines"), [(False, 0), (True, 1)])
def test_a_library_is_silent_unless_it_is_asked(tmp_path, caplog, capfd, progress, lines):
    with caplog.at_level(logging.INFO):
        LLM(write_llama_checkpoint(tmp_path), device="cpu", num_pages=4, progress=progress)
    told = [record for record in caplog.records if "of weights in" in record.getMessage()]
    assert len(told) == lines
    assert capfd.readouterr().err == ""


def test_without_being_shown_it_only_counts(capfd):
    with show_progress(10, 1, shown=False) as load:
        load.advance(10)
        load.finish_tensor()
    assert (load.done_bytes, load.done_tensors) == (10, 1)
    assert capfd.readouterr().err == ""
