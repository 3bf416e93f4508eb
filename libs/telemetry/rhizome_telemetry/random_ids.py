"""Ids that only have to differ: of traces, requests and responses. Nothing is kept secret by them."""

from __future__ import annotations

from random import getrandbits


def random_hex(digits: int = 32) -> str:
    """So many random hexadecimal digits.

    From Python's generator, which is seeded by the system in each process, forked ones included; to ask the
    system for each id costs ten times as much.
    """
    return f"{getrandbits(4 * digits):0{digits}x}"
