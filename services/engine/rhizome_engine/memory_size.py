"""Amounts of memory as people write them: `4GiB`, or `60%` of what there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from pydantic import ByteSize, TypeAdapter, ValidationError

_BYTES = TypeAdapter(ByteSize)


@dataclass(frozen=True, slots=True)
class MemorySize:
    """A size in bytes, or a share of what there is.

    Attributes:
        num_bytes: None where `share` says it.
        share: between 0 and 1, None where `num_bytes` says it.
    """

    num_bytes: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, value: str | int) -> Self:
        """Read "4GiB", "4000MB", a number of bytes, or "60%".

        Raises:
            ValueError: it is none of these; the message says what was expected.
        """
        text = str(value).strip()
        try:
            if text.endswith("%"):
                percent = float(text.removesuffix("%"))
                if not 0 < percent <= 100:
                    raise ValueError("out of range")
                return cls(share=percent / 100)
            return cls(num_bytes=int(_BYTES.validate_python(text)))
        except (ValueError, ValidationError):
            raise ValueError(
                f"memory is a size such as 4GiB, or a share of what is left such as 60%, not {value!r}"
            ) from None

    def of(self, there_are: int) -> int:
        """Return bytes, where there are so many."""
        if self.num_bytes is not None:
            return self.num_bytes
        assert self.share is not None, "one of them is set"
        return int(max(there_are, 0) * self.share)


def format_bytes(num_bytes: int) -> str:
    """Write bytes for people."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if abs(num_bytes) >= 2**power:
            return f"{num_bytes / 2**power:.2f} {unit}"
    return f"{num_bytes} B"
