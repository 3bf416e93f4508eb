"""Libraries are compiled once, completely or not at all, or shipped; without a compiler there is a reason."""

from __future__ import annotations

import ctypes
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rhizome_engine.kernels.native import build, library
from rhizome_engine.kernels.native.build import VARIANTS, BuildError

ALL_FLAGS = frozenset().union(*(variant.cpu_flags for variant in VARIANTS))
SLOW_SOURCE = 'extern "C" __attribute__((visibility("default"))) int answer() { return 42; }\n'
COMPILER_THAT_COUNTS = """#!/bin/sh
case "$*" in *--version*) ;; *" -c "*) echo compiled >> "{log}"; sleep 0.3 ;; esac
exec "{compiler}" "$@"
"""
OLD_COMPILER = """#!/bin/sh
case "$*" in *-mavx512bf16*) echo unrecognized >&2; exit 1 ;; esac
exec "{compiler}" "$@"
"""
BUILD_ONE = """
import sys
from pathlib import Path
from rhizome_engine.kernels.native import build
build.SOURCES = Path(sys.argv[1])
print(build.compile_cached(build.VARIANTS[1], build.find_compiler()))
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rhizome" / "kernels"


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "src"
    directory.mkdir()
    (directory / "answer.cpp").write_text(SLOW_SOURCE)
    monkeypatch.setattr(build, "SOURCES", directory)
    return directory


@pytest.fixture
def compiler() -> str:
    try:
        return build.find_compiler()
    except BuildError as error:
        pytest.skip(str(error))


def test_compiles_into_the_cache_once(cache: Path, sources: Path, compiler: str) -> None:
    made = build.compile_cached(VARIANTS[1], compiler)
    assert made.parent == cache
    assert ctypes.CDLL(str(made)).answer() == 42
    stamp = made.stat().st_mtime_ns
    assert build.compile_cached(VARIANTS[1], compiler) == made
    assert made.stat().st_mtime_ns == stamp


def test_other_sources_flags_or_compilers_are_other_libraries(sources: Path, compiler: str) -> None:
    names = {build.library_name(variant, each) for variant in VARIANTS for each in ("", compiler)}
    (sources / "answer.cpp").write_text(SLOW_SOURCE.replace("42", "43"))
    names |= {build.library_name(variant, each) for variant in VARIANTS for each in ("", compiler)}
    assert len(names) == 4 * len(VARIANTS)


def test_processes_that_start_together_compile_once(
    cache: Path, sources: Path, compiler: str, tmp_path: Path
) -> None:
    log, counting = tmp_path / "log", tmp_path / "counting-c++"
    counting.write_text(COMPILER_THAT_COUNTS.format(log=log, compiler=compiler))
    counting.chmod(0o755)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BUILD_ONE, str(sources)],
            env={**os.environ, "CXX": str(counting)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    made = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert all(process.returncode == 0 for process in processes)
    assert len(made) == 1
    assert log.read_text() == "compiled\n"


def test_a_failed_compilation_leaves_nothing_and_says_why(cache: Path, sources: Path, compiler: str) -> None:
    (sources / "answer.cpp").write_text("this is not C++;\n")
    with pytest.raises(BuildError, match=r"answer\.cpp"):
        build.compile_cached(VARIANTS[1], compiler)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written_is_a_reason(
    tmp_path: Path, sources: Path, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(BuildError, match="cannot write"):
        build.compile_cached(VARIANTS[1], compiler)


def test_without_a_compiler_there_are_no_kernels_and_the_log_says_why(
    cache: Path, sources: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(library, "cpu_flags", lambda: ALL_FLAGS)
    with caplog.at_level(logging.WARNING):
        assert library.load_library() is None
    assert "no C++ compiler: none of g++, c++, clang++ is in PATH" in caplog.text


def test_a_compiler_that_is_named_but_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++-of-tomorrow")
    with pytest.raises(BuildError, match="g\\+\\+-of-tomorrow"):
        build.find_compiler()


def test_other_processors_have_no_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags : fpu sse2 avx\n")
    monkeypatch.setattr(library, "CPUINFO", tmp_path / "cpuinfo")
    assert library.cpu_flags() == {"fpu", "sse2", "avx"}
    assert library.load_library() is None
    assert "neither AVX2 nor AVX-512 VNNI" in caplog.text
    monkeypatch.setattr(library, "CPUINFO", tmp_path / "none")
    assert library.cpu_flags() == frozenset()


def test_the_fastest_variant_that_the_processor_has_comes_first() -> None:
    bf16, vnni, avx2 = VARIANTS
    assert library.fitting_variants(ALL_FLAGS) == [bf16, vnni, avx2]
    assert library.fitting_variants(ALL_FLAGS - {"avx512_bf16"}) == [vnni, avx2]
    assert library.fitting_variants(ALL_FLAGS - {"avx512_vnni"}) == [avx2]
    assert library.fitting_variants(ALL_FLAGS - {"avx2"}) == []


@pytest.fixture
def old_compiler(tmp_path: Path, compiler: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that has not heard of bfloat16."""
    path = tmp_path / "old-c++"
    path.write_text(OLD_COMPILER.format(compiler=compiler))
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    return path


def test_with_an_old_compiler_the_next_variant_serves(
    cache: Path,
    sources: Path,
    old_compiler: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(library, "cpu_flags", lambda: ALL_FLAGS)
    monkeypatch.setattr(library, "SIGNATURES", {"answer": (ctypes.c_int, ())})
    with caplog.at_level(logging.INFO):
        found = library.load_library()
    assert found is not None
    assert found.variant == "avx512vnni"
    assert f"{old_compiler} cannot compile for avx512bf16" in caplog.text


def test_building_ahead_with_an_old_compiler_leaves_out_what_it_cannot(
    tmp_path: Path,
    sources: Path,
    old_compiler: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["build", "--into", str(tmp_path / "made")])
    assert build.main() == 0
    made = {path.name for path in (tmp_path / "made").iterdir()}
    assert made == {build.library_name(variant) for variant in VARIANTS[1:]}
    assert "avx512bf16; left out" in capsys.readouterr().err


def test_a_shipped_library_needs_no_compiler_until_its_sources_change(
    tmp_path: Path, sources: Path, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "shipped"
    monkeypatch.setattr(build, "SHIPPED", shipped)
    monkeypatch.setattr(sys, "argv", ["build", "--into", str(shipped)])
    assert build.main() == 0
    assert len(list(shipped.iterdir())) == len(VARIANTS)
    monkeypatch.setenv("CXX", "none")
    assert library.find_library(VARIANTS[0]).parent == shipped
    (sources / "answer.cpp").write_text("int changed;\n")
    with pytest.raises(BuildError, match="no C"):
        library.find_library(VARIANTS[0])


def test_building_ahead_without_a_compiler_fails_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "none")
    monkeypatch.setattr(sys, "argv", ["build", "--into", str(tmp_path)])
    assert build.main() == 1
    assert "no C++ compiler" in capsys.readouterr().err
