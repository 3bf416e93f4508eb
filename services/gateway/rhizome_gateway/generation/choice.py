"""One answer while it is generated: engine events in, text, log probabilities and the end out."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import grpc

from rhizome.common.v1.common_pb2 import Timings, TraceContext
from rhizome.engine.v1.generate_pb2 import (
    Finished,
    FinishReason,
    GenerateRequest,
    Started,
    TokenDelta,
    TokenLogprob,
)
from rhizome_gateway.generation.tool_calls import ParsedCall, ToolCallParser
from rhizome_text.text_stream import TextStream
from rhizome_text.tokenizer import Tokenizer
from rhizome_transport.client import EngineClient
from rhizome_transport.errors import EngineError


@dataclass(frozen=True, slots=True)
class Begun:
    """The engine took the request."""

    index: int


@dataclass(frozen=True, slots=True)
class Delta:
    """Text that is safe to show, and the tokens that were generated since the last delta.

    Attributes:
        index: which choice.
        text: whole characters; may be empty when there are only log probabilities.
        logprobs: id and log probability of each new token, where they were asked for.
    """

    index: int
    text: str
    logprobs: list[tuple[int, TokenLogprob]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer is complete.

    Attributes:
        index: which choice.
        reason: `stop`, `length` or `tool_calls`.
        prompt_tokens: tokens of the prompt.
        cached_tokens: those of them that came from the prefix cache.
        completion_tokens: tokens of the answer, up to the stop string where one ended it.
        timings: where the engine spent the time.
    """

    index: int
    reason: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    timings: Timings


@dataclass(frozen=True, slots=True)
class Called:
    """The model calls tools; comes right before the end."""

    index: int
    calls: list[ParsedCall]


ChoiceEvent = Begun | Delta | Called | Ended


async def generate_choice(
    client: EngineClient,
    request: GenerateRequest,
    tokenizer: Tokenizer,
    *,
    index: int = 0,
    stop_strings: list[str],
    include_stop: bool = False,
    skip_special_tokens: bool = True,
    timeout_s: float | None = None,
    trace: TraceContext | None = None,
) -> AsyncGenerator[ChoiceEvent, None]:
    """Run one request to its end. Closing the generator cancels it in the engine.

    A stop string is the gateway's business: once one is complete the engine is told to stop, and only the
    request's usage and timings are waited for.

    Raises:
        EngineError: the engine failed or refused.
    """
    text = TextStream(
        tokenizer, stop_strings, skip_special_tokens=skip_special_tokens, include_stop=include_stop
    )
    begun, used, stopped = Started(), 0, False
    try:
        async with aclosing(client.generate(request, timeout_s=timeout_s, trace=trace)) as events:
            async for event in events:
                if event.HasField("started"):
                    begun = event.started
                    yield Begun(index)
                elif event.HasField("finished"):
                    if not stopped and (rest := text.finish().text):
                        yield Delta(index, rest)
                    yield _ended(index, event.finished, used if stopped else None)
                    return
                elif not stopped:
                    delta = event.delta
                    chunk = text.push(delta.token_ids)
                    used += chunk.num_tokens
                    stopped = chunk.matched_stop is not None
                    if stopped:
                        await client.cancel(request.request_id, satisfied=True)
                    logprobs = _logprobs(delta, chunk.num_tokens, tokenizer, skip_special_tokens)
                    if chunk.text or logprobs:
                        yield Delta(index, chunk.text, logprobs)
    except EngineError:
        if not stopped:
            raise
        # The answer is complete; that the engine was lost afterwards costs only its timings.
        yield Ended(index, "stop", begun.prompt_tokens, begun.cached_tokens, used, Timings())
        return
    raise EngineError(grpc.StatusCode.INTERNAL, "The engine's answer broke off.")


async def with_tool_calls(
    events: AsyncGenerator[ChoiceEvent, None], parser: ToolCallParser
) -> AsyncGenerator[ChoiceEvent, None]:
    """Take tool calls out of the text of a choice; closing it closes the choice."""
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Delta):
                text = parser.push(event.text)
                if text or event.logprobs:
                    yield Delta(event.index, text, event.logprobs)
            elif isinstance(event, Ended):
                text, calls = parser.finish()
                if text:
                    yield Delta(event.index, text)
                if calls:
                    yield Called(event.index, calls)
                    if event.reason == "stop":
                        event = replace(event, reason="tool_calls")
                yield event
            else:
                yield event


def _ended(index: int, finished: Finished, used: int | None) -> Ended:
    """The end of a choice; `used` tokens where a stop string ended it, else None."""
    cancelled = finished.reason == FinishReason.FINISH_REASON_CANCELLED
    if cancelled and used is None:
        raise EngineError(grpc.StatusCode.ABORTED, "The engine ended the request before it was done.")
    length = finished.reason == FinishReason.FINISH_REASON_LENGTH and used is None
    return Ended(
        index,
        "length" if length else "stop",
        finished.usage.prompt_tokens,
        finished.usage.cached_tokens,
        finished.usage.completion_tokens if used is None else used,
        finished.timings,
    )


def _logprobs(
    delta: TokenDelta, used: int, tokenizer: Tokenizer, skip_special_tokens: bool
) -> list[tuple[int, TokenLogprob]]:
    """Pair tokens with their log probabilities; tokens without text, such as the last one, are left out."""
    if not delta.logprobs:
        return []
    pairs = zip(delta.token_ids[:used], delta.logprobs[:used], strict=True)
    return [(i, logprob) for i, logprob in pairs if tokenizer.is_text(i, skip_special_tokens)]
