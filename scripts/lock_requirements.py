"""Write the hash-checked lock files under requirements/ from what the distributions and the tests ask for.

    make lock                                       # after a change of pyproject.toml, *.txt, constraints
    python scripts/lock_requirements.py --check     # fails where a lock file does not fit what is asked for

Versions come from requirements/constraints-cpu.txt, which people edit; what only another platform needs is
the newest. Each entry has the hashes of all files of its release, so one lock serves every platform and
Python. PyTorch is left out: each platform takes its own build, from an index of its own, so no list of
hashes fits all of them. What PyTorch itself needs is in the lock, but not the CUDA libraries of some builds.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "requirements"
CONSTRAINTS = FOLDER / "constraints-cpu.txt"
LOWEST_PYTHON = "3.11"
BUILD = ("hatchling", "editables")
"""Build our own distributions, without a build environment for each."""
OF_ITS_PLATFORM = "torch"
_OF_GPUS = ("nvidia", "triton", "cuda")
_NAME = re.compile(r"^[A-Za-z0-9._-]+")
_HEADER = (
    "# Written by scripts/lock_requirements.py from {source}; `pip install --require-hashes` reads it.\n"
)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail where something is missing")
    if parser.parse_args().check:
        problems = [problem for name, wanted in sources().items() for problem in missing(name, wanted)]
        for problem in problems:
            sys.stderr.write(f"{problem}\n")
        sys.exit(f"run: python {Path(__file__).relative_to(ROOT)}" if problems else 0)
    for name, wanted in sources().items():
        (FOLDER / name).write_text(_HEADER.format(source=_SOURCE[name]) + locked(name, wanted))
        sys.stderr.write(f"wrote requirements/{name}\n")


RUNTIME, DEV = "lock-runtime.txt", "lock-dev.txt"
"""What goes into one environment, at the versions of the constraints."""
ALONE, TOOLS = "lock-litellm.txt", "lock-supply.txt"
"""Environments of their own: one that names all it needs, and tools that look at locks."""
_SOURCE = {
    RUNTIME: "the distributions' pyproject.toml",
    DEV: "the distributions' pyproject.toml and dev.txt",
    ALONE: "litellm.txt",
    TOOLS: "supply.txt",
}


def sources() -> dict[str, list[str]]:
    """What each lock file has to satisfy, as requirements, by its name."""
    runtime = third_party(path for path in _projects() if path.parent.name != "testing")
    runtime += [*BUILD, "openai", *needed_by(OF_ITS_PLATFORM)]
    dev = [*runtime, *third_party(_projects()), *_lines(FOLDER / "dev.txt")]
    alone = {name: _lines(FOLDER / _SOURCE[name]) for name in (ALONE, TOOLS)}
    return {RUNTIME: sorted(set(runtime)), DEV: sorted(set(dev)), **alone}


def third_party(projects: Iterable[Path]) -> list[str]:
    """What distributions ask for; not our own, PyTorch, nor what is compiled for the PyTorch of GPUs."""
    found: list[str] = []
    for path in projects:
        project = tomllib.loads(path.read_text())["project"]
        extras = project.get("optional-dependencies", {})
        asked = [*project["dependencies"], *(one for name in extras if name != "gpu" for one in extras[name])]
        found += [one for one in asked if not name_of(one).startswith("rhizome-")]
    return [one for one in found if name_of(one) != OF_ITS_PLATFORM]


def needed_by(package: str) -> list[str]:
    """What an installed package asks for on every machine.

    Raises:
        SystemExit: it is not installed.
    """
    try:
        asked = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        sys.exit(f"{package} is not installed; run this with .venv/bin/python, after `make setup`")
    plain = [one.partition(";")[0].strip() for one in asked if "extra ==" not in one]
    return [one for one in plain if not name_of(one).startswith(_OF_GPUS)]


def name_of(requirement: str) -> str:
    """A requirement's package, as indexes write it.

    Raises:
        ValueError: there is none.
    """
    match = _NAME.match(requirement)
    if match is None:
        raise ValueError(f"{requirement!r} names no package")
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def pins(text: str) -> dict[str, tuple[str, int]]:
    """Version and number of hashes of each package in a lock file."""
    found: dict[str, tuple[str, int]] = {}
    for entry in re.split(r"\n(?=\S)", text):
        if match := re.match(r"([A-Za-z0-9._-]+)==(\S+)", entry):
            found[name_of(match[1])] = (match[2], entry.count("--hash=sha256:"))
    return found


def missing(name: str, wanted: Iterable[str]) -> list[str]:
    """Why a lock file does not fit; empty where it does."""
    path = FOLDER / name
    if not path.is_file():
        return [f"{name} is missing"]
    have = pins(path.read_text())
    problems = [f"{name} has no {one}" for one in wanted if name_of(one) not in have]
    problems += [f"{name}: {package} has no hash" for package, (_, hashes) in have.items() if not hashes]
    for line in _lines(CONSTRAINTS if name in (RUNTIME, DEV) else FOLDER / _SOURCE[name]):
        package, _, version = line.partition("==")
        locked_version = have.get(name_of(package), (version, 1))[0]
        if locked_version != version:
            problems.append(f"{name} has {package} {locked_version}, wanted is {version}")
    return problems


def locked(name: str, wanted: Iterable[str]) -> str:
    """The text of a lock file that satisfies requirements.

    Raises:
        SystemExit: uv is missing, or the requirements fit no versions.
    """
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        sys.exit("uv is missing; run `make lock`, or pip install uv")
    with tempfile.TemporaryDirectory() as folder:
        asked, never = Path(folder, "asked.in"), Path(folder, "never.in")
        asked.write_text("\n".join(wanted) + "\n")
        never.write_text(f"{OF_ITS_PLATFORM} ; sys_platform == 'never'\n")
        command = [uv, "pip", "compile", "--quiet", "--universal", "--python-version", LOWEST_PYTHON]
        command += ["--generate-hashes", "--no-header", "--no-annotate", "--no-config", str(asked)]
        if name in (RUNTIME, DEV):
            command += ["--constraint", str(CONSTRAINTS), "--override", str(never)]
        elif name == ALONE:
            command.append("--no-deps")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def _projects() -> list[Path]:
    return sorted([*ROOT.glob("libs/*/pyproject.toml"), *ROOT.glob("services/*/pyproject.toml")])


def _lines(path: Path) -> list[str]:
    lines = (line.partition(" #")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


if __name__ == "__main__":
    main()
