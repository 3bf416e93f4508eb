"""Reading a few figures from a page of metrics in Prometheus' text format.

A server's page may have thousands of lines of which a probe wants five, several times a second. So only lines
that begin with a wanted name are looked at, and labels are only read when asked for.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

_LABELS: Final = rb'\{(?:[^"}]|"(?:[^"\\]|\\.)*")*\}'
_LABEL: Final = re.compile(rb'([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"')
_ESCAPED: Final = re.compile(r"\\(.)")


class Sample(NamedTuple):
    """One line of the page."""

    value: float
    raw_labels: bytes

    def labels(self) -> dict[str, str]:
        """What tells it from other samples of its name."""
        return {
            name.decode(): _ESCAPED.sub(_unescape, value.decode())
            for name, value in _LABEL.findall(self.raw_labels)
        }


def read_samples(page: bytes, *names: str) -> dict[str, list[Sample]]:
    """Samples of some metrics, in order; a metric that the page does not have has none.

    Raises:
        ValueError: a value is no number.
    """
    found: dict[str, list[Sample]] = {name: [] for name in names}
    for name, labels, value in _lines_of(names).findall(b"\n" + page):
        found[name.decode()].append(Sample(float(value), labels))
    return found


def total(samples: Iterable[Sample]) -> float | None:
    """Their sum; `None` where there are none."""
    values = [sample.value for sample in samples]
    return sum(values) if values else None


@functools.cache
def _lines_of(names: tuple[str, ...]) -> re.Pattern[bytes]:
    wanted = b"|".join(re.escape(name.encode()) for name in names)
    return re.compile(rb"\n(%b)[ \t]*(%b|(?=[ \t]))[ \t]*(\S+)" % (wanted, _LABELS))


def _unescape(escaped: re.Match[str]) -> str:
    return "\n" if escaped[1] == "n" else escaped[1]
