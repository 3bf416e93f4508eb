"""What one choice shows: its prompt where it is echoed, its text, and the log probabilities of both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rhizome.engine.v1.generate_pb2 import TokenLogprob
from rhizome_gateway.generation.events import Begun, Event, PromptScored, Text, TokenLogprobs
from rhizome_gateway.openai.completions.logprobs import LogprobColumns, ScoredToken, columns
from rhizome_gateway.tokenization.inputs import ModelInput
from rhizome_gateway.tokenization.spelling import Spelling
from rhizome_text.detokenizer import IncrementalDetokenizer
from rhizome_text.tokenizer import Tokenizer


class Piece(NamedTuple):
    """More of a choice; `logprobs` is absent where none are shown."""

    text: str
    logprobs: LogprobColumns | None = None


class ShownChoice:
    """Turns the events of one choice into pieces.

    Where log probabilities are shown, a second detokenizer follows the tokens one by one: it finds where the
    text of each begins, whatever is held back of the text itself because a stop string may be in it.

    Args:
        tokenizer: of the model.
        spelled: writes its tokens.
        prompt: what is continued.
        echo: the prompt's text, where the client wants to see it.
        scored: show log probabilities.
        hidden_ids: special tokens without text.
        end_ids: tokens that have no text where they end the answer.

    Attributes:
        pieces: what was collected.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        spelled: Spelling,
        prompt: ModelInput,
        *,
        echo: str | None,
        scored: bool,
        hidden_ids: frozenset[int],
        end_ids: frozenset[int] = frozenset(),
    ) -> None:
        self._spelled = spelled
        self._prompt = prompt
        self._echo = echo
        self._scored = scored
        self._hidden_ids = hidden_ids
        self._without_text = hidden_ids | end_ids
        self._offset = 0
        self._told = 0  # tokens of the prompt
        self._detokenizer: IncrementalDetokenizer | None = None
        if scored:
            self._detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=False)
            if echo is None:
                self._detokenizer.push(prompt.ending(hidden_ids))
        self._logprob_sum = 0.0
        self._num_said = 0
        self.pieces: list[Piece] = []

    @property
    def mean_logprob(self) -> float:
        """Of the answer's tokens; 0 without any."""
        return self._logprob_sum / self._num_said if self._num_said else 0.0

    def piece(self, event: Event) -> Piece | None:
        """What an event adds; None for nothing."""
        match event:
            case Text():
                return self._said(event.text, event.logprobs)
            case Begun() if self._echo is not None:
                return self._prompt_piece([None]) if self._scored else Piece(self._echo)
            case PromptScored() if event.logprobs and self._scored and self._echo is not None:
                return self._prompt_piece(event.logprobs)
        return None

    def collect(self, event: Event) -> None:
        """Keep what an event adds, for a response that is sent at once."""
        if (piece := self.piece(event)) is not None:
            self.pieces.append(piece)

    def _said(self, text: str, logprobs: TokenLogprobs) -> Piece:
        self._num_said += len(logprobs)
        self._logprob_sum += sum(logprob.logprob for _, logprob in logprobs)
        if not (self._scored and logprobs):
            return Piece(text)
        hidden = self._without_text
        _, found = self._follow((i, logprob, i not in hidden) for i, logprob in logprobs)
        return Piece(text, columns(found, self._spelled))

    def _prompt_piece(self, logprobs: Sequence[TokenLogprob | None]) -> Piece:
        prompt, first = self._prompt, self._told
        self._told += len(logprobs)
        text, found = self._follow(
            (prompt.token_ids[place], logprob, prompt.shows(place, self._hidden_ids))
            for place, logprob in enumerate(logprobs, first)
        )
        return Piece(text, columns(found, self._spelled))

    def _follow(
        self, tokens: Iterable[tuple[int, TokenLogprob | None, bool]]
    ) -> tuple[str, list[ScoredToken]]:
        """The text of tokens, and where each begins; each comes with whether it has text."""
        assert self._detokenizer is not None
        texts: list[str] = []
        found: list[ScoredToken] = []
        for token_id, logprob, visible in tokens:
            found.append(ScoredToken(token_id, logprob, self._offset))
            if visible and (text := self._detokenizer.push((token_id,))):
                texts.append(text)
                self._offset += len(text)
        return "".join(texts), found
