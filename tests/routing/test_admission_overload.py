"""Overload, in virtual time: `benchmarks/admission.py` on a small scale."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "admission.py"


@pytest.fixture(name="simulation", scope="module")
def _simulation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_admission", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("fleet", ["4 alike", "4 alike, silent"])
def test_engines_are_used_and_a_light_tenant_hardly_notices_a_heavy_one(simulation: ModuleType, fleet: str):
    figures = simulation.measure(fleet, seconds=30.0, seeds=range(2), direct=False)
    assert figures["admission_goodput"] >= 0.95
    assert figures["admission_light_p99_ratio"] <= 1.5
    assert figures["admission_light_refused"] == 0


def test_unlike_engines_get_what_each_of_them_can_do(simulation: ModuleType):
    figures = simulation.measure("unlike", seconds=30.0, seeds=[1], direct=False)
    assert figures["admission_goodput"] >= 0.95
    assert figures["admission_light_refused"] == 0


def test_the_same_seed_gives_the_same_figures(simulation: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(simulation, "WARM_UP_S", 2.0)
    first, second = (simulation.measure("unlike", seconds=5.0, seeds=[3], direct=False) for _ in range(2))
    assert first == second
