"""Asks over HTTP and looks at every byte of the answer, to find cuts that no byte betrays."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from typing import Any, Final

from rhizome_testing.storm.outcome import Ending, Outcome
from rhizome_testing.storm.question import Question, topics

MODEL: Final = "simulated"
_TOKEN_CHARS: Final = 4
_LEARN_S: Final = 30.0


class Broken(ValueError):  # noqa: N818 - not an error of this program
    """An answer that does not keep to its own framing."""


class Exchange(asyncio.Protocol):
    """One request on a connection of its own; the answer is looked at when it has ended.

    Attributes:
        ended: done when the answer is complete or the connection is gone.
        first_s: when the first event came.
        received: all bytes.
    """

    def __init__(self, request: bytes) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.received = bytearray()
        self.first_s = 0.0
        self.transport: asyncio.Transport | None = None
        self._request = request
        self._head_end = 0
        self._length: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of `asyncio.Protocol`."""
        self.transport = transport  # type: ignore[assignment]
        self.transport.write(self._request)  # type: ignore[union-attr]

    def data_received(self, data: bytes) -> None:
        """Part of `asyncio.Protocol`."""
        self.received += data
        if not self._head_end:
            end = self.received.find(b"\r\n\r\n")
            if end < 0:
                return
            self._head_end = end + 4
            length = headers(bytes(self.received[:end])).get("content-length")
            self._length = None if length is None else int(length)
        if not self.first_s and b'data: {"' in data:
            self.first_s = time.monotonic()
        if self._length is None:
            whole = self.received.endswith(b"0\r\n\r\n", self._head_end)
        else:
            whole = len(self.received) >= self._head_end + self._length
        if whole:
            self._end()

    def eof_received(self) -> bool:
        """Part of `asyncio.Protocol`."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of `asyncio.Protocol`."""
        self._end()

    def close(self, *, reset: bool = False) -> None:
        """Hang up, with FIN or with RST."""
        if self.transport is None or self.transport.is_closing():
            return
        if reset:
            linger = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.transport.abort()

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


class HttpCaller:
    """Knows the answers.

    Args:
        port: of a proxy or a server on loopback.
        answers: the text of each topic, see `learn`.
    """

    def __init__(self, port: int, answers: dict[Question, str]) -> None:
        self._port = port
        self._answers = answers

    async def ask(self, question: Question, deadline_s: float) -> Outcome:
        """Send a request and follow it to its end; this client has no deadline, so the server's counts."""
        expected = self._answers[question.topic][: question.max_tokens * _TOKEN_CHARS]
        began_s = time.monotonic()
        try:
            exchange = await start(self._port, request(question))
        except OSError as error:
            return Outcome(Ending.DROPPED, 0, began_s, 0.0, time.monotonic(), f"no connection: {error}")
        try:
            async with asyncio.timeout(deadline_s):
                await exchange.ended
        except TimeoutError:
            detail = f"after {len(exchange.received)} bytes"
            return Outcome(Ending.HUNG, 0, began_s, exchange.first_s, time.monotonic(), detail)
        finally:
            exchange.close()
        ending, text, detail, attempts = judge(bytes(exchange.received), expected, question)
        tokens = len(text) // _TOKEN_CHARS
        return Outcome(ending, tokens, began_s, exchange.first_s, time.monotonic(), detail, attempts)


async def start(port: int, request: bytes) -> Exchange:
    """Connect and send.

    Raises:
        OSError: nobody listens.
    """
    loop = asyncio.get_running_loop()
    _, exchange = await loop.create_connection(lambda: Exchange(request), "127.0.0.1", port)
    return exchange


def request(question: Question) -> bytes:
    """The question in HTTP's words."""
    fields: dict[str, Any] = {"model": MODEL, "max_tokens": question.max_tokens, "stream": question.stream}
    fields |= {"temperature": 0} if question.seed is None else {"temperature": 1, "seed": question.seed}
    if question.chat:
        fields["messages"] = [{"role": "user", "content": question.text}]
    else:
        fields["prompt"] = question.text
    body = json.dumps(fields).encode()
    path = b"/v1/chat/completions" if question.chat else b"/v1/completions"
    return (
        b"POST %b HTTP/1.1\r\nHost: storm\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        % (path, len(body), body)
    )


