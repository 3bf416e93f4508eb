"""What the ranks have computed, in a few bytes of memory that they share without a name.

Rank 0 cannot ask a rank that is stuck; it looks whether this still changes.
"""

from __future__ import annotations

import mmap
import os
import struct

_COUNT = struct.Struct("<Q")


def anonymous_file(name: str) -> int:
    """Return the descriptor of a file that has no path and ends with the last process that holds it.

    Args:
        name: for people who look at /proc.
    """
    return os.memfd_create(name, os.MFD_CLOEXEC)


class Progress:
    """A counter for each rank.

    Args:
        descriptor: of an anonymous file that all ranks hold.
        size: how many ranks there are.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size * _COUNT.size)
        self._memory = mmap.mmap(descriptor, size * _COUNT.size)

    def advance(self, rank: int) -> None:
        """Count something that a rank has done: a layer, a call. Only that rank may do so."""
        (count,) = _COUNT.unpack_from(self._memory, rank * _COUNT.size)
        _COUNT.pack_into(self._memory, rank * _COUNT.size, count + 1)

    def look(self) -> bytes:
        """Return something that differs once any rank has done more."""
        return self._memory[:]
