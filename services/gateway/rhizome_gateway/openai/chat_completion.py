"""One chat completion from the first engine event to the last byte, streamed or whole."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field

import orjson

from rhizome.engine.v1.generate_pb2 import GenerateRequest, TokenLogprob
from rhizome_gateway.engine_session import ServedModel
from rhizome_gateway.errors import ApiError
from rhizome_gateway.generation.choice import (
    Begun,
    Called,
    ChoiceEvent,
    Delta,
    Ended,
    generate_choice,
    with_tool_calls,
)
from rhizome_gateway.generation.merge import merged
from rhizome_gateway.generation.tool_calls import ParsedCall, ToolCallParser
from rhizome_gateway.http.exchange import Exchange
from rhizome_gateway.openai import sse
from rhizome_gateway.openai.responses import Summary, logprobs_object, message_object
from rhizome_gateway.openai.schema import ChatCompletionRequest
from rhizome_telemetry import semconv
from rhizome_telemetry.asgi import SCOPE_KEY
from rhizome_telemetry.propagation import to_proto
from rhizome_telemetry.tracing import Span, SpanKind, start_span
from rhizome_transport.client import EngineClient


@dataclass
class _Answer:
    """One choice of a whole response."""

    text: list[str] = field(default_factory=list)
    calls: list[ParsedCall] = field(default_factory=list)
    logprobs: list[tuple[int, TokenLogprob]] = field(default_factory=list)


def new_completion_id() -> str:
    """`chatcmpl-...`; names the completion here and in the engine."""
    return f"chatcmpl-{uuid.uuid4().hex}"


class ChatCompletion(Exchange):
    """The response to one request.

    Args:
        client: runs the engine requests.
        served: the model.
        request: what the client asked for.
        engine_requests: one per choice.
        completion_id: the response's id.
        keep_alive_s: silence before a keep-alive comment.
        timeout_s: time for the engine, None for no limit.
    """

    keep_alive = sse.KEEP_ALIVE

    def __init__(
        self,
        client: EngineClient,
        served: ServedModel,
        request: ChatCompletionRequest,
        engine_requests: list[GenerateRequest],
        *,
        completion_id: str,
        keep_alive_s: float,
        timeout_s: float | None,
    ) -> None:
        super().__init__(keep_alive_s)
        self._client = client
        self._served = served
        self._request = request
        self._engine_requests = engine_requests
        self._id = completion_id
        self._timeout_s = timeout_s
        self._created = int(time.time())
        self._summary = Summary()

    async def respond(self) -> None:
        """Generate and send."""
        parent = self._scope.get(SCOPE_KEY)
        with start_span(
            f"{semconv.OPERATION_CHAT} {self._served.info.model}",
            kind=SpanKind.CLIENT,
            parent=parent.trace_parent if isinstance(parent, Span) else None,
        ) as span:
            if span.recording:
                self._describe_request(span)
            async with merged(
                [self._choice(*choice, span) for choice in enumerate(self._engine_requests)]
            ) as events:
                await (self._stream(events) if self._request.stream else self._whole(events))
            if span.recording:
                self._describe_response(span)

    def broken_off(self, error: ApiError) -> bytes:
        """A stream ends with the error as an event."""
        return sse.error_event(error) + sse.DONE

    def _choice(
        self, index: int, engine_request: GenerateRequest, span: Span
    ) -> AsyncGenerator[ChoiceEvent, None]:
        request = self._request
        events = generate_choice(
            self._client,
            engine_request,
            self._served.tokenizer,
            index=index,
            stop_strings=request.stop_strings,
            include_stop=bool(request.include_stop_str_in_output),
            skip_special_tokens=request.skip_special_tokens is not False,
            timeout_s=self._timeout_s,
            trace=to_proto(span.trace_parent),
        )
        if not request.offered_tools:
            return events
        names = [tool.function.name for tool in request.offered_tools]
        parser = ToolCallParser(names, parallel=request.parallel_tool_calls is not False)
        return with_tool_calls(events, parser)

    async def _stream(self, events: AsyncIterator[ChoiceEvent]) -> None:
        writer = sse.ChunkWriter(
            self._id,
            self._created,
            self._request.model,
            self._served.fingerprint,
            include_usage=self._request.include_usage,
        )
        summary, num_choices = self._summary, len(self._engine_requests)
        greeted: set[int] = set()
        async for event in events:
            chunk = b""
            if event.index not in greeted:
                greeted.add(event.index)
                chunk = writer.role(event.index)
            if isinstance(event, Delta):
                logprobs = logprobs_object(event.logprobs, self._served.tokenizer) if event.logprobs else None
                chunk += writer.text(event.index, event.text, logprobs)
            elif isinstance(event, Called):
                chunk += writer.tool_calls(event.index, event.calls)
            elif isinstance(event, Ended):
                summary.add(event, event.reason)
                last = len(summary.finish_reasons) == num_choices
                chunk += writer.finish(event.index, event.reason, summary.performance if last else None)
            if not self.started:
                await self.start(200, sse.HEADERS, chunk)
            elif chunk:
                await self.write(chunk)
        usage = writer.usage(summary.usage) if self._request.include_usage else b""
        await self.end(usage + sse.DONE)

    async def _whole(self, events: AsyncIterator[ChoiceEvent]) -> None:
        answers: defaultdict[int, _Answer] = defaultdict(_Answer)
        async for event in events:
            answer = answers[event.index]
            if isinstance(event, Delta):
                answer.text.append(event.text)
                answer.logprobs += event.logprobs
            elif isinstance(event, Called):
                answer.calls = event.calls
            elif isinstance(event, Ended):
                self._summary.add(event, event.reason)
            else:
                assert isinstance(event, Begun)
        completion = {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._request.model,
            "system_fingerprint": self._served.fingerprint,
            "choices": [
                {
                    "index": index,
                    "message": message_object("".join(answer.text), answer.calls),
                    "logprobs": logprobs_object(answer.logprobs, self._served.tokenizer)
                    if self._request.logprobs
                    else None,
                    "finish_reason": self._summary.finish_reasons[index],
                }
                for index, answer in sorted(answers.items())
            ],
            "usage": self._summary.usage,
            "performance": self._summary.performance,
        }
        await self.send_json(200, orjson.dumps(completion))

    def _describe_request(self, span: Span) -> None:
        request = self._request
        span.set_attributes(
            {
                semconv.GEN_AI_OPERATION_NAME: semconv.OPERATION_CHAT,
                semconv.GEN_AI_PROVIDER_NAME: semconv.PROVIDER_NAME,
                semconv.GEN_AI_REQUEST_MODEL: request.model,
                semconv.GEN_AI_REQUEST_MAX_TOKENS: request.token_limit,
                semconv.GEN_AI_REQUEST_TEMPERATURE: request.temperature,
                semconv.GEN_AI_REQUEST_TOP_P: request.top_p,
                semconv.GEN_AI_REQUEST_TOP_K: request.top_k,
                semconv.GEN_AI_REQUEST_SEED: request.seed,
                semconv.GEN_AI_REQUEST_FREQUENCY_PENALTY: request.frequency_penalty,
                semconv.GEN_AI_REQUEST_PRESENCE_PENALTY: request.presence_penalty,
                semconv.GEN_AI_REQUEST_STREAM: request.stream,
                semconv.GEN_AI_REQUEST_CHOICE_COUNT: request.n,
                semconv.GEN_AI_RESPONSE_ID: self._id,
                semconv.GEN_AI_RESPONSE_MODEL: self._served.info.model,
            }
        )

    def _describe_response(self, span: Span) -> None:
        summary = self._summary
        reasons = [reason for _, reason in sorted(summary.finish_reasons.items())]
        span.set_attributes(
            {
                semconv.GEN_AI_RESPONSE_FINISH_REASONS: reasons,
                semconv.GEN_AI_USAGE_INPUT_TOKENS: summary.prompt_tokens,
                semconv.GEN_AI_USAGE_OUTPUT_TOKENS: summary.completion_tokens,
                semconv.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: summary.cached_tokens,
            }
        )
