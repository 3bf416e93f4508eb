"""Splits a model's thinking from its answer: `<think>...</think>` and the like.

The span counts only at the beginning of the answer; later markers are text, as an answer may talk about
them. What is trimmed: white space before the opening marker, newlines right after it, and newlines right
after the closing one. Everything else is as the model wrote it. A span that is never closed is thinking up
to the end, tool calls in it included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rhizome_gateway.generation.events import ParsedEvent, Reasoning, Text
from rhizome_gateway.parsing.json_value import skip_space
from rhizome_gateway.parsing.markers import MarkerSearch

_NEWLINES = "\r\n"


@dataclass(frozen=True, slots=True)
class ReasoningMarkers:
    """What stands around the thinking."""

    opening: str
    closing: str

    @property
    def markers(self) -> frozenset[str]:
        """What must be visible in the text, special token or not."""
        return frozenset({self.opening, self.closing})

    def opened_by(self, prompt: str) -> bool:
        """Whether a prompt, as the chat template rendered it, ends inside a span."""
        return prompt.rstrip().endswith(self.opening.strip())


class ReasoningParser:
    """The output parser for thinking and answer.

    A token counts as reasoning where `inside` was true before or after its text was pushed; where a piece
    holds several tokens, `reasoning_chars` says where the thinking ended.

    Args:
        markers: what stands around the thinking.
        starts_inside: the prompt already opened the span; a repeated opening marker is dropped.

    Attributes:
        inside: whether the text so far ends in thinking.
    """

    def __init__(self, markers: ReasoningMarkers, *, starts_inside: bool = False) -> None:
        self.inside = starts_inside
        self._opening = markers.opening
        self._closing = MarkerSearch([markers.closing])
        self._pushed_chars = 0
        self._ended_at = 0
        self._at_start = True
        self._space: list[str] = []
        self._beginning = ""
        self._trimming = starts_inside

    @property
    def reasoning_chars(self) -> int:
        """How many of the characters pushed so far are thinking, the closing marker included."""
        return self._pushed_chars if self.inside else self._ended_at

    def push(self, text: str) -> Sequence[ParsedEvent]:
        """Take the next piece of text."""
        self._pushed_chars += len(text)
        if self._at_start:
            return self._start(text)
        return self._thinking(text) if self.inside else self._answer(text)

    def finish(self) -> Sequence[ParsedEvent]:
        """The answer is complete: give out what was held back."""
        if not self._at_start:
            return self._reasoning(self._closing.flush()) if self.inside else ()
        self._at_start = False
        held = "".join(self._space) + self._beginning
        return self._reasoning(held) if self.inside else self._answer(held)

    def _start(self, text: str) -> Sequence[ParsedEvent]:
        """Wait until it is known whether the text begins with the opening marker."""
        if not self._beginning:
            at = skip_space(text, 0)
            self._space.append(text[:at])
            text = text[at:]
        text = self._beginning + text
        if text.startswith(self._opening):
            self._at_start, self.inside, self._trimming = False, True, True
            return self._thinking(text[len(self._opening) :])
        if self._opening.startswith(text):
            self._beginning = text
            return ()
        self._at_start = False
        text = "".join(self._space) + text
        return self._thinking(text) if self.inside else self._answer(text)

    def _thinking(self, text: str) -> Sequence[ParsedEvent]:
        shown, marker, end = self._closing.feed(text)
        events = self._reasoning(shown)
        if marker is None:
            return events
        self.inside, self._trimming = False, True
        self._ended_at = self._pushed_chars - (len(text) - end)
        return [*events, *self._answer(text[end:])]

    def _reasoning(self, text: str) -> Sequence[ParsedEvent]:
        text = self._trimmed(text)
        return (Reasoning(text),) if text else ()

    def _answer(self, text: str) -> Sequence[ParsedEvent]:
        text = self._trimmed(text)
        return (Text(text),) if text else ()

    def _trimmed(self, text: str) -> str:
        """Drop newlines right after a marker."""
        if self._trimming:
            text = text.lstrip(_NEWLINES)
            self._trimming = not text
        return text
