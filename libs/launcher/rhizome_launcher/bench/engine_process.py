"""Runs `python -m rhizome_engine.evaluation` and reads its result: only that process loads torch."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import typer

from rhizome_launcher.bench.errors import BenchError

MODULE = "rhizome_engine.evaluation"


def evaluate(arguments: Sequence[str]) -> dict[str, Any]:
    """Run a measurement; its progress goes to this process' standard error, its result comes back.

    The child shares the terminal, so Ctrl-C reaches it as well: it answers with what it has so far.

    Raises:
        BenchError: the engine is not installed, or its process died.
        typer.Exit: the measurement failed; the engine has said why.
    """
    if importlib.util.find_spec("rhizome_engine") is None:
        raise BenchError(
            "this needs the engine: make setup, or pip install -e services/engine, in Rhizome's repository."
        )
    with subprocess.Popen([sys.executable, "-m", MODULE, *arguments], stdout=subprocess.PIPE) as process:
        output = _read_to_end(process)
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise BenchError(f"the engine's process was ended by {name}; SIGKILL often means too little memory.")
    if process.returncode:
        raise typer.Exit(1)
    try:
        result = json.loads(output.splitlines()[-1])
    except (ValueError, IndexError):
        raise BenchError("the engine's measurement said nothing that can be read.") from None
    assert isinstance(result, dict)
    return result


def _read_to_end(process: subprocess.Popen[bytes]) -> bytes:
    while True:
        try:
            return process.communicate()[0]
        except KeyboardInterrupt:  # the child got it too, and is about to end
            continue
