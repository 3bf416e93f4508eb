"""What is made to go wrong, and how long."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, Final, get_args, get_type_hints

_CUTS: Final = ("stall", "reset", "half_close")


@dataclass(frozen=True, slots=True)
class Cut:
    """Where an answer ends before its end.

    Attributes:
        kind: `stall`: nothing follows; `reset`: RST; `half_close`: FIN without the end of the body.
        after_tokens: so many are sent before; with 0 not even headers are.
    """

    kind: str
    after_tokens: int


@dataclass(slots=True)
class Faults:
    """What is wrong with a server.

    Attributes:
        stall: answers stop after so many tokens, and nothing ever follows.
        reset: connections are reset after so many tokens.
        half_close: the server's side is closed after so many tokens.
        status: requests are answered with this status.
        slow_loris: answers come one byte per 100 ms.
        count: so many requests suffer the faults above; absent for all.
        latency: factor on the duration of steps.
        unhealthy: health routes answer 503.
        metrics_missing: metrics answer 404.
        refuse_s: nobody is let in for so many seconds from now.
        crash: the process ends at once, without a word.
    """

    stall: int | None = None
    reset: int | None = None
    half_close: int | None = None
    status: int | None = None
    slow_loris: bool = False
    count: int | None = None
    latency: float = 1.0
    unhealthy: bool = False
    metrics_missing: bool = False
    refuse_s: float = 0.0
    crash: bool = False

    @property
    def cut(self) -> Cut | None:
        """Where answers end; the first of stall, reset and half-close."""
        for kind in _CUTS:
            after_tokens = getattr(self, kind)
            if after_tokens is not None:
                return Cut(kind, after_tokens)
        return None

    def take(self) -> Faults | None:
        """The faults of the next request, counted; `None` when it is spared."""
        if self.count == 0 or not (self.cut or self.status or self.slow_loris):
            return None
        if self.count is not None:
            self.count -= 1
        return dataclasses.replace(self)

    def change(self, values: Mapping[str, Any]) -> None:
        """Set some fields.

        Raises:
            ValueError: a field does not exist or has another type; then nothing changed.
        """
        kinds = get_type_hints(Faults)
        for name, value in values.items():
            if name not in kinds:
                raise ValueError(f"unknown fault; there are {', '.join(kinds)}")
            if not _fits(kinds[name], value):
                raise ValueError(f"{name} must be {_spoken(kinds[name])}")
        for name, value in values.items():
            setattr(self, name, value)


def parse_fault(text: str) -> tuple[str, Any]:
    """Read `slow_loris` or `reset=5`.

    Raises:
        ValueError: it is no fault.
    """
    name, _, value = text.partition("=")
    name = name.strip().replace("-", "_")
    kinds = get_type_hints(Faults)
    if name not in kinds:
        raise ValueError(f"a fault is one of {', '.join(kinds)}, as in reset=5")
    try:
        if kinds[name] is bool:
            return name, {"": True, "true": True, "false": False}[value.lower()]
        return name, float(value) if kinds[name] is float else int(value or "0")
    except (KeyError, ValueError):
        raise ValueError(f"{name} must be {_spoken(kinds[name])}") from None


def _fits(kind: Any, value: object) -> bool:
    if isinstance(kind, UnionType):
        return value is None or any(
            _fits(member, value) for member in get_args(kind) if member is not type(None)
        )
    if kind is bool:
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        return False
    return kind is float or isinstance(value, int)


def _spoken(kind: Any) -> str:
    if kind is bool:
        return "true or false"
    return "a number of at least 0" if kind is float else "a whole number of at least 0, or null"
