"""`Generate` on the front: a request of a person or a script, with text in and out and stop strings."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence

import grpc

from rhizome.common.v1.common_pb2 import TraceContext
from rhizome.engine.v1.generate_pb2 import (
    FINISH_REASON_STOP,
    GenerateRequest,
    GenerateResponse,
    TokenDelta,
    TokenIds,
)
from rhizome_engine.front.core_link import CoreLink, lost_error
from rhizome_engine.front.text_prompt import prompt_ids, word_ids
from rhizome_text.text_stream import TextStream
from rhizome_text.tokenizer import Tokenizer
from rhizome_transport.errors import EngineError

_MAX_STOP_STRINGS = 16
_MAX_STOP_CHARS = 256


class TextGeneration:
    """Runs `Generate` requests through the front's own connection to the core.

    The core tells requests apart by the ids of one peer, and all callers of `Generate` are one peer to it. So
    each request travels under an id made here, and the caller's own id only serves `abort`.
    """

    def __init__(self, link: Callable[[], CoreLink], tokenizer: Tokenizer) -> None:
        """Take a function that gives the link to a serving core or raises EngineError."""
        self._link = link
        self._tokenizer = tokenizer
        self._open: defaultdict[str, set[str]] = defaultdict(set)

    async def run(
        self, request: GenerateRequest, *, timeout_s: float | None, trace: TraceContext | None
    ) -> AsyncGenerator[GenerateResponse, None]:
        """Yield the events of one request.

        Raises:
            EngineError: the request is wrong, was refused, or its core died.
        """
        link = self._link()
        with_text = request.WhichOneof("input") in ("text", "messages")
        _check(request, with_text=with_text)
        core_request = await self._core_request(request)
        text: TextStream | None = None
        if request.echo:
            text = ContinuedText(self._tokenizer, request.stop.strings, core_request.token_ids.ids)
        elif with_text or request.stop.strings:
            text = TextStream(self._tokenizer, request.stop.strings)
        caller_id, core_id = request.request_id, core_request.request_id
        if caller_id:
            self._open[caller_id].add(core_id)
        events = link.client.generate(core_request, timeout_s=timeout_s, trace=trace)
        emitted = False
        try:
            translation = _WithText(text, show=with_text) if text else None
            async for event in events:
                if translation is None:
                    outgoing = [event]
                else:
                    was_stopped = translation.matched_stop is not None
                    outgoing = translation.translate(event)
                    if translation.matched_stop is not None and not was_stopped:
                        await link.client.cancel(core_id, satisfied=True)
                for response in outgoing:
                    emitted = True
                    yield response
        except EngineError:
            if link.lost.is_set():
                raise lost_error(emitted=emitted) from None
            raise
        finally:
            await events.aclose()
            if caller_id:
                self._open[caller_id].discard(core_id)
                if not self._open[caller_id]:
                    del self._open[caller_id]

    async def _core_request(self, request: GenerateRequest) -> GenerateRequest:
        """What the core is asked, which knows no text."""
        copy = GenerateRequest()
        copy.CopyFrom(request)
        copy.request_id = f"generate-{uuid.uuid4().hex}"
        copy.token_ids.CopyFrom(TokenIds(ids=await prompt_ids(request, self._tokenizer)))
        copy.ClearField("echo")
        copy.stop.ClearField("strings")
        if request.sampling.bad_words:
            words = await word_ids(request.sampling.bad_words, self._tokenizer)
            copy.sampling.bad_token_sequences.extend(TokenIds(ids=ids) for ids in words)
            copy.sampling.ClearField("bad_words")
        return copy

    async def abort(self, caller_id: str) -> None:
        """End the requests that came under this id; unknown ones are ignored."""
        for core_id in list(self._open.get(caller_id, ())):
            await self._link().client.cancel(core_id)


class ContinuedText(TextStream):
    """The text of an answer that goes on from its prompt, rather than beginning a text of its own.

    Some tokenizers drop the space before the first word of a text; here that word is the prompt's.

    Attributes:
        prompt_text: the prompt's own, without special tokens. Stop strings are not looked for in it.
    """

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str], prompt: Sequence[int]) -> None:
        super().__init__(tokenizer, stop_strings)
        self.prompt_text = self._detokenizer.push(prompt)


class _WithText:
    """Adds text to the events of one request and ends it at a stop string.

    Attributes:
        matched_stop: the stop string that was found; the request is to be cancelled then.
    """

    def __init__(self, text: TextStream, *, show: bool) -> None:
        self.matched_stop: str | None = None
        self._text = text
        self._show = show

    def translate(self, event: GenerateResponse) -> list[GenerateResponse]:
        """What the caller sees of one event of the core."""
        kind = event.WhichOneof("event")
        if kind == "delta":
            return self._delta(event.delta)
        if kind == "finished":
            return self._finished(event)
        if kind == "started" and isinstance(self._text, ContinuedText):
            return [event, GenerateResponse(delta=TokenDelta(text=self._text.prompt_text))]
        return [event]

    def _delta(self, delta: TokenDelta) -> list[GenerateResponse]:
        if self.matched_stop is not None:
            return []
        chunk = self._text.push(delta.token_ids)
        self.matched_stop = chunk.matched_stop
        del delta.token_ids[chunk.num_tokens :]
        del delta.logprobs[chunk.num_tokens :]
        if self._show:
            delta.text = chunk.text
        return [GenerateResponse(delta=delta)] if delta.token_ids or delta.text else []

    def _finished(self, event: GenerateResponse) -> list[GenerateResponse]:
        responses: list[GenerateResponse] = []
        if self.matched_stop is None:
            rest = self._text.finish()
            self.matched_stop = rest.matched_stop
            if rest.text and self._show:
                responses.append(GenerateResponse(delta=TokenDelta(text=rest.text)))
        if self.matched_stop is not None:
            event.finished.reason = FINISH_REASON_STOP
            event.finished.stop_string = self.matched_stop
        return [*responses, event]


def _check(request: GenerateRequest, *, with_text: bool) -> None:
    """Refuse what nobody behind the front can judge, because it is about text."""
    strings = request.stop.strings
    if "" in strings:
        problem, param = "a stop string is empty and would end every text; leave it out", "stop.strings"
    elif len(strings) > _MAX_STOP_STRINGS or any(len(text) > _MAX_STOP_CHARS for text in strings):
        # Each is looked for in all that is generated, for all who are served.
        problem = f"at most {_MAX_STOP_STRINGS} stop strings of {_MAX_STOP_CHARS} characters are taken"
        param = "stop.strings"
    elif request.echo and not with_text:
        problem, param = "echo repeats text: send the prompt as text or messages", "echo"
    elif request.resumed_tokens and with_text:
        problem = "resumed_tokens counts token ids: send the prompt as token_ids"
        param = "resumed_tokens"
    else:
        return
    raise EngineError(grpc.StatusCode.INVALID_ARGUMENT, problem, param=param)
