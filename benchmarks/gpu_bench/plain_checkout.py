"""Running from a checkout that nobody installed, on a machine that lacks some packages.

The engine's core computes with torch, numpy and Triton. What else it imports serves the network, settings and
structured output, which a benchmark of the core does not touch. So a package that is missing is replaced by
names without meaning: imports pass, `except` clauses and annotations hold, and whoever calls for its work
gets an error that names the package.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

ROOT = Path(__file__).parents[2]
NOT_OF_THE_CORE = (
    "grpc",
    "grpc_health",
    "grpc_status",
    "google",
    "pydantic",
    "pydantic_settings",
    "zmq",
    "llguidance",
    "psutil",
    "opentelemetry",
    "orjson",
    "rich",
)
OF_THE_SERVICES = (
    "grpc",
    "google.protobuf",
    "google.rpc",
    "pydantic_settings",
    "zmq",
    "llguidance",
    "psutil",
)
OF_THE_GATEWAY = (
    *OF_THE_SERVICES,
    "fastapi",
    "uvicorn",
    "orjson",
    "hpack",
    "httptools",
    "typer",
    "rich",
    "uvloop",
)


class _Nameless(type(Exception)):
    """The type of every name in a missing package: whatever is asked of it is another such name."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _absent(f"{cls.__module__}.{cls.__qualname__}", name)

    def __iter__(cls) -> Iterator[Any]:
        return iter(())


def _absent(where: str, name: str) -> Any:
    made = _Nameless(name, (_Absent,), {"__module__": where, "__qualname__": name})
    return made


class _Absent(Exception, metaclass=_Nameless):  # noqa: N818 - it is whatever its package made it
    """Something of a package that is not here. It can be made, inherited from and raised."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*map(str, arguments))

    def __class_getitem__(cls, _item: object) -> Any:
        return cls

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        package = type(self).__module__.split(".")[0]
        raise ModuleNotFoundError(
            f"{type(self).__module__}.{type(self).__qualname__}.{name}: "
            f"package {package} is not installed here"
        )


class _AbsentModule(ModuleType):
    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _absent(self.__name__, name)
        setattr(self, name, made)
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Found last, after everything that is really there."""

    def __init__(self) -> None:
        self.replaced: set[str] = set()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if not name.startswith(tuple(f"{each}." for each in NOT_OF_THE_CORE)) and name not in NOT_OF_THE_CORE:
            return None
        self.replaced.add(name if name.startswith("google.") else name.split(".")[0])
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> ModuleType:
        return _AbsentModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


_FINDER = _Finder()


def use_checkout() -> None:
    """Let this process, and those it starts, import the repository's packages from where they are."""
    folders = [str(path) for path in sorted((ROOT / "libs").iterdir()) if path.is_dir()]
    folders += [str(path) for path in sorted((ROOT / "services").iterdir()) if path.is_dir()]
    folders.append(str(ROOT / "benchmarks"))
    sys.path[:0] = [folder for folder in folders if folder not in sys.path]
    inherited = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([*folders, *([inherited] if inherited else [])])


def replace_missing() -> None:
    """Let the engine's core be imported without the packages that only its services need."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)
    protocol = ROOT / "libs" / "protocol"
    for path in sorted(protocol.rglob("*_pb2.py")):
        name = ".".join(path.relative_to(protocol).with_suffix("").parts)
        try:
            importlib.import_module(name)
        except Exception:  # generated for another protobuf, or there is none: no core computes with messages
            _FINDER.replaced.add(name)
            sys.modules[name] = _AbsentModule(name)
            parent, _, last = name.rpartition(".")
            setattr(importlib.import_module(parent), last, sys.modules[name])


def replaced() -> list[str]:
    """The packages that were asked for and are missing."""
    return sorted(_FINDER.replaced)


def missing(names: tuple[str, ...]) -> list[str]:
    """Those of the packages that cannot be imported, without a replacement."""
    found = []
    for name in names:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            spec = None
        if spec is None or spec.loader is _FINDER:
            found.append(name)
    return found
