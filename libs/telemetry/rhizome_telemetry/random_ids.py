"""Ids of traces, requests and responses.

Python's own generator will not do: whatever seeds it, as engines and test suites do, would make the ids of
different requests the same.
"""

from __future__ import annotations

import os


def random_hex(digits: int = 32) -> str:
    """So many random hexadecimal digits, an even number; a fifth of what a `uuid.UUID` costs."""
    return os.urandom(digits // 2).hex()
