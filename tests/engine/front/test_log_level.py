"""The level of the log, changed by signals while an engine starts and runs."""

from __future__ import annotations

import signal
from pathlib import Path

from rhizome_testing.engine_process import EngineProcess


def test_a_core_that_loads_is_told_when_it_listens(checkpoint: Path, tmp_path: Path) -> None:
    """Before it listens for the signal it would die of it, so the front keeps it back."""
    with EngineProcess(checkpoint, tmp_path) as engine:
        engine.wait_for_line("core started as process")
        engine.signal(signal.SIGUSR1)
        engine.wait_for_line(r"INFO rhizome-engine the log level is DEBUG now")
        engine.wait_serving()
        engine.wait_for_line(r"INFO rhizome-engine-core the log level is DEBUG now")
        engine.signal(signal.SIGUSR2)
        engine.wait_for_line(r"INFO rhizome-engine-core the log level is INFO now")
        assert engine.output.count("core started as process") == 1
