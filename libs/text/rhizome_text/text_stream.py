"""From token ids to the text a client sees: detokenizer and stop strings in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rhizome_text.detokenizer import IncrementalDetokenizer
from rhizome_text.stop import StopStrings
from rhizome_text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TextChunk:
    """What some tokens added.

    Attributes:
        text: safe to show; whole characters, nothing that may turn out to be a stop string.
        matched_stop: the stop string that ended the text; tokens after it are ignored.
        num_tokens: tokens used; less than were pushed when a stop string ended the text within them.
    """

    text: str
    matched_stop: str | None
    num_tokens: int


class TextStream:
    """The text of one answer.

    Args:
        tokenizer: shared by all answers of a model.
        stop_strings: end the text, and are not part of it unless `include_stop`.
        skip_special_tokens: leave tokens such as `<|eot_id|>` out of the text.
        include_stop: leave the stop string in the text.
    """

    __slots__ = ("_detokenizer", "_stop")

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop_strings: Sequence[str] = (),
        *,
        skip_special_tokens: bool = True,
        include_stop: bool = False,
    ) -> None:
        self._detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens)
        self._stop = StopStrings(stop_strings, include=include_stop) if stop_strings else None

    def push(self, token_ids: Sequence[int]) -> TextChunk:
        """Take new tokens."""
        if self._stop is None:
            return TextChunk(self._detokenizer.push(token_ids), None, len(token_ids))
        if self._stop.matched is not None:
            return TextChunk("", self._stop.matched, 0)
        # One by one, so that the count of used tokens does not depend on how they were grouped.
        pieces: list[str] = []
        for used, token_id in enumerate(token_ids, start=1):
            piece, matched = self._stop.push(self._detokenizer.push((token_id,)))
            pieces.append(piece)
            if matched is not None:
                return TextChunk("".join(pieces), matched, used)
        return TextChunk("".join(pieces), None, len(token_ids))

    def finish(self) -> TextChunk:
        """No more tokens come: return the text that was held back."""
        rest = self._detokenizer.finish()
        if self._stop is None:
            return TextChunk(rest, None, 0)
        piece, matched = self._stop.push(rest)
        return TextChunk(piece + self._stop.flush(), matched, 0)
