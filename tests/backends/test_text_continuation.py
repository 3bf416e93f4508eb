"""What a continuation remembers of a stream, however its server writes it and wherever it is cut."""

from __future__ import annotations

import json
import random
import re
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from rhizome_backends.text_continuation import TextContinuation
from rhizome_relay.request import RelayRequest

WORDS = [
    *(" word", '"', "\\", "\n", "é", "漢", "🙂", "\x00"),
    *("data: ", '"content":', "[DONE]", "}", ",", "\\u00e9", ""),
]
WRITERS = {
    "orjson": orjson.dumps,
    "json": lambda chunk: json.dumps(chunk).encode(),
    "compact": lambda chunk: json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode(),
}


def request(document: dict[str, Any], *, chat: bool) -> RelayRequest:
    path = b"/v1/chat/completions" if chat else b"/v1/completions"
    asked = RelayRequest(b"POST", path, path, "1.1", [])
    asked.body = orjson.dumps({"stream": True, **document})
    asked.complete = True
    return asked


def resumed(continuation: TextContinuation) -> dict[str, Any]:
    """What the next server is asked for."""
    target: Any = SimpleNamespace(kind="vllm", body=lambda asked: asked.body)
    document: dict[str, Any] = orjson.loads(continuation.body(target))
    return document


def chunks(random_: random.Random, *, chat: bool, count: int) -> tuple[list[dict[str, Any]], str, int]:
    """A stream, its text, and in how many events there is some."""
    made, text, tokens = [], "", 0
    for number in range(count):
        word = random_.choice(WORDS)
        text += word
        tokens += bool(word)
        delta: dict[str, Any] = {"content": word}
        if number == 0 or random_.random() < 0.05:
            delta = {"role": "assistant", **delta}
        if random_.random() < 0.05:
            delta["reasoning_content"] = None
        said = {"delta": delta} if chat else {"text": word}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": None}
        more = {"usage": None} if random_.random() < 0.5 else {}
        made.append({"id": "x", "created": 5, "choices": [choice], **more})
    return made, text, tokens


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("chat", [True, False], ids=["chat", "text"])
def test_nothing_said_is_forgotten(chat, writer, end):
    for seed in range(16):
        random_ = random.Random(seed)
        made, text, tokens = chunks(random_, chat=chat, count=random_.choice([1, 5, 600]))
        lead = {"messages": [{"role": "user", "content": "x"}]} if chat else {"prompt": "x"}
        continuation = TextContinuation(request({**lead, "max_tokens": 5000}, chat=chat), lambda kinds: None)
        stream = b""
        for chunk in made:
            stream += b": ping" + end if random_.random() < 0.1 else b""
            stream += b"data: " + WRITERS[writer](chunk) + end
        half = b'data: {"choices": [{"text": "lost", "del'
        whole, got, at = stream, b"", 0
        if seed % 2:  # as most servers send them: each event alone
            for piece in re.findall(b"(?s).+?" + end, stream):
                got += continuation.take(piece, False)
            got += continuation.take(half, False)
        stream += half
        while not seed % 2 and at < len(stream):
            size = random_.choice([1, 7, 300, 20_000]) if len(stream) < 5000 else random_.randint(50, 20_000)
            got += continuation.take(stream[at : at + size], False)
            at += size
        assert got == whole, "whole events, and nothing else"
        assert continuation.end() is None and continuation.possible
        asked = resumed(continuation)
        assert (asked["messages"][-1]["content"] if chat and text else asked.get("prompt", "x")) in (
            text,
            "x" + text,
        )
        assert asked["max_tokens"] == 5000 - tokens


def test_usage_in_events_is_believed_rather_than_their_number():
    asked = request({"messages": [{"role": "user", "content": "x"}], "max_tokens": 100}, chat=True)
    continuation = TextContinuation(asked, lambda kinds: None)
    for tokens in (3, 7, 12):
        choice = {"index": 0, "delta": {"content": " several words"}, "finish_reason": None}
        chunk = {"id": "x", "choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": tokens}}
        continuation.take(b"data: " + orjson.dumps(chunk) + b"\n\n", False)
    assert continuation.end() is None
    assert resumed(continuation)["max_tokens"] == 88


def test_an_event_that_only_looks_like_the_others_is_read_in_full():
    asked = request({"messages": [{"role": "user", "content": "x"}]}, chat=True)
    continuation = TextContinuation(asked, lambda kinds: None)
    plain = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n'
    called = plain.replace(b'"a"', b'"b","tool_calls":[{"index":0}],"x":"y"')
    continuation.take(plain + plain + called + plain, False)
    assert continuation.end() is None
    assert not continuation.possible


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "text"])
def test_a_prompt_of_which_only_the_end_is_read_cannot_be_made_longer(chat):
    """What was said would drive the beginning of the prompt out."""
    lead = {"messages": [{"role": "user", "content": "x"}]} if chat else {"prompt": "a b c d e f"}
    for kept, possible in ((3, False), (-1, False), (None, True)):
        asked = request({**lead, "truncate_prompt_tokens": kept}, chat=chat)
        assert TextContinuation(asked, lambda kinds: None).possible == possible