def headers(head: bytes) -> dict[str, str]:
    """Header fields; of repeated ones the last."""
    lines = head.decode("latin-1").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def judge(received: bytes, expected: str, question: Question) -> tuple[Ending, str, str, int]:
    """How an exchange ended, the text that came, what to say about it, and how many attempts it took."""
    head, found, rest = received.partition(b"\r\n\r\n")
    if not found:
        return Ending.DROPPED, "", f"{len(received)} bytes of a head", 1
    fields = headers(head)
    status = int(head.split()[1])
    attempts = int(fields.get("x-rhizome-attempts", "1"))
    try:
        body, complete = _body(rest, fields)
        ending, text, detail = _judge_body(status, body, complete, expected, question)
    except Broken as error:
        return Ending.WRONG, "", f"{error}: {received[-200:]!r}", attempts
    return ending, text, detail, attempts


def _judge_body(
    status: int, body: bytes, complete: bool, expected: str, question: Question
) -> tuple[Ending, str, str]:
    if status != 200:
        said = body.decode("utf-8", "replace")[:300]
        honest = complete and "error" in _json(body)
        return (Ending.REFUSED if honest else Ending.CUT if not complete else Ending.WRONG), "", said
    if not question.stream:
        if not complete:
            return Ending.CUT, "", "a whole answer in part"
        answer = _json(body)
        text = _text(answer["choices"][0], question)
        if text != expected or answer["usage"]["completion_tokens"] != question.max_tokens:
            return Ending.WRONG, text, f"{text!r} instead of {expected!r}"
        return Ending.EXACT, text, ""
    return _judge_events(body, complete, expected, question)


def _judge_events(body: bytes, complete: bool, expected: str, question: Question) -> tuple[Ending, str, str]:
    text, reason, done, error = "", None, False, ""
    events = body.split(b"\n\n")
    for event in events[:-1]:  # what follows the last blank line is an event in part
        for line in event.split(b"\n"):
            if not line.startswith(b"data: "):
                continue
            data = line[6:]
            if data == b"[DONE]":
                done = True
                continue
            value = _json(data)
            if "error" in value:
                error = str(value["error"])[:300]
                continue
            for choice in value["choices"]:
                text += _text(choice, question)
                reason = choice.get("finish_reason") or reason
    if text != expected[: len(text)]:
        return Ending.WRONG, text, f"{text[-200:]!r} instead of {expected[: len(text)][-200:]!r}"
    if complete and done and not error:
        if text == expected and reason == "length":
            return Ending.EXACT, text, ""
        return Ending.SILENT, text, f"[DONE] after {len(text)} of {len(expected)} characters, reason {reason}"
    if complete and not error:
        return Ending.SILENT, text, f"ended without [DONE] after {len(text)} of {len(expected)} characters"
    if done and error:
        return Ending.WRONG, text, f"[DONE] beside an error: {error}"
    return Ending.CUT, text, error or "the connection ended"


def _body(rest: bytes, fields: dict[str, str]) -> tuple[bytes, bool]:
    """The body as far as it came, and whether that is all.

    Raises:
        Broken: its framing is wrong.
    """
    length = fields.get("content-length")
    if length is not None:
        if len(rest) > int(length):
            raise Broken("more bytes than content-length says")
        return rest, len(rest) == int(length)
    if fields.get("transfer-encoding", "").lower() != "chunked":
        raise Broken("neither content-length nor chunks")
    body = bytearray()
    at = 0
    while (line_end := rest.find(b"\r\n", at)) >= 0:
        try:
            size = int(rest[at:line_end].split(b";")[0], 16)
        except ValueError:
            raise Broken("no chunk size") from None
        if size == 0:
            return bytes(body), rest[line_end:] == b"\r\n\r\n"
        body += rest[line_end + 2 : line_end + 2 + size]
        at = line_end + 2 + size + 2
    return bytes(body), False


def _text(choice: dict[str, Any], question: Question) -> str:
    if not question.chat:
        return str(choice["text"])
    said = choice["delta" if question.stream else "message"]
    return str(said.get("content") or "")


def _json(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        raise Broken("no JSON") from None
    if not isinstance(value, dict):
        raise Broken("no JSON object")
    return value


async def learn(port: int, most_tokens: int) -> dict[Question, str]:
    """Ask everything of a server that nothing happens to; texts by topic.

    Raises:
        TimeoutError: it does not answer.
    """

    async def answer(topic: Question) -> str:
        asked = Question(topic.prompt, topic.seed, topic.chat, stream=False, max_tokens=most_tokens)
        exchange = await start(port, request(asked))
        async with asyncio.timeout(_LEARN_S):
            await exchange.ended
        exchange.close()
        head, _, rest = bytes(exchange.received).partition(b"\r\n\r\n")
        body, _ = _body(rest, headers(head))
        return _text(_json(body)["choices"][0], asked)

    asked = list(topics(chat=True))
    return dict(zip(asked, await asyncio.gather(*map(answer, asked)), strict=True))
