"""Tests on compiled modules: `make test-native` runs those of the proxy and of what it is made of."""

from __future__ import annotations

import pytest

from rhizome_relay.compiled import COMPILED

interpreted = pytest.mark.skipif(
    COMPILED, reason="replaces what compiled code does not look up; make test runs it"
)
"""For a test that takes a function's or a method's place."""
