"""The judge of answers: what it lets pass nobody else will find."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest

from rhizome_testing.simulated_server import SimulatedServer
from rhizome_testing.storm import http_caller
from rhizome_testing.storm.load import Load
from rhizome_testing.storm.outcome import HONEST, Ending, counted
from rhizome_testing.storm.question import Question, draw

STREAM = Question(prompt=1, seed=None, chat=False, stream=True, max_tokens=3)
EXPECTED = " one two six"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: str) -> bytes:
    event = f"data: {data}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(event), event)


def word(text: str, reason: str | None = None) -> bytes:
    return chunk(json.dumps({"choices": [{"index": 0, "text": text, "finish_reason": reason}]}))


WORDS = [word(" one"), word(" two"), word(" six")]
LAST, DONE = word("", "length"), chunk("[DONE]")
ERROR = chunk(json.dumps({"error": {"message": "lost"}}))
WHOLE = HEAD + b"".join(WORDS) + LAST + DONE + END


@pytest.mark.parametrize(
    ("received", "ending"),
    [
        (WHOLE, Ending.EXACT),
        (HEAD + b"".join(WORDS[:2]), Ending.CUT),
        (HEAD + b"".join(WORDS[:2])[:-5], Ending.CUT),
        (HEAD + b"".join(WORDS) + LAST, Ending.CUT),
        (HEAD + b"".join(WORDS) + LAST + DONE, Ending.CUT),
        (HEAD + b"".join(WORDS[:2]) + ERROR + END, Ending.CUT),
        (HEAD + b"".join(WORDS[:2]) + END, Ending.SILENT),
        (HEAD + b"".join(WORDS[:2]) + LAST + DONE + END, Ending.SILENT),
        (HEAD + b"".join(WORDS) + DONE + END, Ending.SILENT),
        (HEAD + END, Ending.SILENT),
        (HEAD + WORDS[0] + WORDS[2] + ERROR + END, Ending.WRONG),
        (HEAD + WORDS[0] + WORDS[0] + WORDS[1] + WORDS[2] + LAST + DONE + END, Ending.WRONG),
        (HEAD + b"".join(WORDS[:2]) + ERROR + DONE + END, Ending.WRONG),
        (WHOLE.replace(b"transfer-encoding: chunked", b"x-nothing: y"), Ending.WRONG),
        (b"HTTP/1.1 200", Ending.DROPPED),
        (b"", Ending.DROPPED),
        (b'HTTP/1.1 503 No\r\ncontent-length: 12\r\n\r\n{"error":{}}', Ending.REFUSED),
        (b'HTTP/1.1 503 No\r\ncontent-length: 11\r\n\r\n{"oops":{}}', Ending.WRONG),
        (b'HTTP/1.1 503 No\r\ncontent-length: 12\r\n\r\n{"err', Ending.CUT),
    ],
)
def test_every_way_to_end_is_told_apart(received: bytes, ending: Ending) -> None:
    found, text, detail, _ = http_caller.judge(received, EXPECTED, STREAM)
    assert found is ending, (text, detail)


def test_an_answer_ends_with_its_last_chunk_not_with_a_head_that_looks_like_it() -> None:
    async def fed(*pieces: bytes) -> bool:
        exchange = http_caller.Exchange(b"")
        for piece in pieces:
            exchange.data_received(piece)
        return exchange.ended.done()

    head = HEAD.replace(b"\r\n\r\n", b"\r\nx-port: 4040\r\n\r\n")
    assert not asyncio.run(fed(head))
    assert not asyncio.run(fed(head, WORDS[0]))
    assert asyncio.run(fed(head, WORDS[0], END))


async def test_a_load_ends_with_an_outcome_for_every_question(tmp_path: Path) -> None:
    physics = ("--itl-base-ms", "2", "--itl-per-request-ms", "0")
    with SimulatedServer("vllm", tmp_path, *physics) as server:
        await asyncio.to_thread(server.wait_serving)
        caller = http_caller.HttpCaller(server.port, await http_caller.learn(server.port, 20))
        dice = random.Random(1)
        load = Load(caller.ask, lambda: draw(dice, 5, 20, chat=True, whole=0.3), 200.0, 10.0)
        async with asyncio.timeout(20):
            while len(load.outcomes) < 60:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        server.fault(half_close=3, count=1000)
        cut_from = len(load.outcomes) + load.open
        async with asyncio.timeout(20):
            while len(load.outcomes) < cut_from + 60:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        outcomes = await load.stop()
    assert all(one.ending is Ending.EXACT for one in outcomes[:60]), counted(outcomes)
    late = [one.ending for one in outcomes[cut_from:]]
    assert set(late) <= HONEST | {Ending.DROPPED}
    assert late.count(Ending.CUT) > 20
