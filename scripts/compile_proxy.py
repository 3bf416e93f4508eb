"""Compile what every request runs through to C, with mypyc: half of the processor time of a relayed request.

    python scripts/compile_proxy.py --into build/native
    PYTHONPATH=build/native rhizome-proxy …

The modules stay what they are, Python with types, and run uncompiled as well; only what is measured to matter
is compiled. `--into` gets the packages whole, so it can come before them on Python's path, or be the very
place where they are installed. What is there of the sources as they are stays. Needs mypy, setuptools and a
C compiler; see docs/proxy.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Final

from mypyc.build import mypycify
from setuptools import Distribution, Extension

ROOT: Final = Path(__file__).resolve().parents[1]
PLACES: Final = (*sorted(ROOT.glob("libs/*")), ROOT / "services" / "proxy")

_RELAY: Final = (
    "attempts", "closing", "downstream", "exchange", "framing", "headers", "known_heads", "picker", "pool",
    "relay", "request", "response", "resumable", "upstream",
)  # fmt: skip
_ROUTING: Final = (
    "admission/counts", "admission/drain_rate", "admission/fair_queue", "admission/first_tokens",
    "admission/groups", "admission/queue", "admission/room", "admission/settings", "admission/ticket",
    "candidate", "outlier", "policies/active", "policies/ask", "policies/base", "policies/cost",
    "policies/groups", "policies/least_loaded", "policies/power_of_two", "policies/requests",
    "policies/round_robin", "policies/session", "prefix/chain", "prefix/index", "retry_budget",
)  # fmt: skip
_TRANSPORT: Final = ("packed_ids", "split_request", "wire")
_PROXY: Final = ("http/picker", "http/reading", "pool/backend", "pool/registry", "router")

MODULES: Final = (
    *(f"rhizome_relay/{name}.py" for name in _RELAY),
    *(f"rhizome_routing/{name}.py" for name in _ROUTING),
    *(f"rhizome_transport/{name}.py" for name in _TRANSPORT),
    "rhizome_backends/text_continuation.py",
    *(f"rhizome_proxy/{name}.py" for name in _PROXY),
)
"""Compiled together, so that calls among them are C's."""

HAND_WRITTEN: Final = ("rhizome_transport/block_hashes_native.c",)
"""Modules in C, each with a slower twin in Python."""

PACKAGES: Final = sorted({one.partition("/")[0] for one in (*MODULES, *HAND_WRITTEN)})
GROUP: Final = "rhizome_proxy"
SUFFIX: Final[str] = sysconfig.get_config_var("EXT_SUFFIX")
COMPILED_LAST: Final = f"{GROUP}__mypyc{SUFFIX}"
"""What mypyc puts all modules into; the others only name theirs."""

_TYPES: Final = """\
[mypy]
mypy_path = {places}
explicit_package_bases = True
namespace_packages = True
follow_imports = silent
[mypy-rhizome.*,google.*,grpc_health.*,grpc_reflection.*,grpc_status.*,smg_grpc_proto.*]
ignore_errors = True
ignore_missing_imports = True
"""


def main() -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--into", type=Path, required=True, metavar="DIR", help="where the packages go")
    parser.add_argument(
        "--python", default=sys.executable, metavar="EXE", help="whose packages the types come from"
    )
    arguments = parser.parse_args()
    into: Path = arguments.into.absolute()
    into.mkdir(parents=True, exist_ok=True)
    if is_current(into):
        return
    with tempfile.TemporaryDirectory(prefix="rhizome-compile-") as folder:
        tree = Path(folder, "tree")
        for name in PACKAGES:
            shutil.copytree(find(name), tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        compile_modules(Path(folder, "work"), tree, str(Path(arguments.python).absolute()))
        replace(tree, into)
    print(f"{len(MODULES) + len(HAND_WRITTEN)} modules are compiled in {into}")


def find(one: str) -> Path:
    """Where a package or a file of one is in this repository."""
    return next(place / one for place in PLACES if (place / one).exists())


def is_current(into: Path) -> bool:
    """Whether what is there was compiled from the sources as they are, by this script, for this Python."""
    last = into / COMPILED_LAST
    built = [into / f"{one.rpartition('.')[0]}{SUFFIX}" for one in (*MODULES, *HAND_WRITTEN)]
    return (
        all(one.exists() for one in (last, *built))
        and last.stat().st_mtime > Path(__file__).stat().st_mtime
        and all(contents(find(name)) == contents(into / name) for name in PACKAGES)
    )


def contents(package: Path) -> dict[Path, bytes]:
    """The sources of a package."""
    files = [one for one in package.rglob("*") if one.suffix in {".py", ".c"}]
    return {one.relative_to(package): one.read_bytes() for one in files}


def compile_modules(work: Path, tree: Path, python: str) -> None:
    """Compile `MODULES` in place, in a copy of their packages.

    Args:
        work: a folder for what lies between, made anew.
        tree: has the packages.
        python: whose packages the types come from.

    Raises:
        SystemExit: the types are wrong, or the compiler failed.
    """
    work.mkdir()
    settings = work / "mypy.ini"
    settings.write_text(_TYPES.format(places=":".join(map(str, (tree, *PLACES)))), encoding="utf-8")
    before = Path.cwd()
    os.chdir(work)  # setuptools reads the settings of whatever project it is started in
    try:
        options = ["--config-file", str(settings), "--python-executable", python, "--cache-dir", os.devnull]
        sources = [str(tree / one) for one in MODULES]
        extensions: list[Extension] = mypycify(
            [*options, *sources], opt_level="2", debug_level="0", group_name=GROUP, target_dir=str(work)
        )
        extensions += [
            Extension(one.removesuffix(".c").replace("/", "."), [str(tree / one)]) for one in HAND_WRITTEN
        ]
        build = Distribution({"name": GROUP, "ext_modules": extensions}).get_command_obj("build_ext")
        build.build_lib, build.build_temp = str(tree), str(work)  # type: ignore[attr-defined]
        build.ensure_finalized()
        build.run()
    finally:
        os.chdir(before)


def replace(tree: Path, into: Path) -> None:
    """Put what was compiled in the place of what is there; what belongs to nobody any more goes."""
    for old in into.glob(f"{GROUP}__mypyc.*"):
        old.unlink()
    for name in PACKAGES:
        shutil.rmtree(into / name, ignore_errors=True)
        shutil.copytree(tree / name, into / name)
    shutil.copy(tree / COMPILED_LAST, into)


if __name__ == "__main__":
    main()
