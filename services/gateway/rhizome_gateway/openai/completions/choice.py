"""One answer of a completion while it is generated: it goes on from its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rhizome.engine.v1.generate_pb2 import GenerateResponse, TokenDelta, TokenLogprob
from rhizome_gateway.generation.choice import Choice
from rhizome_gateway.generation.events import Ended, Event, PromptScored, Text, TokenLogprobs
from rhizome_gateway.openai.completions.shown import ShownChoice
from rhizome_text.tokenizer import Tokenizer


class ContinuingChoice(Choice):
    """Its text begins where the prompt's ends, and every token has a log probability.

    A text of its own might lose the space before its first word, or begin inside a character.

    Args:
        tokenizer: of the model.
        ending: the last tokens of the prompt.
        end_ids: tokens that end the answer, but that the engine was told to report like any other.
        collector: takes all that is shown, at once, so that what a long prompt's log probabilities cost is
            spread over the time that the engine takes for them. None where a stream shows it.
        **options: see `Choice`.
    """

    __slots__ = ("_collector", "_end_ids", "_ended_by_token")

    def __init__(
        self,
        tokenizer: Tokenizer,
        ending: Sequence[int],
        *,
        end_ids: frozenset[int] = frozenset(),
        collector: ShownChoice | None = None,
        **options: Any,
    ) -> None:
        super().__init__(tokenizer, ending=ending, **options)
        self._end_ids = end_ids
        self._collector = collector
        self._ended_by_token = False

    def feed_tokens(self, token_ids: Sequence[int]) -> Sequence[Event]:
        """See `Choice.feed_tokens`."""
        return self._left(super().feed_tokens(token_ids))

    def feed(self, response: GenerateResponse) -> Sequence[Event]:
        """See `Choice.feed`."""
        events = super().feed(response)
        if self._ended_by_token:
            events = [replace(event, reason="stop") if type(event) is Ended else event for event in events]
        return self._left(events)

    def _left(self, events: Sequence[Event]) -> Sequence[Event]:
        """What the collector leaves to others."""
        if self._collector is None:
            return events
        for event in events:
            self._collector.collect(event)
        return [event for event in events if not isinstance(event, Text | PromptScored)]

    def _delta(self, delta: TokenDelta) -> Sequence[Event]:
        if self._end_ids.isdisjoint(delta.token_ids):
            return super()._delta(delta)
        self._ended_by_token = True
        self._used += len(delta.token_ids)
        if self._keep_ids:
            self.token_ids += delta.token_ids
        return (Text("", self._logprobs(delta.token_ids, delta.logprobs)),)

    def _logprobs(self, token_ids: Sequence[int], likelihoods: Sequence[TokenLogprob]) -> TokenLogprobs:
        """Those without text too: evaluations count the entries."""
        return list(zip(token_ids, likelihoods, strict=False))
