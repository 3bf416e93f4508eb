"""Arrows point one way: from services to libraries, and from these to what lies below them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "rhizome_telemetry": ROOT / "libs/telemetry/rhizome_telemetry",
    "rhizome_transport": ROOT / "libs/transport/rhizome_transport",
    "rhizome_text": ROOT / "libs/text/rhizome_text",
    "rhizome_grammar": ROOT / "libs/grammar/rhizome_grammar",
    "rhizome_relay": ROOT / "libs/relay/rhizome_relay",
    "rhizome_routing": ROOT / "libs/routing/rhizome_routing",
    "rhizome_backends": ROOT / "libs/backends/rhizome_backends",
    "rhizome_launcher": ROOT / "libs/launcher/rhizome_launcher",
    "rhizome_testing": ROOT / "libs/testing/rhizome_testing",
    "rhizome_engine": ROOT / "services/engine/rhizome_engine",
    "rhizome_proxy": ROOT / "services/proxy/rhizome_proxy",
    "rhizome_gateway": ROOT / "services/gateway/rhizome_gateway",
}
ALLOWED: dict[str, set[str]] = {
    "rhizome_telemetry": {"rhizome"},
    "rhizome_transport": {"rhizome", "rhizome_telemetry"},
    "rhizome_text": set(),
    "rhizome_grammar": set(),
    "rhizome_engine": {
        "rhizome",
        "rhizome_telemetry",
        "rhizome_transport",
        "rhizome_text",
        "rhizome_grammar",
    },
    "rhizome_relay": set(),
    "rhizome_routing": {"rhizome", "rhizome_transport"},
    "rhizome_backends": {
        "rhizome",
        "rhizome_telemetry",
        "rhizome_transport",
        "rhizome_routing",
        "rhizome_relay",
    },
    "rhizome_proxy": {
        "rhizome",
        "rhizome_telemetry",
        "rhizome_transport",
        "rhizome_routing",
        "rhizome_relay",
        "rhizome_backends",
    },
    "rhizome_gateway": {
        "rhizome",
        "rhizome_telemetry",
        "rhizome_transport",
        "rhizome_text",
        "rhizome_grammar",
    },
}
TORCH_FREE = [
    "rhizome_telemetry",
    "rhizome_transport",
    "rhizome_text",
    "rhizome_grammar",
    "rhizome_relay",
    "rhizome_routing",
    "rhizome_backends",
    "rhizome_launcher",
    "rhizome_proxy",
    "rhizome_gateway",
]


def imported_roots(source: Path) -> set[str]:
    """Top-level names of all absolute imports, also those inside functions."""
    roots: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            roots.add(node.module.split(".")[0])
    return roots


def importers_of(package: str) -> dict[str, set[str]]:
    return {str(path.relative_to(ROOT)): imported_roots(path) for path in PACKAGES[package].rglob("*.py")}


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_a_package_imports_only_what_lies_below_it(package: str) -> None:
    forbidden = {
        path: bad
        for path, roots in importers_of(package).items()
        if (bad := {r for r in roots if r.split("_")[0] == "rhizome"} - ALLOWED[package] - {package})
    }
    assert not forbidden


@pytest.mark.parametrize("package", sorted(set(PACKAGES) - {"rhizome_testing"}))
def test_the_test_kit_is_never_a_runtime_dependency(package: str) -> None:
    assert not [path for path, roots in importers_of(package).items() if "rhizome_testing" in roots]


@pytest.mark.parametrize(
    "package", sorted({"rhizome_gateway", "rhizome_proxy", "rhizome_text", "rhizome_grammar"})
)
def test_only_the_engine_names_torch(package: str) -> None:
    heavy = {"torch", "transformers", "safetensors"}
    assert not {path: roots & heavy for path, roots in importers_of(package).items() if roots & heavy}


def modules_of(package: str) -> list[str]:
    root = PACKAGES[package]
    return [
        ".".join([package, *path.relative_to(root).with_suffix("").parts])
        for path in sorted(root.rglob("*.py"))
        if path.stem not in {"__init__", "__main__"}
    ]


@pytest.mark.parametrize("package", TORCH_FREE)
def test_importing_every_module_loads_no_torch(package: str) -> None:
    names = [package, *modules_of(package)]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_the_engine_front_loads_no_torch() -> None:
    names = ["rhizome_engine.settings", "rhizome_engine.__main__"]
    names += [name for name in modules_of("rhizome_engine") if name.startswith("rhizome_engine.front.")]
    assert len(names) > 2
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
