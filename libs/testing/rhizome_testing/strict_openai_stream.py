"""What may be in a stream of the OpenAI API: each chunk by itself, and the order of the chunks.

Streams are read as far as the client read them; only one that reached its end must have an end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

from openai.types.chat import ChatCompletionChunk
from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel

from rhizome_testing.strict_openai import ErrorEnvelope, TextChunk, problems_of

_DONE = "[DONE]"


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event: its name, empty where it has none, and its data."""

    name: str
    data: str


def chat_stream_problems(body: bytes, *, complete: bool) -> list[str]:
    """What is wrong with the body of a streamed chat completion."""
    return list(_chunk_problems(body, ChatCompletionChunk, _ChatOrder, complete))


def completion_stream_problems(body: bytes, *, complete: bool) -> list[str]:
    """What is wrong with the body of a streamed completion."""
    return list(_chunk_problems(body, TextChunk, _ChoiceOrder, complete))


def response_stream_problems(body: bytes, *, complete: bool) -> list[str]:
    """What is wrong with the body of a streamed response."""
    return list(_response_problems(body, complete))


def parse_events(body: bytes) -> tuple[list[ServerSentEvent], list[str]]:
    """The whole events of a body, and what is wrong with its lines; a cut last event is left out."""
    events: list[ServerSentEvent] = []
    problems: list[str] = []
    blocks = body.split(b"\n\n")
    for block in blocks[:-1]:
        name, data = "", []
        for line in block.split(b"\n"):
            field, separator, value = line.partition(b": ")
            if line.startswith(b":"):
                continue
            if not separator or field not in (b"data", b"event"):
                problems.append(f"a line is neither data, event nor a comment: {line[:80]!r}")
            elif field == b"event":
                name = value.decode()
            else:
                data.append(value.decode())
        if data:
            events.append(ServerSentEvent(name, "\n".join(data)))
        elif name:
            problems.append(f"the event {name} has no data")
    return events, problems


class _ChoiceOrder:
    """The order of chunks that completions and chats share."""

    def __init__(self) -> None:
        self._same: dict[str, Any] = {}
        self._finished: set[int] = set()
        self._seen: set[int] = set()
        self._usage_seen = False

    def problems(self, chunk: dict[str, Any]) -> Iterator[str]:
        if self._usage_seen:
            yield "a chunk comes after the usage"
        for key in ("id", "created", "model", "system_fingerprint"):
            if self._same.setdefault(key, chunk.get(key)) != chunk.get(key):
                yield f"{key} changes within the stream"
        if not chunk["choices"]:
            self._usage_seen = True
            if not chunk.get("usage"):
                yield "a chunk has neither choices nor usage"
        elif chunk.get("usage"):
            yield "usage is in a chunk with choices"
        for choice in chunk["choices"]:
            if choice["index"] in self._finished:
                yield f"choice {choice['index']} goes on after its end"
            yield from self.of_choice(choice)
            self._seen.add(choice["index"])
            if choice.get("finish_reason") is not None:
                self._finished.add(choice["index"])

    def of_choice(self, choice: dict[str, Any]) -> Iterator[str]:
        return iter(())

    def at_end(self) -> Iterator[str]:
        unfinished = self._seen - self._finished
        if unfinished or not self._seen:
            yield f"the stream ends and choices {sorted(unfinished) or 'of any index'} have no finish_reason"
        if self._seen != set(range(len(self._seen))):
            yield f"the indexes of the choices have gaps: {sorted(self._seen)}"


class _ChatOrder(_ChoiceOrder):
    """Each choice says its role first and its end in a chunk without content; calls open before they grow."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: dict[int, int] = {}

    def of_choice(self, choice: dict[str, Any]) -> Iterator[str]:
        index, delta = choice["index"], choice["delta"]
        if (delta.get("role") is None) == (index not in self._seen):
            yield f"choice {index} says its role elsewhere than in its first chunk"
        if choice.get("finish_reason") is not None and delta:
            yield f"choice {index} ends in a chunk that has content"
        for call in delta.get("tool_calls") or ():
            begun = self._calls.get(index, 0)
            if "id" not in call:
                if call["index"] >= begun:
                    yield f"call {call['index']} of choice {index} grows before it begins"
                continue
            if call["index"] != begun:
                yield f"call {call['index']} of choice {index} begins, {begun} was next"
            if call.get("type") != "function" or not (call.get("function") or {}).get("name"):
                yield f"call {call['index']} of choice {index} begins without its type or name"
            self._calls[index] = begun + 1


def _chunk_problems(
    body: bytes, model: type[BaseModel], make_order: Callable[[], _ChoiceOrder], complete: bool
) -> Iterator[str]:
    events, problems = parse_events(body)
    yield from problems
    order, broken_off, done = make_order(), False, False
    for number, event in enumerate(events):
        if done:
            yield "something comes after [DONE]"
            return
        if event.data == _DONE:
            done = True
        elif event.data.startswith('{"error"'):
            broken_off = True
            yield from _at(number, problems_of(ErrorEnvelope, event.data))
        else:
            if broken_off:
                yield f"event {number} comes after an error"
            wrong = problems_of(model, event.data)
            yield from _at(number, wrong or order.problems(json.loads(event.data)))
    if complete and not done:
        yield "the stream ends without [DONE]"
    if done and not broken_off:
        yield from order.at_end()


def _response_problems(body: bytes, complete: bool) -> Iterator[str]:
    events, problems = parse_events(body)
    yield from problems
    ended = False
    for number, event in enumerate(events):
        if ended:
            yield f"event {number} comes after the end"
        fields = _fields(event.data)
        kind = fields.get("type")
        model = _response_events().get(str(kind))
        if model is None:
            yield f"event {number}: the SDK knows no event of type {kind!r}"
            continue
        yield from _at(number, problems_of(model, event.data))
        if event.name != kind:
            yield f"event {number} is named {event.name!r} and is of type {kind!r}"
        if fields.get("sequence_number") != number:
            yield f"event {number} has the number {fields.get('sequence_number')}"
        if (kind == "response.created") != (number == 0):
            yield f"event {number} is {kind}"
        ended = kind in ("response.completed", "response.incomplete", "response.failed", "error")
    if complete and not ended:
        yield "the stream ends before the response does"


def _fields(data: str) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


@cache
def _response_events() -> dict[str, type[BaseModel]]:
    """The SDK's event classes by their type."""
    union = get_args(ResponseStreamEvent)[0]
    return {
        kind: member
        for member in get_args(union)
        for kind in get_args(member.model_fields["type"].annotation)
    }


def _at(number: int, problems: Iterator[str] | Sequence[str]) -> Iterator[str]:
    return (f"event {number}: {problem}" for problem in problems)
