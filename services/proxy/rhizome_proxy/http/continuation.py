"""How a chat or a completion that one server began is finished by another one.

    asked:   messages                                        max_tokens 100
    first:   "Once upon a" ✗
    asked:   messages + assistant: "Once upon a", go on      max_tokens 97
    second:  " time" …

The rest is asked for as text, so it is exact where the next server reads the text as the tokens that the
first one wrote, and chooses by what it has read: greedily, or by a seed and not by a count of its own steps.
Nothing else is claimed for servers that are not ours; `service/continuation.py` has the exact way for those
that are. What cannot go on is not tried: several choices, tools, grammars, log probabilities, and penalties
on what was said, which the next server would take for the prompt.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final

import orjson

from rhizome_proxy.http.reading import output_limit
from rhizome_relay.picker import Target
from rhizome_relay.request import RelayRequest

CHAT_PATHS: Final = frozenset((b"/v1/chat/completions", b"/chat/completions"))
PATHS: Final = CHAT_PATHS | {b"/v1/completions", b"/completions"}

_TAKES_PREFIX: Final = {
    "vllm": {"continue_final_message": True, "add_generation_prompt": False},
    "sglang": {"continue_final_message": True},
    "llamacpp": {},
}
"""Kinds that go on with the last message of a chat, and what they want to be told."""

_NEVER: Final = (
    "tools", "functions", "response_format", "structured_outputs", "guided_json", "guided_regex",
    "guided_grammar", "guided_choice", "grammar", "json_schema", "regex", "ebnf", "logprobs", "top_logprobs",
    "prompt_logprobs", "echo", "suffix", "best_of", "presence_penalty", "frequency_penalty", "logit_bias",
)  # fmt: skip
_LIMITS: Final = ("max_completion_tokens", "max_tokens", "min_tokens", "n_predict")
_IDENTITY: Final = ("id", "object", "created", "model", "system_fingerprint")
_PLAIN: Final = ("role", "content")
_LOG_BYTES: Final = 16 << 10
_DONE: Final = b"data: [DONE]\n\n"


def can_resume(request: RelayRequest) -> bool:
    """Whether a request is for a stream that could go on elsewhere, and its sender wants that."""
    if request.method != b"POST" or request.path not in PATHS or not request.held:
        return False
    document = request.json()
    if not isinstance(document, dict) or document.get("stream") is not True:
        return False
    return request.header(b"x-rhizome-no-resume") is None


class TextContinuation:
    """Remembers what a client has got of a stream; see `rhizome_relay.picker.Continuation`.

    Args:
        request: for a stream; see `can_resume`.
        find: a backend of one of the kinds given, any where `None`, that may go on; `None` if there is none.
    """

    __slots__ = (
        "_before", "_chat", "_ended", "_find", "_first", "_limit", "_log", "_owes_usage", "_reason",
        "_request", "_resumed", "_tail", "_text", "_tokens", "possible",
    )  # fmt: skip

    def __init__(self, request: RelayRequest, find: Callable[[frozenset[str] | None], Target | None]) -> None:
        document: dict[str, Any] = request.json()
        options = document.get("stream_options")
        self._request = request
        self._find = find
        self._chat = request.path in CHAT_PATHS
        self._limit = output_limit(document)
        self._owes_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        self._first: dict[str, Any] | None = None
        self._log = bytearray()
        self._tail = b""
        self._text = ""
        self._tokens = self._before = 0
        self._reason = self._ended = self._resumed = False
        self.possible = _possible(document, chat=self._chat)

    def take(self, data: bytes, ended: bool) -> bytes:
        """Keep what the client gets: whole events only, as half of one cannot be taken back."""
        if not self.possible:
            data, self._tail = self._tail + data, b""
            return data
        data = self._tail + data
        end = len(data) if ended else data.rfind(b"\n\n") + 2
        if end == 1:
            self._tail = data
            return b""
        whole, self._tail = data[:end], data[end:]
        if self._resumed:
            return b"".join([self._follow(event) for event in _events(whole)])
        self._log += whole
        if len(self._log) > _LOG_BYTES:
            self._read()
        return whole

    def end(self) -> bytes | None:
        """The end of a stream whose last token is out, if no usage is owed."""
        self._read()
        if self._ended:
            return b""
        if self._owes_usage or not self.possible:
            return None
        if self._reason:
            return _DONE
        if self._limit is None or self._tokens < self._limit or self._first is None:
            return None
        said: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": "length"}
        return b"data: %b\n\n%b" % (orjson.dumps({**self._first, "choices": [choice]}), _DONE)

    def next_target(self) -> Target | None:
        """A server that takes the beginning of an answer."""
        self._tail = b""
        self._resumed = True
        return self._find(frozenset(_TAKES_PREFIX) if self._chat else None)

    def body(self, target: Target) -> bytes:
        """The request for the rest, with limits less what is there already."""
        document: dict[str, Any] = orjson.loads(target.body(self._request))
        self._before = self._tokens
        for name in _LIMITS:
            if isinstance(document.get(name), int):
                document[name] = max(0 if name == "min_tokens" else 1, document[name] - self._tokens)
        if not self._chat:
            document["prompt"] += self._text
        elif self._text:
            messages = document["messages"]
            if document.get("continue_final_message") and isinstance(messages[-1].get("content"), str):
                messages[-1]["content"] += self._text
            else:
                messages.append({"role": "assistant", "content": self._text})
            document |= _TAKES_PREFIX[target.kind]
        return orjson.dumps(document)

    def _read(self) -> None:
        """Learn from the events that the client has got."""
        log, self._log = bytes(self._log), bytearray()
        for event in _events(log):
            if event == _DONE:
                self._ended = True
            elif (chunk := _chunk(event)) is not None:
                self._note(chunk)

    def _note(self, chunk: dict[str, Any]) -> None:
        """Count what a chunk says."""
        if self._first is None:
            self._first = {name: chunk[name] for name in _IDENTITY if name in chunk}
        if isinstance(chunk.get("usage"), dict) and not chunk.get("choices"):
            self._owes_usage = False
        if "error" in chunk:
            self.possible = False
        for choice in chunk.get("choices") or ():
            said = choice.get("delta") if self._chat else choice
            text = said.get("content" if self._chat else "text") or ""
            if text:
                self._text += text
                self._tokens += 1
            if self._chat and any(value for name, value in said.items() if name not in _PLAIN):
                self.possible = False
            self._reason = self._reason or bool(choice.get("finish_reason"))

    def _follow(self, event: bytes) -> bytes:
        """An event of a server that goes on, as the client gets it: with the names of the first one."""
        if event == _DONE:
            self._ended = True
            return event
        chunk = _chunk(event)
        if chunk is None:
            return event
        usage = chunk.get("usage")
        self._note(chunk)
        choices = chunk.get("choices") or []
        if self._chat and choices and not usage:
            delta = choices[0].get("delta") or {}
            delta.pop("role", None)
            if not any(delta.values()) and not choices[0].get("finish_reason"):
                return b""  # the beginning of an answer that has begun
        if isinstance(usage, dict) and isinstance(usage.get("prompt_tokens"), int):
            usage["prompt_tokens"] -= self._before
            usage["completion_tokens"] = usage.get("completion_tokens", 0) + self._before
        return b"data: %b\n\n" % orjson.dumps(chunk | (self._first or {}))


def _possible(document: dict[str, Any], *, chat: bool) -> bool:
    """Whether nothing in a request would get lost with the server that began to answer it."""
    if document.get("n") not in (None, 1) or any(document.get(name) for name in _NEVER):
        return False
    if not chat:
        return isinstance(document.get("prompt"), str)
    messages = document.get("messages")
    return isinstance(messages, list) and bool(messages) and isinstance(messages[-1], dict)


def _events(data: bytes) -> Iterator[bytes]:
    """Whole events, each with the empty line that ends it; what is behind the last one comes as it is."""
    begin = 0
    while (end := data.find(b"\n\n", begin) + 2) > 1:
        yield data[begin:end]
        begin = end
    if begin < len(data):
        yield data[begin:]


def _chunk(event: bytes) -> dict[str, Any] | None:
    """The object of an event; `None` for comments and what cannot be read."""
    if not event.startswith(b"data:"):
        return None
    with contextlib.suppress(orjson.JSONDecodeError):
        chunk = orjson.loads(event[5:])
        if isinstance(chunk, dict):
            return chunk
    return None
