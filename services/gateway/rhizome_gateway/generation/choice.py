"""One answer while it is generated: what the engine says in, events out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
from rhizome_text.detokenizer import IncrementalDetokenizer
from rhizome_text.stop import StopStrings
from rhizome_text.tokenizer import Tokenizer
from rhizome_transport.errors import EngineError


class Choice:
    """Turns the tokens of one answer into events; nothing here waits.

    Stop strings are the gateway's business: they end the *answer*, so they are looked for in its text, not in
    thinking or in the arguments of tool calls. Once one is complete, `satisfied` is true, the engine is to be
    told, and only the request's usage and timings are waited for.

    Args:
        tokenizer: shared by all answers of a model.
        stop_strings: end the answer.
        include_stop: whether the stop string that ended it is shown.
        min_tokens: stop strings do not count before so many tokens.
        skip_special_tokens: leave tokens such as `<|eot_id|>` out of the text.
        visible_ids: special tokens that are text all the same, because the parser looks for them.
        parser: finds thinking and tool calls; None where there is nothing to find.
        ending: the last tokens of the prompt, where the answer goes on from its text.
        keep_ids: remember the tokens.

    Attributes:
        token_ids: of the answer so far, the one that ended it included; empty unless they are kept.
        satisfied: a stop string was found.
        ended: the last event was given out.
        on_prompt_scored: takes what `PromptScored` holds, as it comes.
    """

    __slots__ = (
        "_begun",
        "_called",
        "_detokenizer",
        "_keep_ids",
        "_min_tokens",
        "_parser",
        "_plain",
        "_reasoning_tokens",
        "_skip_special_tokens",
        "_stops",
        "_thinking",
        "_tokenizer",
        "_used",
        "ended",
        "on_prompt_scored",
        "satisfied",
        "token_ids",
    )

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop_strings: Sequence[str] = (),
        include_stop: bool = False,
        min_tokens: int = 0,
        skip_special_tokens: bool = True,
        visible_ids: frozenset[int] = frozenset(),
        parser: OutputParser | None = None,
        ending: Sequence[int] = (),
        keep_ids: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens, visible_ids)
        if ending:
            self._detokenizer.push(ending)
        self._parser = parser
        self._stops = StopStrings(stop_strings, include=include_stop) if stop_strings else None
        self._plain = parser is None and self._stops is None and not keep_ids
        self._keep_ids = keep_ids
        self.token_ids: list[int] = []
        self._min_tokens = min_tokens
        self._begun = Started()
        self._used = 0
        self._reasoning_tokens = 0
        self._thinking = bool(getattr(parser, "inside", False))
        self._called = False
        self.satisfied = False
        self.ended = False
        self.on_prompt_scored: Callable[[Sequence[TokenLogprob]], None] | None = None

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
        if not self._plain:
            return self._singly(token_ids, ())
        self._used += len(token_ids)
        text = self._detokenizer.push(token_ids)
        return (Text(text),) if text else ()

    def feed(self, response: GenerateResponse) -> Sequence[Event]:
        """Take what the engine said.

        Raises:
            EngineError: ABORTED, the engine ended the request before it was done.
        """
        kind = response.WhichOneof("event")
        if kind == "delta":
            return self._delta(response.delta)
        if kind == "started":
            self._begun = response.started
            return (Begun(self._begun.prompt_tokens, self._begun.cached_tokens),)
        if kind == "prompt_logprobs":
            scores = response.prompt_logprobs.logprobs
            if self.on_prompt_scored is not None:
                self.on_prompt_scored(scores)
            return (PromptScored(scores),)
        if kind == "finished":
            return self._finished(response.finished)
        return ()

    def lost(self) -> Sequence[Event]:
        """The engine was lost after a stop string: the answer is complete, only its timings are not known."""
        begun = self._begun
        return self._end("stop", begun.prompt_tokens, begun.cached_tokens, Timings())

    def _delta(self, delta: TokenDelta) -> Sequence[Event]:
        if not self._plain:
            return self._singly(delta.token_ids, delta.logprobs)
        self._used += len(delta.token_ids)
        text = self._detokenizer.push(delta.token_ids)
        logprobs = self._logprobs(delta.token_ids, delta.logprobs)
        return (Text(text, logprobs),) if text or logprobs else ()

    def _singly(self, token_ids: Sequence[int], likelihoods: Sequence[TokenLogprob]) -> Sequence[Event]:
        """Token by token, so that what is counted does not depend on how they were grouped."""
        events: list[Event] = []
        for position, token_id in enumerate(token_ids):
            if self.satisfied:
                break
            self._used += 1
            if self._keep_ids:
                self.token_ids.append(token_id)
            text = self._detokenizer.push((token_id,))
            thinking = self._thinking
            new = self._shown(self._parsed(text)) if text else []
            # A token counts as thinking unless it begins or continues the answer.
            self._reasoning_tokens += thinking or self._thinking
            if likelihoods and (logprobs := self._logprobs((token_id,), likelihoods[position:])):
                new = _with_logprobs(new, logprobs, self._thinking)
            events += new
        return events

    def _parsed(self, text: str) -> Sequence[ParsedEvent]:
        if self._parser is None:
            return (Text(text),)
        events = self._parser.push(text)
        self._thinking = bool(getattr(self._parser, "inside", False))
        return events

    def _shown(self, events: Sequence[ParsedEvent]) -> list[ParsedEvent]:
        """What of some events is shown: up to the stop string, and without what may become one."""
        shown: list[ParsedEvent] = []
        stops = self._stops
        for event in events:
            if isinstance(event, CallBegun):
                self._called = True
            if stops is None or self._used < self._min_tokens:
                shown.append(event)
            elif isinstance(event, Text):
                text, matched = stops.push(event.text)
                if text:
                    shown.append(Text(text))
                if matched is not None:
                    self.satisfied = True
                    break
            else:
                if held := stops.flush():  # no stop string reaches from text into a call
                    shown.append(Text(held))
                shown.append(event)
        return shown

    def _finished(self, finished: Finished) -> Sequence[Event]:
        if finished.reason == FinishReason.FINISH_REASON_CANCELLED and not self.satisfied:
            raise EngineError(grpc.StatusCode.ABORTED, "The engine ended the request before it was done.")
        usage = finished.usage
        if not self.satisfied:
            self._used = usage.completion_tokens
            if self._keep_ids and finished.HasField("stop_token_id"):
                self.token_ids.append(finished.stop_token_id)
        length = finished.reason == FinishReason.FINISH_REASON_LENGTH
        return self._end(
            "length" if length else "stop", usage.prompt_tokens, usage.cached_tokens, finished.timings
        )

    def _end(self, reason: str, prompt_tokens: int, cached_tokens: int, timings: Timings) -> Sequence[Event]:
        events: list[Event] = []
        if not self.satisfied:
            rest = self._detokenizer.finish()
            last: list[ParsedEvent] = list(self._parsed(rest)) if rest else []
            if self._parser is not None:
                last += self._parser.finish()
            events += self._shown(last)
            if self._stops is not None and not self.satisfied and (held := self._stops.flush()):
                events.append(Text(held))
        if self.satisfied:
            reason = "stop"
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
                self._stops.matched if self._stops is not None else None,
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


def _with_logprobs(events: list[ParsedEvent], logprobs: TokenLogprobs, thinking: bool) -> list[ParsedEvent]:
    """Give log probabilities to the first text among the events, or to an empty one."""
    for position, event in enumerate(events):
        if isinstance(event, Text | Reasoning):
            return [*events[:position], type(event)(event.text, logprobs), *events[position + 1 :]]
    return [Reasoning("", logprobs) if thinking else Text("", logprobs), *events]
