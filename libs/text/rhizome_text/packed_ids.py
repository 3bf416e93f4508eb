"""Token ids as protobuf writes them: a prompt that is only passed on never becomes a list of numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

_CONTINUED = bytes(range(0x80, 0x100))
"""Bytes after which a number goes on."""


class PackedIds(Sequence[int]):
    """Token ids, unpacked where somebody looks at them.

    Args:
        varints: the ids one after another, each in seven bits a byte, the lowest first, the highest bit set
            in all bytes but its last.

    Attributes:
        varints: as given.
    """

    __slots__ = ("_count", "_ids", "varints")

    def __init__(self, varints: bytes) -> None:
        self.varints = varints
        self._count = len(varints.translate(None, _CONTINUED))
        self._ids: list[int] | None = None

    def __len__(self) -> int:
        return self._count

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
        return f"PackedIds({self.varints!r})"

    def _unpacked(self) -> list[int]:
        if self._ids is None:
            ids: list[int] = []
            value = shift = 0
            for byte in self.varints:
                value |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    ids.append(value)
                    value = shift = 0
            self._ids = ids
        return self._ids


def varint(value: int) -> bytes:
    """A number that is not negative, as in `PackedIds`."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
