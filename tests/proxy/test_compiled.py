"""The modules that are compiled: all of them are there, and `make test-native` really runs them."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rhizome_testing.compiled_modules import interpreted

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "services" / "proxy" / "compile.py"


def listed() -> tuple[str, ...]:
    """What the script compiles, as it says itself."""
    program = "import runpy, sys; print(*runpy.run_path(sys.argv[1])['MODULES'])"
    told = subprocess.run([sys.executable, "-c", program, SCRIPT], check=True, capture_output=True, text=True)
    return tuple(told.stdout.split())


def test_each_module_is_there_and_runs() -> None:
    modules = listed()
    assert len(set(modules)) == len(modules) > 30
    for module in modules:
        importlib.import_module(module.removesuffix(".py").replace("/", "."))


@pytest.mark.skipif(os.environ.get("RHIZOME_NATIVE") != "1", reason="make test-native runs it")
def test_each_module_is_a_compiled_one() -> None:
    for module in listed():
        found = importlib.import_module(module.removesuffix(".py").replace("/", "."))
        assert str(found.__file__).endswith(".so"), module


@interpreted
def test_without_being_asked_for_nothing_is_compiled() -> None:
    for module in listed():
        found = importlib.import_module(module.removesuffix(".py").replace("/", "."))
        assert str(found.__file__).endswith(".py"), module
