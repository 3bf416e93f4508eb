"""Whether the modules that every request runs through are compiled: `scripts/compile_proxy.py` does that."""

from __future__ import annotations

from typing import Final

from rhizome_relay import exchange

COMPILED: Final = not exchange.__file__.endswith(".py")
