"""Stop strings in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Finds the first stop string in a text and lets nothing of it out before it is known to be none.

    How the text is cut into pieces makes no difference: the stop string that is complete first ends the text,
    and of several that are complete at the same character the longest. At most as many characters are held
    back as the longest stop string has, less one, and only while they could be the beginning of one.

    Args:
        strings: none of them empty.
        include: whether the matched string belongs to the text.
    """

    def __init__(self, strings: Sequence[str], *, include: bool = False) -> None:
        if not all(strings):
            raise ValueError("a stop string must not be empty")
        self._strings = tuple(strings)
        self._include = include
        self._held = ""
        self._matched: str | None = None

    @property
    def matched(self) -> str | None:
        """The stop string that ended the text."""
        return self._matched

    def push(self, text: str) -> tuple[str, str | None]:
        """Take the next piece; return what is safe to show, and the stop string once one is complete."""
        if self._matched is not None:
            return "", self._matched
        if not self._strings:
            return text, None
        if not text:
            return "", None
        text = self._held + text
        found = [(at + len(stop), at, stop) for stop in self._strings if (at := text.find(stop)) >= 0]
        if found:
            end, start, self._matched = min(found)
            self._held = ""
            return text[: end if self._include else start], self._matched
        keep_from = min(_possible_start(text, stop) for stop in self._strings)
        self._held = text[keep_from:]
        return text[:keep_from], None

    def flush(self) -> str:
        """Return what was held back: the text ended without a stop string."""
        held, self._held = self._held, ""
        return held


def _possible_start(text: str, stop: str) -> int:
    """Where the longest proper prefix of `stop` that ends `text` begins; `len(text)` when there is none."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0:
        if stop.startswith(text[at:]):
            return at
        at = text.find(stop[0], at + 1)
    return len(text)
