"""What one render may cost: steps, characters made on the way, processor time.

A template is a program from somebody else's file, run on somebody else's data. Everything in it that can
loop, recurse or make a large value draws on one `Budget`, before it does so where it could be large at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2.utils import Namespace

MAX_NODES = 200_000
"""Most values inside one value, and most items of one list."""

MAX_INT_BITS = 4096
MAX_COUNT = 10_000
"""Greatest width, precision or count that a filter or method takes as a number."""

_CHECK_EVERY = 256
_CHECK_SOON = 16
_CHARS_PER_STEP = 1024
_ITEMS_PER_STEP = 8


class TemplateLimitError(jinja2.TemplateError):
    """The template asked for more than a render may cost."""


@dataclass(frozen=True, slots=True)
class TemplateLimits:
    """Limits of one render.

    Attributes:
        output_chars: longest prompt.
        work_chars: characters of all strings made on the way, the discarded ones too.
        steps: rounds of loops, calls, filters, and visited values.
        cpu_s: seconds of this thread's processor time. Waiting for the processor does not count, but for
            at most half of it within the first steps.
    """

    output_chars: int = 16 * 2**20
    work_chars: int = 64 * 2**20
    steps: int = 4_000_000
    cpu_s: float = 0.75


class Budget:
    """What is left of the limits of one render."""

    __slots__ = (
        "_began_s",
        "_cpu_s",
        "_deadline_s",
        "_every",
        "_granted",
        "_steps",
        "_unchecked",
        "_work_chars",
    )

    def __init__(self, limits: TemplateLimits) -> None:
        self._steps = limits.steps
        self._every = _CHECK_EVERY
        self._granted = self._unchecked = min(_CHECK_EVERY, limits.steps)
        self._work_chars = limits.work_chars
        self._cpu_s = limits.cpu_s
        self._began_s = time.monotonic()
        self._deadline_s = 0.0

    def spend(self, steps: int = 1) -> None:
        """Do so many steps.

        Raises:
            TemplateLimitError: too many, or too late.
        """
        self._unchecked = left = self._unchecked - steps
        if left < 0:
            self._check()

    def _check(self) -> None:
        self._steps -= self._granted - self._unchecked
        if self._steps < 0:
            raise TemplateLimitError("it takes too many steps")
        now = time.thread_time()
        if not self._deadline_s:
            # Most renders end before their first check, and never ask for this clock, which is a dear one.
            # What went by until then on the cheap one counts, too, though it may have been spent waiting.
            gone_s = time.monotonic() - self._began_s
            self._deadline_s = now + self._cpu_s - min(gone_s, self._cpu_s / 2)
            if gone_s > self._cpu_s / 8:  # slow steps, or a busy machine: look more often
                self._every = _CHECK_SOON
        elif now > self._deadline_s:
            raise TemplateLimitError("it takes too long")
        self._granted = self._unchecked = min(self._every, self._steps)

    def spend_chars(self, count: int) -> None:
        """Make a string of so many characters; call it before where the string could be large.

        Raises:
            TemplateLimitError: too many.
        """
        self._work_chars -= count
        if self._work_chars < 0:
            raise TemplateLimitError("it makes too much text")
        if count >= _CHARS_PER_STEP:
            self.spend(count // _CHARS_PER_STEP)

    def require_chars(self, count: int) -> None:
        """Refuse to go on where less is left; spend nothing.

        Raises:
            TemplateLimitError: less is left.
        """
        if count > self._work_chars:
            raise TemplateLimitError("it makes too much text")

    def spend_items(self, count: int) -> None:
        """Make a list of so many items.

        Raises:
            TemplateLimitError: too many.
        """
        if count > MAX_NODES:
            raise TemplateLimitError("it makes too long a list")
        self.spend(1 + count // _ITEMS_PER_STEP)

    def weigh(self, value: Any) -> Weight:
        """Count a value and all that is inside; what is reached twice counts twice, as in its text.

        Raises:
            TemplateLimitError: more than `MAX_NODES`, and so for a value that holds itself.
        """
        nodes = chars = depth = 0
        level: list[Any] = [value]
        while level:
            depth += 1
            nodes += len(level)
            if nodes > MAX_NODES:
                raise TemplateLimitError("it makes too large a value")
            inside: list[Any] = []
            for item in level:
                if isinstance(item, str):
                    chars += len(item)
                    continue
                if isinstance(item, Namespace):
                    item = item._Namespace__attrs
                if isinstance(item, dict):
                    inside += item
                    inside += item.values()
                elif isinstance(item, (list, tuple)):
                    inside += item
                if len(inside) > MAX_NODES:
                    raise TemplateLimitError("it makes too large a value")
            level = inside
        self.spend(nodes)
        return Weight(nodes, chars, depth)

    def require_text_of(self, value: Any) -> None:
        """Refuse what would be too long as text.

        Raises:
            TemplateLimitError: it would be.
        """
        weight = self.weigh(value)
        self.require_chars(2 * weight.chars + 16 * weight.nodes)


@dataclass(frozen=True, slots=True)
class Weight:
    """Size of a nested value: values, characters in its strings, levels."""

    nodes: int
    chars: int
    depth: int


class _Active(threading.local):
    budget: Budget


_active = _Active()


def active_budget() -> Budget:
    """The budget of the render that this thread is in."""
    return _active.budget


@contextmanager
def spending(limits: TemplateLimits) -> Iterator[None]:
    """Compile or render within limits; they are this thread's until the end of the block."""
    _active.budget = Budget(limits)
    try:
        yield
    finally:
        del _active.budget
