"""Find or make the shared library for this processor, and declare its functions."""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rhizome_engine.kernels.native import build
from rhizome_engine.kernels.native.build import BuildError, UnknownInstructionsError, Variant

logger = logging.getLogger(__name__)

CPUINFO = Path("/proc/cpuinfo")

Function = Callable[..., Any]

_INT, _INT64, _FLOAT, _POINTER = ctypes.c_int, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p

SIGNATURES: dict[str, tuple[type[Any] | None, tuple[type[Any], ...]]] = {
    "rhizome_set_num_threads": (None, (_INT,)),
    "rhizome_num_threads": (_INT, ()),
    # matrix, start, count, elements, scales, offsets
    "rhizome_pack": (None, (_POINTER, _INT64, _INT64, _POINTER, _POINTER, _POINTER)),
    # matrix, ids, count, multiplier, out
    "rhizome_embed": (_INT, (_POINTER, _POINTER, _INT64, _FLOAT, _POINTER)),
    "rhizome_has_bfloat16": (_INT, ()),
    # plan, x, rows, out
    "rhizome_linear": (None, (_POINTER, _POINTER, _INT64, _POINTER)),
    # residual, x, gain, eps, multiplier, rows, size
    "rhizome_add_norm": (None, (_POINTER, _POINTER, _POINTER, _FLOAT, _FLOAT, _INT64, _INT64)),
}
"""Function → type of the result, types of the arguments; src/ has the other half, with `extern "C"`."""


@dataclass(frozen=True, slots=True)
class Library:
    """The kernels, loaded.

    Attributes:
        variant: the instruction set they were compiled for.
        path: the file.
        functions: by name, with their signatures declared.
    """

    variant: str
    path: Path
    functions: dict[str, Function]

    def __getitem__(self, name: str) -> Function:
        """Return a function by its C name."""
        return self.functions[name]

    def set_num_threads(self, count: int) -> None:
        """Let so many threads take part in each operation, the calling one included."""
        self.functions["rhizome_set_num_threads"](count)

    def has_bfloat16(self) -> bool:
        """Return whether there are products in bfloat16, activations included."""
        return bool(self.functions["rhizome_has_bfloat16"]())

    def num_threads(self) -> int:
        """Return how many threads take part, the calling one included."""
        return int(self.functions["rhizome_num_threads"]())


def cpu_flags() -> frozenset[str]:
    """Return what this processor can do in the words of /proc/cpuinfo; empty elsewhere than on Linux."""
    try:
        text = CPUINFO.read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def fitting_variants(flags: frozenset[str]) -> list[Variant]:
    """Return the instruction sets that a processor with these flags has, fastest first."""
    return [variant for variant in build.VARIANTS if variant.cpu_flags <= flags]


def open_library(path: Path, variant: Variant) -> Library:
    """Load a library and declare its functions.

    Raises:
        OSError: the system refuses to load the file.
        AttributeError: a function is missing.
    """
    loaded = ctypes.CDLL(str(path))
    functions: dict[str, Function] = {}
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
        functions[name] = function
    return Library(variant.name, path, functions)


def find_library(variant: Variant) -> Path:
    """Return the shipped library, else the cached one, else compile it.

    Raises:
        UnknownInstructionsError: neither is there and the compiler is too old to make it.
        BuildError: neither is there and it cannot be compiled.
    """
    shipped = build.SHIPPED / build.library_name(variant)
    if shipped.is_file():
        return shipped
    compiler = build.find_compiler()
    cached = build.cache_directory() / build.library_name(variant, compiler)
    if cached.is_file():
        return cached
    logger.info("compiling CPU kernels, once, to %s", cached)
    started = time.monotonic()
    path = build.compile_cached(variant, compiler)
    logger.info("CPU kernels ready after %.1f s", time.monotonic() - started)
    return path


def load_library() -> Library | None:
    """Return the kernels for this processor; None where there are none, with the reason in the log."""
    variants = fitting_variants(cpu_flags())
    if not variants:
        logger.warning(
            "no CPU kernels of our own: this processor has neither AVX2 nor AVX-512 VNNI, or is not x86"
        )
        return None
    for variant in variants:
        try:
            return open_library(find_library(variant), variant)
        except UnknownInstructionsError as error:
            logger.info("%s; trying kernels for fewer instructions", error)
        except (BuildError, OSError, AttributeError) as error:
            logger.warning("no CPU kernels of our own: %s", error)
            return None
    logger.warning("no CPU kernels of our own: the compiler is too old for all of them")
    return None
