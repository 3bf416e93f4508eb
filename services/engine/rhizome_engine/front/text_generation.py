"""`Generate` on the front: a request of a person or a script, with text in and out and stop strings."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable

import grpc

from rhizome.common.v1.common_pb2 import TraceContext
from rhizome.engine.v1.generate_pb2 import (
    FINISH_REASON_STOP,
    GenerateRequest,
    GenerateResponse,
    TokenDelta,
)
from rhizome_engine.front.core_link import CoreLink, lost_error
from rhizome_engine.front.text_prompt import tokenised
from rhizome_text.text_stream import TextStream
from rhizome_text.tokenizer import Tokenizer
from rhizome_transport.errors import EngineError


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
        stops = list(request.stop.strings)
        if "" in stops:
            raise EngineError(
                grpc.StatusCode.INVALID_ARGUMENT,
                "a stop string is empty and would end every text; leave it out",
                param="stop.strings",
            )
        core_request = await tokenised(request, self._tokenizer)
        core_request.request_id = f"generate-{uuid.uuid4().hex}"
        core_request.stop.ClearField("strings")
        text = TextStream(self._tokenizer, stops) if with_text or stops else None
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

    async def abort(self, caller_id: str) -> None:
        """End the requests that came under this id; unknown ones are ignored."""
        for core_id in list(self._open.get(caller_id, ())):
            await self._link().client.cancel(core_id)


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
