"""Compile what every request runs through to C, with mypyc: half of the processor time of a relayed request.

    python scripts/compile_proxy.py --into build/native
    PYTHONPATH=build/native rhizome-proxy …

The modules stay what they are, Python with types, and run uncompiled as well; only what is measured to matter
is compiled. `--into` gets the packages whole, so it can come before them on Python's path, or be the very
place where they are installed. What is newer there than all sources stays. Needs mypy, setuptools and a C
compiler; see docs/proxy.md.
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
COMPILED_LAST: Final = f"{GROUP}__mypyc{sysconfig.get_config_var('EXT_SUFFIX')}"
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
    copy_packages(into)
    with tempfile.TemporaryDirectory(prefix="rhizome-compile-") as folder:
        compile_modules(Path(folder), into, arguments.python)
    print(f"{len(MODULES) + len(HAND_WRITTEN)} modules are compiled in {into}")


def find(one: str) -> Path:
    """Where a package or a file of one is in this repository."""
    return next(place / one for place in PLACES if (place / one).exists())


def is_current(into: Path) -> bool:
    """Whether all was compiled there after the last change, for this Python."""
    newest = into / COMPILED_LAST
    if not newest.exists():
        return False
    sources = [one for name in PACKAGES for one in find(name).rglob("*") if one.suffix in {".py", ".c"}]
    return all(one.stat().st_mtime < newest.stat().st_mtime for one in [*sources, Path(__file__)])


def copy_packages(into: Path) -> None:
    """Put the packages that have compiled modules there, without what was compiled there before."""
    for old in into.glob(f"{GROUP}__mypyc.*"):
        old.unlink()
    for name in PACKAGES:
        source = find(name)
        if (into / name).is_dir():
            for old in (into / name).rglob("*.so"):
                old.unlink()
        ignore = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(source, into / name, dirs_exist_ok=True, ignore=ignore)


def compile_modules(work: Path, into: Path, python: str) -> None:
    """Compile `MODULES` in a folder for what lies between, into the packages in `into`.

    Raises:
        SystemExit: the types are wrong, or the compiler failed.
    """
    settings = work / "mypy.ini"
    settings.write_text(_TYPES.format(places=":".join(map(str, PLACES))), encoding="utf-8")
    sources = [str(find(one)) for one in MODULES]
    built = work / "built"
    before = Path.cwd()
    os.chdir(work)  # setuptools reads the settings of whatever project it is started in
    try:
        options = ["--config-file", str(settings), "--python-executable", python, "--cache-dir", os.devnull]
        extensions: list[Extension] = mypycify(
            [*options, *sources], opt_level="2", debug_level="0", group_name=GROUP, target_dir=str(work)
        )
        extensions += [
            Extension(one.removesuffix(".c").replace("/", "."), [str(find(one))]) for one in HAND_WRITTEN
        ]
        build = Distribution({"name": GROUP, "ext_modules": extensions}).get_command_obj("build_ext")
        build.build_lib, build.build_temp = str(built), str(work)  # type: ignore[attr-defined]
        build.ensure_finalized()
        build.run()
    finally:
        os.chdir(before)
    shutil.copytree(built, into, dirs_exist_ok=True, ignore=shutil.ignore_patterns(COMPILED_LAST))
    shutil.copy(built / COMPILED_LAST, into)


if __name__ == "__main__":
    main()
