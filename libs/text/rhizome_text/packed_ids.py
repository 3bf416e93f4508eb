"""Token ids as protobuf writes them: a prompt that is only passed on never becomes a list of numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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

    __slots__ = ("_count", "varints")

    def __init__(self, varints: bytes) -> None:
        self.varints = varints
        self._count = len(varints.translate(None, _CONTINUED))

    @classmethod
    def pack(cls, token_ids: Iterable[int]) -> PackedIds:
        """Write ids that are not negative."""
        return cls(b"".join(map(varint, token_ids)))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        value = shift = 0
        for byte in self.varints:
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                yield value
                value = shift = 0
            else:
                shift += 7

    @overload
    def __getitem__(self, place: int) -> int: ...

    @overload
    def __getitem__(self, place: slice) -> list[int]: ...

    def __getitem__(self, place: Any) -> Any:
        return list(self)[place]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"PackedIds.pack({list(self)})"


def varint(value: int) -> bytes:
    """A number that is not negative, as in `PackedIds`."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
