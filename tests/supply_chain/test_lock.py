"""What `make setup` installs is locked, whole, and checked against hashes."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
OURS = "rhizome-"


@pytest.fixture(scope="module")
def lock() -> ModuleType:
    """scripts/lock_requirements.py."""
    spec = importlib.util.spec_from_file_location("lock_requirements", ROOT / "scripts/lock_requirements.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_locks_fit_what_is_asked_for() -> None:
    command = [sys.executable, str(ROOT / "scripts/lock_requirements.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_everything_that_our_distributions_need_here_is_locked(lock: ModuleType) -> None:
    """pip is told not to look for dependencies, so none may be missing."""
    locked = lock.pins((lock.FOLDER / lock.DEV).read_text())
    seen: set[str] = set()
    waiting = [Requirement(one) for one in lock.sources()[lock.DEV]]
    while waiting:
        asked = waiting.pop()
        name = lock.name_of(asked.name)
        if asked.marker is not None and not any(asked.marker.evaluate({"extra": e}) for e in ("", "stack")):
            continue
        if f"{name}{sorted(asked.extras)}" in seen or name == lock.OF_ITS_PLATFORM:
            continue
        seen.add(f"{name}{sorted(asked.extras)}")
        assert name in locked, f"{name} is not in {lock.DEV}; run scripts/lock_requirements.py"
        needed = map(Requirement, importlib.metadata.requires(name) or [])
        extras = ("", *asked.extras)
        waiting += [
            one
            for one in needed
            if one.marker is None or any(one.marker.evaluate({"extra": e}) for e in extras)
        ]
    assert len(seen) > 100


@pytest.mark.parametrize("name", ["lock-runtime.txt", "lock-dev.txt", "lock-litellm.txt"])
def test_every_entry_has_hashes_and_no_index(lock: ModuleType, name: str) -> None:
    text = (lock.FOLDER / name).read_text()
    entries = lock.pins(text)
    assert len(entries) > 50
    assert all(hashes for _, hashes in entries.values())
    assert "index-url" not in text and "find-links" not in text and "://" not in text
    assert lock.OF_ITS_PLATFORM not in entries


def test_a_lock_that_lacks_something_is_found(lock: ModuleType) -> None:
    assert lock.missing(lock.RUNTIME, ["no-such-package>=1"]) == [
        "lock-runtime.txt has no no-such-package>=1"
    ]
