"""A response as OpenAI's API shows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import orjson

from rhizome_gateway.generation.events import CallArguments, CallBegun, Event, Reasoning, Text
from rhizome_gateway.generation.summary import Answer, CollectedCall, Summary
from rhizome_gateway.openai.responses.response_object import ResponseObject
from rhizome_gateway.openai.responses.stream import OutputOptions, ResponseStream


class ResponseRendering:
    """Shows one response; see `generation.writer.Rendering`."""

    def __init__(self, response: ResponseObject, options: OutputOptions) -> None:
        self._response = response
        self._options = options

    def stream(self, summary: Summary) -> ResponseStream:
        """Begin a stream."""
        return ResponseStream(self._response, self._options, summary)

    def whole(self, answers: Sequence[Answer], summary: Summary) -> bytes:
        """The whole response: what a stream of the same events comes to."""
        (answer,) = answers
        stream = self.stream(summary)
        for event in _events(answer):
            stream.event(0, event)
        return orjson.dumps(stream.response())


def _events(answer: Answer) -> Iterator[Event]:
    """An answer as the fewest events."""
    calls = 0
    for part in answer.parts:
        if isinstance(part, CollectedCall):
            yield CallBegun(calls, part.id, part.name)
            yield CallArguments(calls, part.arguments)
            calls += 1
        elif part.thinking:
            yield Reasoning(part.text, part.logprobs)
        else:
            yield Text(part.text, part.logprobs)
    assert answer.ended is not None
    yield answer.ended
