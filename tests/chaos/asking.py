"""Mixed traffic through a whole stack; every request is followed to its one end.

HTTP to the gateway: whole answers, streams, long prompts, callers who hang up. gRPC to the proxy: the same in
frames. Each HTTP request carries a sampled trace of its own.
"""

from __future__ import annotations

import asyncio
import enum
import json
import random
import secrets
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
from tests.chaos.stack import MODEL, WholeStack

from rhizome.engine.v1.generate_pb2 import GenerateRequest
from rhizome_transport.errors import EngineError
from rhizome_transport.grpc_client import GrpcEngineClient

QUESTIONS = (
    "Count from 1 to 20",
    "What is the capital of France?",
    "What is the opposite of hot?",
    "What is 3 plus 4?",
    "Spell the word apple.",
)
LONG = " ".join(["Please remember that the sky is blue and the grass is green."] * 60)
DEADLINE_S = 45.0
"""More than a core needs to come back; who has no end by then hangs."""


class End(enum.Enum):
    """How a request ended; each has exactly one."""

    ANSWER = "answer"
    """All of it, and the right one."""
    ERROR = "error"
    """An error in words, instead of an answer or after a part of it."""
    CANCEL = "cancel"
    """The caller hung up."""
    LOST = "lost"
    """The connection ended without a word: allowed only where the gateway itself was killed."""
    WRONG = "wrong"
    """Anything else."""
    HUNG = "hung"
    """None."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request and its end.

    Attributes:
        kind: what was asked, such as `http stream`.
        began_s: on the monotonic clock.
        ended_s: likewise.
        end: how it ended.
        detail: an error's words, or what is wrong.
        trace_id: of the trace that it carried, or empty.
        span_id: the caller's own span, which is the root's parent.
    """

    kind: str
    began_s: float
    ended_s: float
    end: End
    detail: str = ""
    trace_id: str = ""
    span_id: str = ""


def ends(asked: Iterable[Asked]) -> dict[str, int]:
    """How many ended how."""
    counts = Counter(one.end for one in asked)
    return {end.value: counts[end] for end in End if counts[end]}


