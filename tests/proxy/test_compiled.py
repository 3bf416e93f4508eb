"""The modules that are compiled: all of them are there, and `make test-native` really runs them."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "compile_proxy.py"


def listed(name: str) -> tuple[str, ...]:
    """What the script compiles, as it says itself, as names to import."""
    program = "import runpy, sys; print(*runpy.run_path(sys.argv[1])[sys.argv[2]])"
    command = [sys.executable, "-c", program, SCRIPT, name]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    return tuple(one.rpartition(".")[0].replace("/", ".") for one in told.stdout.split())


def test_each_module_is_there_and_runs() -> None:
    modules = listed("MODULES")
    assert len(set(modules)) == len(modules) > 30
    for module in modules:
        importlib.import_module(module)


@pytest.mark.skipif(os.environ.get("RHIZOME_NATIVE") != "1", reason="make test-native runs it")
def test_each_module_is_a_compiled_one() -> None:
    in_c = listed("HAND_WRITTEN")
    assert in_c
    for module in (*listed("MODULES"), *in_c):
        assert str(importlib.import_module(module).__file__).endswith(".so"), module


@pytest.mark.skipif(os.environ.get("RHIZOME_NATIVE") == "1", reason="make test runs it")
def test_without_being_asked_for_nothing_is_compiled() -> None:
    for module in listed("MODULES"):
        assert str(importlib.import_module(module).__file__).endswith(".py"), module
    for module in listed("HAND_WRITTEN"):
        assert importlib.util.find_spec(module) is None, module
