"""One answer while it is generated: what the engine says in, events out."""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from rhizome.common.v1.common_pb2 import Timings
from rhizome.engine.v1.generate_pb2 import (
    Finished,
    FinishReason,
    GenerateResponse,
    Started,
    TokenDelta,
    TokenLogprob,
)
from rhizome_gateway.generation.events import (
    Begun,
    CallBegun,
    Ended,
    Event,
    ParsedEvent,
    PromptScored,
    Reasoning,
    Text,
    TokenLogprobs,
)
from rhizome_gateway.parsing.base import OutputParser
from rhizome_text.text_stream import TextChunk, TextStream
from rhizome_text.tokenizer import Tokenizer
from rhizome_transport.errors import EngineError


class Choice:
    """Turns the tokens of one answer into events; nothing here waits.

    A stop string is the gateway's business: once one is complete, `satisfied` is true, the engine is to be
    told, and only the request's usage and timings are waited for.

    Args:
        tokenizer: shared by all answers of a model.
        stop_strings: end the answer.
        include_stop: whether the stop string that ended it is shown.
        skip_special_tokens: leave tokens such as `<|eot_id|>` out of the text.
        visible_ids: special tokens that are text all the same, because the parser looks for them.
        parser: finds thinking and tool calls; None where there is nothing to find.

    Attributes:
        satisfied: a stop string was found.
        ended: the last event was given out.
    """

    __slots__ = (
        "_begun",
        "_called",
        "_parser",
        "_reasoning_tokens",
        "_skip_special_tokens",
        "_stop",
        "_text",
        "_thinking",
        "_tokenizer",
        "_used",
        "ended",
        "satisfied",
    )

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop_strings: Sequence[str] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
        visible_ids: frozenset[int] = frozenset(),
        parser: OutputParser | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._text = TextStream(
            tokenizer,
            stop_strings,
            skip_special_tokens=skip_special_tokens,
            include_stop=include_stop,
            visible_ids=visible_ids,
        )
        self._parser = parser
        self._begun = Started()
        self._used = 0
        self._reasoning_tokens = 0
        self._thinking = bool(getattr(parser, "inside", False))
        self._called = False
        self._stop: str | None = None
        self.satisfied = False
        self.ended = False

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt; 0 until the engine has begun."""
        return self._begun.prompt_tokens

    @property
    def completion_tokens(self) -> int:
        """Tokens of the answer so far."""
        return self._used

    def feed_tokens(self, token_ids: Sequence[int]) -> Sequence[Event]:
        """Take tokens that came without log probabilities: the usual case, and the fast one."""
        if self.satisfied:
            return ()
        if self._parser is not None:
            return self._parsed(token_ids, (), self._parser)
        chunk = self._push(token_ids)
        return (Text(chunk.text),) if chunk.text else ()

    def feed(self, response: GenerateResponse) -> Sequence[Event]:
        """Take what the engine said.

        Raises:
            EngineError: ABORTED, the engine ended the request before it was done.
        """
        kind = response.WhichOneof("event")
        if kind == "delta":
            return () if self.satisfied else self._delta(response.delta)
        if kind == "started":
            self._begun = response.started
            return (Begun(self._begun.prompt_tokens, self._begun.cached_tokens),)
        if kind == "prompt_logprobs":
            return (PromptScored(response.prompt_logprobs.logprobs),)
        if kind == "finished":
            return self._finished(response.finished)
        return ()

    def lost(self) -> Sequence[Event]:
        """The engine was lost after a stop string: the answer is complete, only its timings are not known."""
        begun = self._begun
        return self._end("stop", begun.prompt_tokens, begun.cached_tokens, Timings())

    def _delta(self, delta: TokenDelta) -> Sequence[Event]:
        if self._parser is not None:
            return self._parsed(delta.token_ids, delta.logprobs, self._parser)
        chunk = self._push(delta.token_ids)
        logprobs = self._logprobs(delta.token_ids[: chunk.num_tokens], delta.logprobs)
        return (Text(chunk.text, logprobs),) if chunk.text or logprobs else ()

    def _parsed(
        self, token_ids: Sequence[int], likelihoods: Sequence[TokenLogprob], parser: OutputParser
    ) -> Sequence[Event]:
        """Token by token, so that counting thinking tokens does not depend on how they were grouped."""
        events: list[Event] = []
        for position, token_id in enumerate(token_ids):
            chunk = self._push((token_id,))
            thinking = self._thinking
            parsed = self._noted(parser.push(chunk.text)) if chunk.text else ()
            # A token counts as thinking unless it begins or continues the answer.
            self._reasoning_tokens += (thinking or self._thinking) and bool(chunk.num_tokens)
            if likelihoods and (logprobs := self._logprobs((token_id,), likelihoods[position:])):
                parsed = _with_logprobs(parsed, logprobs, self._thinking)
            events += parsed
            if self.satisfied:
                break
        return events

    def _push(self, token_ids: Sequence[int]) -> TextChunk:
        chunk = self._text.push(token_ids)
        self._used += chunk.num_tokens
        if chunk.matched_stop is not None:
            self.satisfied, self._stop = True, chunk.matched_stop
        return chunk

    def _noted(self, events: Sequence[ParsedEvent]) -> Sequence[ParsedEvent]:
        for event in events:
            if isinstance(event, CallBegun):
                self._called = True
        self._thinking = bool(getattr(self._parser, "inside", False))
        return events

    def _finished(self, finished: Finished) -> Sequence[Event]:
        if finished.reason == FinishReason.FINISH_REASON_CANCELLED and not self.satisfied:
            raise EngineError(grpc.StatusCode.ABORTED, "The engine ended the request before it was done.")
        length = finished.reason == FinishReason.FINISH_REASON_LENGTH and not self.satisfied
        usage = finished.usage
        if not self.satisfied:
            self._used = usage.completion_tokens
        return self._end(
            "length" if length else "stop", usage.prompt_tokens, usage.cached_tokens, finished.timings
        )

    def _end(self, reason: str, prompt_tokens: int, cached_tokens: int, timings: Timings) -> Sequence[Event]:
        events: list[Event] = []
        rest = "" if self.satisfied else self._text.finish().text
        if self._parser is not None:
            events += self._noted(self._parser.push(rest)) if rest else ()
            events += self._noted(self._parser.finish())
        elif rest:
            events.append(Text(rest))
        if self._called and reason == "stop":
            reason = "tool_calls"
        self.ended = True
        events.append(
            Ended(
                reason,
                prompt_tokens,
                cached_tokens,
                self._used,
                min(self._reasoning_tokens, self._used),
                timings,
                self._stop,
            )
        )
        return events

    def _logprobs(self, token_ids: Sequence[int], likelihoods: Sequence[TokenLogprob]) -> TokenLogprobs:
        """Pair tokens with their log probabilities; tokens without text, such as the last, are left out."""
        if not likelihoods:
            return ()
        tokenizer, skip = self._tokenizer, self._skip_special_tokens
        pairs = zip(token_ids, likelihoods, strict=False)
        return [(i, logprob) for i, logprob in pairs if tokenizer.is_text(i, skip)]


def _with_logprobs(
    events: Sequence[ParsedEvent], logprobs: TokenLogprobs, thinking: bool
) -> Sequence[ParsedEvent]:
    """Give log probabilities to the first text among the events, or to an empty one."""
    for position, event in enumerate(events):
        if isinstance(event, Text | Reasoning):
            return [*events[:position], type(event)(event.text, logprobs), *events[position + 1 :]]
    return [Reasoning("", logprobs) if thinking else Text("", logprobs), *events]
