"""Very long texts are worked on one after another, whoever waits for them."""

from __future__ import annotations

import asyncio
import threading

import pytest

from rhizome_gateway.prompt.conversation import chat_token_ids
from rhizome_gateway.prompt.message import ChatMessage
from rhizome_gateway.tokenization.inputs import read_inputs
from rhizome_gateway.tokenization.long_texts import VERY_LONG, LongTexts


class Work:
    """Runs until it may end, and counts how many do at once."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.running = self.most = self.begun = 0
        self._lock = threading.Lock()

    def __call__(self) -> int:
        with self._lock:
            self.running += 1
            self.begun += 1
            self.most = max(self.most, self.running)
        self.go_on.wait(30)
        with self._lock:
            self.running -= 1
        return self.begun


async def until_begun(work: Work, count: int) -> None:
    async with asyncio.timeout(10):
        while work.begun < count:  # noqa: ASYNC110 - threads count
            await asyncio.sleep(0.01)


async def test_one_at_a_time_and_short_ones_beside_it():
    texts, work, short = LongTexts(), Work(), Work()
    waiting = [asyncio.create_task(texts.work(VERY_LONG, work)) for _ in range(3)]
    await until_begun(work, 1)
    short.go_on.set()
    assert await texts.work(VERY_LONG - 1, short) == 1
    work.go_on.set()
    assert sorted(await asyncio.gather(*waiting)) == [1, 2, 3]
    assert work.most == 1


async def test_who_gives_up_does_not_let_the_next_begin_beside_it():
    texts, work = LongTexts(), Work()
    first, second, third = (asyncio.create_task(texts.work(VERY_LONG, work)) for _ in range(3))
    await until_begun(work, 1)
    first.cancel()  # it runs on in its thread
    second.cancel()  # it waits
    await asyncio.wait((first, second))
    await asyncio.sleep(0.05)
    assert (work.running, work.begun) == (1, 1)
    work.go_on.set()
    assert await asyncio.wait_for(third, 10) == 2
    assert work.most == 1


async def test_what_fails_gives_its_turn_back():
    texts = LongTexts()

    def fail() -> None:
        raise ValueError("no text")

    with pytest.raises(ValueError, match="no text"):
        await texts.work(VERY_LONG, fail)
    assert await asyncio.wait_for(texts.work(VERY_LONG, lambda: 1), 10) == 1


async def test_prompts_and_conversations_wait_for_their_turn(serve, monkeypatch):
    served = serve(context=4 * VERY_LONG)
    long, turns = "x" * VERY_LONG, []

    async def work(chars: int, task):
        turns.append(chars)
        return task()

    monkeypatch.setattr(served.long_texts, "work", work)
    (read,) = await read_inputs(served, [long], add_special_tokens=False, field="prompt")
    assert (len(read.token_ids), turns) == (VERY_LONG, [VERY_LONG])
    prompt = await chat_token_ids(served, [ChatMessage("user", long)])
    assert len(prompt.token_ids) >= VERY_LONG and turns[1] == len(prompt.text)
    tools = [{"type": "function", "function": {"name": "f", "description": long}}]
    prompt = await chat_token_ids(served, [ChatMessage("user", "hi")], tools)
    assert len(prompt.token_ids) >= VERY_LONG and turns[2] == len(prompt.text)
    await chat_token_ids(
        served, [ChatMessage("user", "hi")], [{"type": "function", "function": {"name": "f"}}]
    )
    assert len(turns) == 3
