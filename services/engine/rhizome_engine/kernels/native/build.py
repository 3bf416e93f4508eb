"""Compile the C++ kernels, one shared library per instruction set; needs nothing but a compiler.

`python -m rhizome_engine.kernels.native.build --into DIR` compiles ahead for images and installs. This module
imports the standard library only, because the wheel's build hook loads it where nothing is installed.
"""

from __future__ import annotations

import argparse
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
SHIPPED = Path(__file__).parent / "lib"
COMPILERS = ("g++", "c++", "clang++")
# Neither -ffast-math nor contraction: where a sum is fused, the source says so, and a row gives the same bits
# in every batch.
FLAGS = (
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-pthread",
)
LINK_FLAGS = ("-shared", "-pthread", "-Wl,--as-needed")
COMPILE_TIMEOUT_S = 300


class BuildError(Exception):
    """The kernels cannot be compiled here; says why."""


class UnknownInstructionsError(BuildError):
    """The compiler is older than the instructions that it should compile for."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One instruction set that the kernels are compiled for.

    Attributes:
        name: in file names and logs.
        flags: for the compiler.
        cpu_flags: what /proc/cpuinfo must list.
    """

    name: str
    flags: tuple[str, ...]
    cpu_flags: frozenset[str]


_AVX2_CPU = frozenset({"avx2", "fma", "f16c", "bmi1", "bmi2", "movbe"})
_AVX512_FLAGS = ("-march=x86-64-v4", "-mavx512vnni", "-mprefer-vector-width=512")
_AVX512_CPU = _AVX2_CPU | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni"}
VARIANTS = (
    Variant("avx512bf16", (*_AVX512_FLAGS, "-mavx512bf16"), _AVX512_CPU | {"avx512_bf16"}),
    Variant("avx512vnni", _AVX512_FLAGS, _AVX512_CPU),
    Variant("avx2", ("-march=x86-64-v3",), _AVX2_CPU),
)
"""Fastest first."""


def cache_directory() -> Path:
    """Return where libraries compiled on demand are kept.

    Raises:
        BuildError: this user has no home directory.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "rhizome" / "kernels"
    except RuntimeError as error:
        raise BuildError(f"there is no directory to compile into ({error}); set XDG_CACHE_HOME") from error


def find_compiler() -> str:
    """Return the path of the C++ compiler: `$CXX` where it is set, else the first one in `$PATH`.

    Raises:
        BuildError: there is none.
    """
    wanted = os.environ.get("CXX")
    for name in (wanted,) if wanted else COMPILERS:
        if path := shutil.which(name):
            return path
    named = (
        f"$CXX is {wanted!r}, which is not a program"
        if wanted
        else f"none of {', '.join(COMPILERS)} is in PATH"
    )
    raise BuildError(f"no C++ compiler: {named}")


@functools.cache
def _compiler_identity(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.partition("\n")[0]


def source_digest(variant: Variant, compiler: str = "") -> str:
    """Return a short hash of all that decides what the library contains.

    Args:
        variant: which library.
        compiler: path; empty for libraries that are shipped, where whoever built them chose it.
    """
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in {".cpp", ".h"}:
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(repr((FLAGS, LINK_FLAGS, variant.flags)).encode())
    if compiler:
        digest.update(f"{compiler}\0{_compiler_identity(compiler)}".encode())
    return digest.hexdigest()[:16]


def library_name(variant: Variant, compiler: str = "") -> str:
    """Return the file name of a library made from these very sources; older ones are never taken for it."""
    return f"rhizome-kernels-{variant.name}-{source_digest(variant, compiler)}.so"


@functools.cache
def knows(compiler: str, variant: Variant) -> bool:
    """Return whether a compiler has heard of the instructions."""
    command = [compiler, *variant.flags, "-x", "c++", "-fsyntax-only", os.devnull]
    return _attempt(command).returncode == 0


def compile_library(variant: Variant, target: Path, compiler: str) -> None:
    """Compile one library to `target`, which appears when it is complete.

    Raises:
        UnknownInstructionsError: the compiler is too old.
        BuildError: with the compiler's own words.
    """
    if not knows(compiler, variant):
        raise UnknownInstructionsError(f"{compiler} cannot compile for {variant.name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as scratch:
        sources = sorted(SOURCES.glob("*.cpp"))
        objects = [Path(scratch) / f"{source.stem}.o" for source in sources]
        commands = [
            [compiler, *FLAGS, *variant.flags, "-c", str(source), "-o", str(made)]
            for source, made in zip(sources, objects, strict=True)
        ]
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            for _ in pool.map(_run, commands):
                pass
        linked = Path(scratch) / "linked.so"
        _run([compiler, *LINK_FLAGS, *map(str, objects), "-o", str(linked)])
        linked.replace(target)


def _run(command: list[str]) -> None:
    done = _attempt(command)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)} failed: {done.stderr.strip()[-2000:]}")


def _attempt(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]}: {error}") from error


def compile_cached(variant: Variant, compiler: str) -> Path:
    """Return the library from the cache, compiling it first where it is not there.

    Processes that ask at once wait for the one that compiles.

    Raises:
        BuildError: it cannot be compiled, or the cache cannot be written.
    """
    target = cache_directory() / library_name(variant, compiler)
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(target.with_suffix(".lock")):
            if not target.is_file():
                compile_library(variant, target, compiler)
    except OSError as error:
        raise BuildError(f"cannot write {target.parent}: {error}") from error
    return target


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Compile all variants into a directory."""
    parser = argparse.ArgumentParser(description="Compile the CPU kernels ahead of time.")
    parser.add_argument(
        "--into",
        type=Path,
        default=SHIPPED,
        metavar="DIR",
        help="default: beside the package, where they are found",
    )
    into: Path = parser.parse_args().into
    try:
        compiler = find_compiler()
        for variant in VARIANTS:
            target = into / library_name(variant)
            try:
                compile_library(variant, target, compiler)
            except UnknownInstructionsError as error:
                sys.stderr.write(f"{error}; left out\n")
            else:
                sys.stdout.write(f"{target}\n")
    except (BuildError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
