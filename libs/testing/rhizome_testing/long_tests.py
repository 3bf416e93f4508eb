"""Tests of processes that take long: `make processes` runs them, `make test` the short ones beside them."""

from __future__ import annotations

import os

import pytest

takes_long = pytest.mark.skipif(
    os.environ.get("RHIZOME_PROCESSES") != "full", reason="takes long; `make processes` runs it"
)
"""For a test, or a case of one."""
