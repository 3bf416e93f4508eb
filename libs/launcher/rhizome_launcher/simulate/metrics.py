"""Prometheus' text format, for figures that are read and not collected."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def exposition(figures: Iterable[tuple[str, str, float]], labels: dict[str, str] | None = None) -> bytes:
    """Write figures down.

    Args:
        figures: kind (`gauge`, `counter`), name as on the page, value.
        labels: of each sample.
    """
    lines = []
    for kind, name, value in figures:
        family, brace, own = name.partition("{")
        pairs = [*(f'{key}="{text}"' for key, text in (labels or {}).items()), *([own[:-1]] if brace else [])]
        suffix = f"{{{','.join(pairs)}}}" if pairs else ""
        lines.append(f"# TYPE {family} {kind}\n{family}{suffix} {float(value)!r}\n")
    return "".join(lines).encode()
