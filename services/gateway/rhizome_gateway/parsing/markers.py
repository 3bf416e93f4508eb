"""Markers such as `<tool_call>` in text that arrives in pieces."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import permutations


class MarkerSearch:
    """Finds the first of some markers, and holds back only what may still become one.

    How the text is cut into pieces makes no difference, and each character is looked at a bounded number of
    times.

    Args:
        markers: none is empty, and none contains another. Then no marker can be complete inside the
            beginning of another, so the first complete one is the right one.

    Raises:
        ValueError: the markers are not like that.
    """

    def __init__(self, markers: Sequence[str]) -> None:
        if not all(markers) or any(one in other for one, other in permutations(markers, 2)):
            raise ValueError("markers must not be empty, and none may contain another")
        self._markers = tuple(markers)
        self._longest = max(map(len, markers))
        self._marker = re.compile("|".join(map(re.escape, markers)))
        self._first = re.compile("[" + re.escape("".join({marker[0] for marker in markers})) + "]")
        self._held = ""

    def feed(self, text: str, at: int = 0) -> tuple[str, str | None, int]:
        """Read `text` from `at` on, up to the end of the next marker or of the text.

        Returns:
            What is surely no part of a marker, the marker or None, and where reading stopped.
        """
        held, self._held = self._held, ""
        if held:
            window = held + text[at : at + self._longest]
            found = self._marker.search(window)
            if found and found.start() < len(held):
                return window[: found.start()], found.group(), at + found.end() - len(held)
            if at + self._longest >= len(text):
                start = self._possible_start(window, 0)
                if start < len(held):
                    self._held = window[start:]
                    return window[:start], None, len(text)
        found = self._marker.search(text, at)
        if found:
            return held + text[at : found.start()], found.group(), found.end()
        start = self._possible_start(text, max(at, len(text) - self._longest + 1))
        self._held = text[start:]
        return held + text[at:start], None, len(text)

    def flush(self) -> str:
        """Give out what was held back: the text is over."""
        held, self._held = self._held, ""
        return held

    def _possible_start(self, text: str, at: int) -> int:
        """Where the longest beginning of a marker that ends `text` starts; `len(text)` when there is none."""
        while found := self._first.search(text, at):
            at = found.start()
            rest = text[at:]
            if any(marker.startswith(rest) for marker in self._markers):
                return at
            at += 1
        return len(text)
