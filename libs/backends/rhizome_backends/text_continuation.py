"""How a chat or a completion that one server began is finished by another one.

    asked:   messages                                        max_tokens 100
    first:   "Once upon a" ✗
    asked:   messages + assistant: "Once upon a", go on      max_tokens 97
    second:  " time" …

The rest is asked for as text, so it is exact where the next server reads the text as the tokens that the
first one wrote, and chooses by what it has read: greedily, or by a seed and not by a count of its own steps.
Nothing else is claimed for servers that are not ours; those that are have the exact way of
`rhizome_transport.continuation`. What cannot go on is not tried: several choices, tools, grammars, log
probabilities, and penalties on what was said, which the next server would take for the prompt. A token is
counted for each event with text, unless events tell usage.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter
from typing import Any, Final

import orjson

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
    "tools", "functions", "structured_outputs", "guided_json", "guided_regex",
    "guided_grammar", "guided_choice", "grammar", "json_schema", "regex", "ebnf", "logprobs", "top_logprobs",
    "prompt_logprobs", "truncate_prompt_tokens", "echo", "suffix", "best_of", "presence_penalty",
    "frequency_penalty", "logit_bias", "mirostat",
)  # fmt: skip
_OUTPUT_LIMITS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens", "n_predict")
_LIMITS: Final = ("max_completion_tokens", "max_tokens", "min_tokens", "n_predict")
_IDENTITY: Final = ("id", "object", "created", "model", "system_fingerprint")
_PLAIN: Final = ("role", "content")
_LOG_BYTES: Final = 16 << 10
_FEW_BYTES: Final = 1 << 10
_MOST_UNREAD: Final = 16
_MOST_EVENT_BYTES: Final = 1 << 20
_DONE: Final = b"data: [DONE]\n\n"
_END: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_ODD: Final = (AttributeError, LookupError, TypeError)


def output_limit(document: Mapping[str, Any]) -> int | None:
    """How many tokens the client wants at most; `None` where it does not say."""
    for name in _OUTPUT_LIMITS:
        limit = document.get(name)
        if isinstance(limit, int) and not isinstance(limit, bool) and limit >= 0:
            return limit
    return None


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

    Events are kept as they come and read several at a time: mostly they differ in their text only, so a few
    operations find the texts of all of them.

    Args:
        request: for a stream; see `can_resume`.
        find: a backend of one of the kinds given, any where `None`, that may go on; `None` if there is none.
    """

    __slots__ = (
        "_around", "_before", "_chat", "_edges", "_ended", "_find", "_first", "_limit", "_log", "_most_log",
        "_muted", "_owes_usage", "_reason", "_request", "_resumed", "_said", "_tail", "_text", "_tokens",
        "_unread", "possible",
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
        self._said: list[str] = []  # follows `_text`
        self._log = bytearray()  # events that follow those of `_said`
        self._most_log = _FEW_BYTES
        self._unread: list[bytes] = []  # pieces that follow the log
        self._around = self._edges = (b"", b"")  # an event but for its text, without and with its end
        self._tail = b""
        self._text = ""
        self._tokens = self._before = 0
        self._reason = self._ended = self._resumed = self._muted = False
        self.possible = _possible(document, chat=self._chat)

    def take(self, data: bytes, ended: bool) -> bytes:
        """Keep what the client gets: whole events only, as half of one cannot be taken back."""
        if self.possible and not (self._tail or self._resumed) and data.endswith(b"\n\n"):  # nearly always
            unread = self._unread
            unread.append(data)
            if len(unread) >= _MOST_UNREAD or len(data) > _FEW_BYTES:
                self._keep()
            return data
        if self._tail:
            data, self._tail = self._tail + data, b""
        if not self.possible and not self._resumed:
            return data
        end = len(data) if ended else _last_end(data)
        if not end:
            if len(data) > _MOST_EVENT_BYTES:
                self.possible = False
                return data
            self._tail = data
            return b""
        if end < len(data):
            data, self._tail = data[:end], data[end:]
        if self._resumed:
            return b"".join([self._follow(event) for event in _events(data)])
        self._unread.append(data)
        self._keep()
        return data

    def _keep(self) -> None:
        """Keep of events that differ in their text only no more than that; the log is read later."""
        data = b"".join(self._unread)
        before, behind = self._edges
        if before and not self._log:
            written = list(map(itemgetter(slice(len(before), -len(behind))), self._unread))
            alike = before + (behind + before).join(written) + behind == data  # cheaper than to look at each
            if alike and (text := self._joined(written)) is not None:
                self._unread.clear()
                self._said.append(text)
                return
        self._unread.clear()
        self._log += data
        if len(self._log) > self._most_log:
            self._read()
            self._most_log = _FEW_BYTES if self._around[0] else _LOG_BYTES

    def end(self) -> bytes | None:
        """The end of a stream whose last token is out, if no usage is owed."""
        self._keep()
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
        return self._find(frozenset(_TAKES_PREFIX) if self._chat and self._text else None)

    def body(self, target: Target) -> bytes:
        """The request for the rest, with limits less what is there already.

        Where only the end is missing, that is the end of one token more, which nobody gets to see.
        """
        document: dict[str, Any] = orjson.loads(target.body(self._request))
        self._before = self._tokens
        self._muted = self._reason or (self._limit is not None and self._tokens >= self._limit)
        for name in _LIMITS:
            if isinstance(document.get(name), int):
                rest = 0 if self._muted else document[name] - self._tokens
                document[name] = max(0 if name == "min_tokens" else 1, rest)
        if self._muted and self._limit is None:
            document["max_tokens"] = 1
        if not self._chat:
            document["prompt"] += self._text
        elif self._text:
            messages = document["messages"]
            if document.get("continue_final_message"):
                messages[-1]["content"] += self._text
            else:
                messages.append({"role": "assistant", "content": self._text})
            document |= _TAKES_PREFIX[target.kind]
        return orjson.dumps(document)

    def _read(self) -> None:
        """Learn from the events in the log.

        Where what surrounds a text is that of the last event that was read in full, the texts of all of them
        are read at once.
        """
        self._text += "".join(self._said)
        self._said.clear()
        log, self._log = bytes(self._log), bytearray()
        alike: list[bytes] = []
        for event in log.split(b"\n\n") if b"\r" not in log else _events(log):
            before, behind = self._around
            end = len(event) - len(behind)
            if before and end >= len(before) and event.startswith(before) and event.endswith(behind):
                alike.append(event[len(before) : end])
                continue
            self._add(alike)
            payload = _payload(event)
            if payload == b"[DONE]":
                self._ended = True
            elif payload:
                self._note(_chunk(payload))
                self._around = self._surroundings(event, payload)
        self._add(alike)
        before, behind = self._around
        self._edges = (before, behind if behind.endswith(b"\n") else behind + b"\n\n")

    def _add(self, alike: list[bytes]) -> None:
        """Count the events that differ in these texts only, and forget them."""
        text = self._joined(alike)
        if text is not None:
            self._text += text
        else:
            before, behind = self._around
            for written in alike:
                self._note(_chunk(_payload(before + written + behind)))
        alike.clear()

    def _joined(self, written: list[bytes]) -> str | None:
        """One text of several, which are counted; `None` where they are not all strings of JSON."""
        with contextlib.suppress(orjson.JSONDecodeError, TypeError):
            texts: list[str] = orjson.loads(b"[%b]" % b",".join(written))
            text = "".join(texts)
            if len(texts) == len(written):
                self._tokens += len(texts) - texts.count("")
                return text
        return None

    def _surroundings(self, event: bytes, payload: bytes) -> tuple[bytes, bytes]:
        """What an event has before and behind its text, if it has nothing to say but that."""
        name = b'"content":' if self._chat else b'"text":'
        chunk = _chunk(payload)
        if chunk is None or chunk.get("usage") or event.count(name) != 1 or event.count(b"data:") != 1:
            return b"", b""
        with contextlib.suppress(*_ODD):
            (choice,) = chunk["choices"]
            text = choice["delta"]["content"] if self._chat else choice["text"]
            begin = event.index(name) + len(name)
            rest = event[begin:].lstrip()
            written = orjson.dumps(text)
            if text and not choice.get("finish_reason") and rest.startswith(written):
                return event[: len(event) - len(rest)], rest[len(written) :]
        return b"", b""

    def _note(self, chunk: dict[str, Any] | None) -> None:
        """Count what a chunk says; what cannot be read could not be told to the next server either."""
        try:
            if chunk is None or chunk.get("error"):
                self.possible = False
                return
            if self._first is None:
                self._first = {name: chunk[name] for name in _IDENTITY if name in chunk}
            for choice in chunk.get("choices") or ():
                self._note_choice(choice)
            usage = chunk.get("usage")
            if usage is not None and not chunk.get("choices"):
                self._owes_usage = False
            elif usage is not None:
                self._tokens = int(usage["completion_tokens"])
        except _ODD:
            self.possible = False

    def _note_choice(self, choice: dict[str, Any]) -> None:
        said = (choice.get("delta") or {}) if self._chat else choice
        if text := said.get("content" if self._chat else "text"):
            self._text += text
            self._tokens += 1
        if self._chat and any(value for name, value in said.items() if name not in _PLAIN):
            self.possible = False
        self._reason = self._reason or bool(choice.get("finish_reason"))

    def _follow(self, event: bytes) -> bytes:
        """An event of a server that goes on, as the client gets it: with the names of the first one."""
        payload = _payload(event)
        if payload == b"[DONE]":
            self._ended = True
        if not payload or self._ended:
            return event
        chunk = _chunk(payload)
        if chunk is None or self._first is None:  # or the client has got nothing yet
            self._note(chunk)
            return event
        try:
            return self._told(chunk)
        except _ODD:
            self.possible = False
            return event

    def _told(self, chunk: dict[str, Any]) -> bytes:
        usage, choices = chunk.get("usage"), chunk.get("choices") or []
        reason_told = self._reason
        told = [choice for choice in choices if self._adds(choice) and not (self._muted and reason_told)]
        if usage is not None:
            usage["prompt_tokens"] -= self._before
            usage["completion_tokens"] = self._before + (0 if self._muted else usage["completion_tokens"])
            usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
        elif choices and not told:
            return b""
        if choices:
            chunk["choices"] = told
        self._note(chunk)
        return b"data: %b\n\n" % orjson.dumps(chunk | (self._first or {}))

    def _adds(self, choice: dict[str, Any]) -> bool:
        """Whether a choice says more than that an answer begins; takes out what the client must not get."""
        said = (choice.get("delta") or {}) if self._chat else choice
        said.pop("role", None)
        name = "content" if self._chat else "text"
        if self._muted and said.get(name):
            said[name] = ""
        if choice.get("finish_reason"):
            return True
        return any(said.values()) if self._chat else bool(said.get(name))


def _possible(document: dict[str, Any], *, chat: bool) -> bool:
    """Whether nothing in a request would get lost with the server that began to answer it."""
    if document.get("n") not in (None, 1) or type(document.get("logprobs")) is int:
        return False
    if any(document.get(name) for name in _NEVER) or not _is_free(document.get("response_format")):
        return False
    if not chat:
        return isinstance(document.get("prompt"), str)
    messages = document.get("messages")
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        return False
    if document.get("continue_final_message"):
        return isinstance(messages[-1].get("content"), str)
    return messages[-1].get("role") != "assistant"  # some servers go on with it, others do not


def _is_free(response_format: Any) -> bool:
    return not response_format or response_format == {"type": "text"}


def _last_end(data: bytes) -> int:
    """Where the last whole event ends; 0 where none does."""
    if data.endswith((b"\n\n", b"\r\n\r\n")):
        return len(data)
    return max(
        data.rfind(b"\n\n") + 2 if b"\n\n" in data else 0,
        data.rfind(b"\r\n\r\n") + 4 if b"\r\n\r\n" in data else 0,
        data.rfind(b"\r\r") + 2 if b"\r\r" in data else 0,
    )


def _events(data: bytes) -> Iterator[bytes]:
    """Whole events, each with the empty line that ends it; what is behind the last one comes as it is."""
    begin = 0
    for end in _END.finditer(data):
        yield data[begin : end.end()]
        begin = end.end()
    if begin < len(data):
        yield data[begin:]


def _payload(event: bytes) -> bytes:
    """What an event carries; nothing for comments and the like, nonsense for one that has a name."""
    if b"event:" in event and not event.startswith(b"data:"):
        return event
    return b"\n".join([line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")])


def _chunk(payload: bytes) -> dict[str, Any] | None:
    """The object that an event carries; `None` where it cannot be read."""
    with contextlib.suppress(orjson.JSONDecodeError):
        chunk = orjson.loads(payload)
        if isinstance(chunk, dict):
            return chunk
    return None
