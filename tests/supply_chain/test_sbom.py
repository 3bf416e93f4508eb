"""Bills of materials: whole, valid, of an environment and of an image."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "sbom.py"
STATUS = """Package: libc6
Status: install ok installed
Version: 2.36-9+deb12u9

Package: removed-one
Status: deinstall ok config-files
Version: 1.0
"""


def written(folder: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "error", str(SCRIPT), *arguments, "--folder", str(folder)]
    subprocess.run(command, check=True, timeout=120, cwd=folder)
    (document,) = (json.loads(path.read_text()) for path in folder.glob("*.cdx.json"))
    assert document["bomFormat"] == "CycloneDX" and document["specVersion"] == "1.6"
    return document  # type: ignore[no-any-return]


def named(document: dict[str, Any]) -> dict[str, str]:
    return {one["name"].lower().replace("_", "-"): one["version"] for one in document["components"]}


@pytest.mark.parametrize(("service", "has", "lacks"), [
    ("rhizome-gateway", {"fastapi", "preact", "rhizome-text", "orjson"}, {"torch", "safetensors", "pytest"}),
    ("rhizome-engine", {"torch", "numpy", "pyzmq", "rhizome-grammar"}, {"fastapi", "pytest"}),
])  # fmt: skip
def test_a_service_names_all_that_it_needs_and_nothing_else(
    tmp_path: Path, service: str, has: set[str], lacks: set[str]
) -> None:
    document = written(tmp_path, service)
    found = named(document)
    assert has <= set(found) and not lacks & set(found)
    assert document["metadata"]["component"]["name"] == service
    for name in has - {"preact"}:
        assert found[name] == importlib.metadata.version(name)


def test_an_image_is_described_from_its_files(tmp_path: Path) -> None:
    image, out = tmp_path / "image", tmp_path / "out"
    site = image / "usr/lib/python3.12/site-packages"
    for name in ("rhizome-protocol", "protobuf", "grpcio", "typing_extensions"):
        one = importlib.metadata.distribution(name)
        folder = Path(str(one.locate_file(""))) / f"{name.replace('-', '_')}-{one.version}.dist-info"
        shutil.copytree(folder, site / folder.name)
    (image / "var/lib/dpkg").mkdir(parents=True)
    (image / "var/lib/dpkg/status").write_text(STATUS)
    out.mkdir()
    document = written(out, "rhizome-protocol", "--root", str(image))
    found = named(document)
    assert found["libc6"] == "2.36-9+deb12u9" and "removed-one" not in found
    assert found["protobuf"] == importlib.metadata.version("protobuf")
    purls = {one["purl"] for one in document["components"]}
    assert "pkg:deb/debian/libc6@2.36-9%2Bdeb12u9" in purls


def test_an_image_without_the_service_is_an_error(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "rhizome-gateway", "--root", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert done.returncode == 1 and "rhizome-gateway is not under" in done.stderr
