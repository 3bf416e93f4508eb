"""Token ids as they are sent: a prompt that is only passed on never becomes a list of numbers."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

_WIDTH = 4


class PackedIds(Sequence[int]):
    """Token ids, unpacked where somebody looks at them.

    Args:
        packed: the ids one after another, 4 bytes each, the lowest first; see `pack`.

    Attributes:
        packed: as given.
    """

    __slots__ = ("_ids", "packed")

    def __init__(self, packed: bytes) -> None:
        self.packed = packed
        self._ids: list[int] | None = None

    def __len__(self) -> int:
        return len(self.packed) // _WIDTH

    @overload
    def __getitem__(self, place: int) -> int: ...

    @overload
    def __getitem__(self, place: slice) -> list[int]: ...

    def __getitem__(self, place: Any) -> Any:
        return self._unpacked()[place]

    def __iter__(self) -> Iterator[int]:
        return iter(self._unpacked())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (PackedIds, list, tuple)) and self._unpacked() == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"PackedIds({self.packed!r})"

    def _unpacked(self) -> list[int]:
        if self._ids is None:
            self._ids = list(struct.unpack(f"<{len(self)}I", self.packed))
        return self._ids


def pack(token_ids: Iterable[int]) -> bytes:
    """Token ids from 0 to 2^32 - 1, as `PackedIds` takes them."""
    ids = list(token_ids)
    return struct.pack(f"<{len(ids)}I", *ids)