class Traffic:
    """Requests at a rate, as long as the block lasts. Must be made inside the running loop.

    Args:
        stack: what is asked.
        rate: requests per second.
        seed: of all chances.

    Attributes:
        asked: what has ended.
        sent: requests that were begun.
    """

    def __init__(self, stack: WholeStack, rate: float, seed: int = 1) -> None:
        self.asked: list[Asked] = []
        self.sent = 0
        self._stack = stack
        self._rate = rate
        self._dice = random.Random(seed)
        self._answers: dict[str, str] = {}
        self._open: set[asyncio.Task[None]] = set()
        self._arriving: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        # A connection each, as many callers have: what is kept would be broken by the first kill.
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True, limit=0))
        self._grpc = GrpcEngineClient(self._stack.proxy, peer_name="chaos")
        for question in (*QUESTIONS, LONG):
            self._answers[question] = await self._learn(question)
        self._arriving = asyncio.create_task(self._arrive())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        await self._grpc.close()
        await self._session.close()

    async def stop(self) -> list[Asked]:
        """Send nothing more, and wait until everything has ended."""
        if self._arriving is not None:
            self._arriving.cancel()
        while self._open:
            await asyncio.wait(self._open)
        return self.asked

    async def count_until(self, answers: int, timeout_s: float = 30.0) -> None:
        """Wait until so many more requests were answered.

        Raises:
            TimeoutError: they were not.
        """
        wanted = answers + sum(one.end is End.ANSWER for one in self.asked)
        async with asyncio.timeout(timeout_s):
            while sum(one.end is End.ANSWER for one in self.asked) < wanted:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def _arrive(self) -> None:
        kinds = {
            self._whole: 3,
            self._stream: 4,
            self._hang_up: 2,
            self._long: 1,
            self._frames: 3,
            self._cancelled_frames: 1,
        }
        due = time.monotonic()
        while True:
            due += self._dice.expovariate(self._rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            (kind,) = self._dice.choices(list(kinds), list(kinds.values()))
            self.sent += 1
            task = asyncio.create_task(self._one(kind))
            self._open.add(task)
            task.add_done_callback(self._open.discard)

    async def _one(self, kind: Any) -> None:
        began_s = time.monotonic()
        trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
        headers = {"traceparent": f"00-{trace_id}-{span_id}-01"}
        end, detail = End.HUNG, f"nothing after {DEADLINE_S:g} s"
        with suppress(TimeoutError):
            async with asyncio.timeout(DEADLINE_S):
                end, detail = await kind(headers)
        over_http = kind in (self._whole, self._stream, self._hang_up, self._long)
        trace = (trace_id, span_id) if over_http else ("", "")
        name = kind.__name__.strip("_").replace("_", " ")
        self.asked.append(Asked(name, began_s, time.monotonic(), end, detail, *trace))

    async def _whole(self, headers: dict[str, str]) -> tuple[End, str]:
        question = self._dice.choice(QUESTIONS)
        return await self._ask_whole(question, headers)

    async def _long(self, headers: dict[str, str]) -> tuple[End, str]:
        return await self._ask_whole(LONG, headers)

    async def _ask_whole(self, question: str, headers: dict[str, str]) -> tuple[End, str]:
        try:
            async with self._post(question, headers, stream=False) as answer:
                body = await answer.json()
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return End.LOST, repr(error)
        if answer.status != 200:
            return _error(answer.status, body)
        return self._judge(question, str(body["choices"][0]["message"]["content"]))

    async def _stream(self, headers: dict[str, str]) -> tuple[End, str]:
        question = self._dice.choice(QUESTIONS)
        text, done, failed = "", False, ""
        try:
            async with self._post(question, headers, stream=True) as answer:
                if answer.status != 200:
                    return _error(answer.status, await answer.json())
                async for line in answer.content:
                    if not line.startswith(b"data: "):
                        continue
                    if line == b"data: [DONE]\n":
                        done = True
                        continue
                    value = json.loads(line[6:])
                    if "error" in value:
                        failed = str(value["error"])
                    elif value["choices"]:
                        text += value["choices"][0]["delta"].get("content") or ""
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return End.LOST, repr(error)
        if failed:
            right = self._answers[question].startswith(text)
            return (End.ERROR, failed) if right else (End.WRONG, f"{text!r}, then {failed}")
        return self._judge(question, text) if done else (End.WRONG, f"no [DONE] after {text!r}")

    async def _hang_up(self, headers: dict[str, str]) -> tuple[End, str]:
        """After some events, or before the first one."""
        wait_for = self._dice.choice((0, 3))
        try:
            async with self._post(QUESTIONS[0], headers, stream=True, max_tokens=1500) as answer:
                if answer.status != 200:
                    return _error(answer.status, await answer.json())
                async for line in answer.content:
                    if b'"error"' in line:
                        return End.ERROR, line.decode()
                    wait_for -= line.startswith(b"data: ")
                    if wait_for <= 0:
                        break
                answer.close()
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return End.LOST, repr(error)
        return End.CANCEL, ""

    async def _frames(self, _headers: dict[str, str]) -> tuple[End, str]:
        request, tokens, reason = tokens_wanted(self._dice.randint(5, 40)), 0, 0
        try:
            async for event in self._grpc.generate(request, timeout_s=DEADLINE_S - 5):
                tokens += len(event.delta.token_ids)
                reason = event.finished.reason or reason
        except EngineError as error:
            return End.ERROR, f"{error.code.name} {error.reason}: {error.message}"
        wanted = request.stop.max_tokens
        right = bool(reason) and tokens == wanted
        return (End.ANSWER, "") if right else (End.WRONG, f"{tokens} of {wanted} tokens, reason {reason}")

    async def _cancelled_frames(self, _headers: dict[str, str]) -> tuple[End, str]:
        try:
            async for event in self._grpc.generate(tokens_wanted(1000), timeout_s=DEADLINE_S - 5):
                if event.HasField("delta"):
                    break
        except EngineError as error:
            return End.ERROR, f"{error.code.name} {error.reason}: {error.message}"
        return End.CANCEL, ""

    def _judge(self, question: str, text: str) -> tuple[End, str]:
        wanted = self._answers[question]
        return (End.ANSWER, "") if text == wanted else (End.WRONG, f"{text!r} instead of {wanted!r}")

    def _post(self, question: str, headers: dict[str, str], *, stream: bool, max_tokens: int = 60) -> Any:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": max_tokens,
            "stream": stream,
            **({"ignore_eos": True} if max_tokens > 60 else {}),
        }
        return self._session.post(f"{self._stack.url}/v1/chat/completions", json=body, headers=headers)

    async def _learn(self, question: str) -> str:
        async with self._post(question, {}, stream=False) as answer:
            body = await answer.json()
            assert answer.status == 200, body
            return str(body["choices"][0]["message"]["content"])


def tokens_wanted(count: int) -> GenerateRequest:
    request = GenerateRequest()
    request.token_ids.ids.extend(range(100, 140))
    request.sampling.temperature = 0
    request.stop.max_tokens = count
    request.stop.ignore_eos = True
    return request


def _error(status: int, body: Any) -> tuple[End, str]:
    """An error must say so in the API's own envelope."""
    told = body.get("error", {}).get("message") if isinstance(body, dict) else None
    return (End.ERROR, f"{status} {told}") if told and status >= 400 else (End.WRONG, f"{status} {body}")
