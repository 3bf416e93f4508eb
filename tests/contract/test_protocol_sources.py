"""The contracts are clean, and the checked-in modules are what they generate."""

from __future__ import annotations

import filecmp
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rhizome_testing.buf import buf

ROOT = Path(__file__).resolve().parents[2]


def run_buf(*arguments: str) -> None:
    done = subprocess.run([buf(), *arguments], cwd=ROOT / "proto", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"buf {' '.join(arguments)}:\n{done.stdout}{done.stderr}"


def test_contracts_pass_buf_lint() -> None:
    run_buf("lint")


def test_contracts_are_formatted() -> None:
    run_buf("format", "--diff", "--exit-code")


@pytest.mark.skipif(sys.platform == "win32", reason="protoc plug-ins are found through PATH")
def test_checked_in_modules_are_what_the_contracts_generate(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    script = ROOT / "scripts" / "generate_protocol.py"
    subprocess.run([sys.executable, script, "--out", tmp_path], check=True, env=environment, timeout=100)
    checked_in = ROOT / "libs" / "protocol" / "rhizome"
    suffixes = {".py", ".pyi"}
    generated = {p.relative_to(tmp_path / "rhizome") for p in tmp_path.rglob("*") if p.suffix in suffixes}
    present = {p.relative_to(checked_in) for p in checked_in.rglob("*") if p.suffix in suffixes}
    assert generated == present
    different = [
        str(name)
        for name in sorted(generated)
        if not filecmp.cmp(tmp_path / "rhizome" / name, checked_in / name, shallow=False)
    ]
    assert not different, f"run `make proto`: {different} differ from what proto/ generates"
