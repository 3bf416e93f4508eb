"""The line that Claude Code writes above its system prompt."""

from __future__ import annotations

import re

_HEADER = re.compile(r"(?:x-anthropic-billing-header:[^\n]*\n*)+")


def without_billing_header(system: str) -> str:
    """A system prompt without the `x-anthropic-billing-header: …` lines that it begins with.

    They hold a value that changes with every request, and say nothing to the model: with them, no request
    would find the cached prefix of the one before.
    """
    header = _HEADER.match(system)
    return system if header is None else system[header.end() :]
