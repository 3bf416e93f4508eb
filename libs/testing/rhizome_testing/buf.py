"""Where buf is, the npm package that lints contracts and stands in for grpcurl."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[3]


def buf() -> str:
    """The path of buf; on a machine without npm the calling test is skipped.

    Raises:
        AssertionError: npm is there, but nobody has installed buf with it.
    """
    path = _ROOT / "node_modules" / ".bin" / "buf"
    if not path.exists():
        if shutil.which("npm") is None:
            pytest.skip("buf comes from npm, and there is no npm")
        raise AssertionError(f"{path} is missing: `make test` installs it, or run `npm install` in {_ROOT}")
    return str(path)
