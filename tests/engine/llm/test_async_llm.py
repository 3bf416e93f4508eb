"""Many tasks, one engine: shared batches, cancellation, ends."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import aclosing, asynccontextmanager
from random import Random

import grpc
import numpy as np
import pytest

from rhizome_engine import LLM, AsyncLLM, SamplingParams
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_grammar.spec import Grammar
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint
from rhizome_transport.errors import EngineError

GREEDY = SamplingParams(temperature=0.0)
PROMPTS = [f"prompt number {number}" for number in range(12)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    shape = LlamaShape(tie_word_embeddings=False)
    return write_llama_checkpoint(tmp_path_factory.mktemp("model"), shape, seed=4)


def make(checkpoint, **limits):
    config = SchedulerConfig(max_batch_size=8, **limits)
    return LLM(checkpoint, device="cpu", num_pages=256, num_threads=1, scheduler=config)


@pytest.fixture(scope="module")
def expected(checkpoint):
    completions = make(checkpoint).generate(PROMPTS, GREEDY, max_tokens=16, ignore_eos=True)
    return [completion.text for completion in completions]


@pytest.fixture(params=[False, True], ids=["in_turn", "overlap"])
async def llm(request, checkpoint):
    async with AsyncLLM(make(checkpoint, overlap=request.param)) as one:
        yield one
        await until_idle(one)
        await asyncio.wrap_future(one._thread.ask(lambda core: core.check_conservation()))


async def until_idle(llm, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while (load := await llm.load()).running_requests or load.waiting_requests or load.kv_pages_in_use:
        assert time.monotonic() < deadline, load
        await asyncio.sleep(0.005)


@asynccontextmanager
async def in_a_step(llm):
    """The engine has begun a step, its first, and does not go on before the end of the block."""
    begun, go_on = threading.Event(), threading.Event()
    runner = llm._llm.core._runner
    launch = runner.launch

    def launch_then(batch):
        begun.set()
        assert go_on.wait(60)
        return launch(batch)

    runner.launch = launch_then
    try:
        assert await asyncio.to_thread(begun.wait, 20)
        yield
    finally:
        go_on.set()


async def text_of(stream):
    async with aclosing(stream):
        return "".join([delta.text async for delta in stream])


async def test_many_callers_share_batches(llm, expected):
    before = await llm.load()
    options = {"max_tokens": 16, "ignore_eos": True}
    asking = [asyncio.create_task(llm.generate(prompt, GREEDY, **options)) for prompt in PROMPTS]
    async with in_a_step(llm):  # which does not end before all have asked
        pass
    assert [answer[0].text for answer in await asyncio.gather(*asking)] == expected
    steps = (await llm.load()).totals.steps - before.totals.steps
    assert steps < len(PROMPTS) * 16 / 2


async def test_streams_beside_answers_and_vectors(llm, expected):
    options = {"max_tokens": 16, "ignore_eos": True}
    streams = [text_of(llm.stream(prompt, GREEDY, **options)) for prompt in PROMPTS[:6]]
    rest = llm.generate(PROMPTS[6:], GREEDY, **options)
    *texts, completions, vectors = await asyncio.gather(*streams, rest, llm.embed(PROMPTS))
    assert [*texts, *(completion.text for completion in completions)] == expected
    assert len(vectors) == len(PROMPTS)
    assert all(np.linalg.norm(one.values) == pytest.approx(1.0, abs=1e-5) for one in vectors)


async def test_deltas_come_while_more_are_computed(llm):
    deltas = [delta async for delta in llm.stream("tell me", GREEDY, max_tokens=40, ignore_eos=True)]
    assert len([delta for delta in deltas if delta.token_ids]) == 40
    assert deltas[-1].completion.usage.completion_tokens == 40
    assert "".join(delta.text for delta in deltas) == deltas[-1].completion.text


async def test_the_loop_is_free_while_the_engine_computes(llm):
    turned, steps = threading.Event(), []
    launch = llm._llm.core._runner.launch

    def launch_after_a_turn(batch):
        steps.append(len(batch.token_ids))
        turned.clear()
        assert turned.wait(20), "the loop stands still while the engine works"
        return launch(batch)

    llm._llm.core._runner.launch = launch_after_a_turn
    task = asyncio.create_task(llm.generate(PROMPTS, GREEDY, max_tokens=60, ignore_eos=True))
    while not task.done():
        turned.set()
        await asyncio.sleep(0.001)
    assert len(steps) > 20 and len(await task) == len(PROMPTS)


@pytest.mark.parametrize("what", ["generate", "embed", "stream"])
async def test_a_cancelled_task_frees_its_pages(llm, what):
    calls = {
        "generate": lambda: llm.generate(PROMPTS, GREEDY, max_tokens=1500, ignore_eos=True),
        "embed": lambda: llm.embed([[5] * 2000] * 40),
        "stream": lambda: text_of(llm.stream("tell me", GREEDY, max_tokens=1500, ignore_eos=True)),
    }
    before = (await llm.load()).totals
    task = asyncio.create_task(calls[what]())
    async with in_a_step(llm):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await until_idle(llm)
    after = (await llm.load()).totals
    assert after.aborted - before.aborted == after.received - before.received > 0


async def test_leaving_a_stream_ends_its_request(llm):
    async with aclosing(llm.stream("tell me", GREEDY, max_tokens=1500, ignore_eos=True)) as stream:
        async for _ in stream:
            break
    await until_idle(llm)
    assert (await llm.load()).totals.aborted == 1


async def test_one_callers_mistake_is_nobody_elses(llm, expected):
    good = asyncio.create_task(llm.generate(PROMPTS, GREEDY, max_tokens=16, ignore_eos=True))
    with pytest.raises(EngineError, match="context window"):
        await llm.generate("x" * 5000)
    with pytest.raises(EngineError, match=r"inputs\[1\]"):
        await llm.embed([[1], []])
    with pytest.raises(OverflowError):
        await llm.generate([[2**70]])
    with pytest.raises(ValueError, match="n must be"):
        await llm.generate("x", n=0)
    assert [completion.text for completion in await good] == expected


async def test_any_mixture_of_tasks_that_come_and_go(llm, expected):
    """Answers are those of a quiet engine, and nothing is left of what was cancelled."""
    random = Random(5)
    options = {"max_tokens": 16, "ignore_eos": True}

    async def one(number):
        prompt, text = PROMPTS[number % len(PROMPTS)], expected[number % len(PROMPTS)]
        await asyncio.sleep(random.random() * 0.3)
        match number % 3:
            case 0:
                assert (await llm.generate(prompt, GREEDY, **options))[0].text == text
            case 1:
                assert await text_of(llm.stream(prompt, GREEDY, **options)) == text
            case 2:
                assert len(await llm.embed(PROMPTS[: 1 + number % 5])) == 1 + number % 5

    async def long(number):
        match number % 3:
            case 0:
                await llm.generate(PROMPTS[:2], GREEDY, max_tokens=1900, ignore_eos=True)
            case 1:
                await text_of(llm.stream("tell me", GREEDY, max_tokens=1900, ignore_eos=True))
            case 2:
                await llm.embed([[5] * 2000] * 50)

    short_ones = [asyncio.create_task(one(number)) for number in range(60)]
    for number in range(12):
        task = asyncio.create_task(long(number))
        await asyncio.sleep(random.random() * 0.03)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.gather(*short_ones)
    await until_idle(llm)
    totals = (await llm.load()).totals
    assert totals.received == totals.completed + totals.aborted
    assert totals.aborted >= 8 and totals.failed == 0


async def test_chat_and_grammars(llm):
    conversation = [{"role": "user", "content": "Hi"}]
    grammar = Grammar("choice", choices=("yes", "no"))
    first, second = await asyncio.gather(
        llm.chat(conversation, GREEDY, max_tokens=8, grammar=grammar),
        llm.chat([conversation] * 2, GREEDY, max_tokens=8, n=2),
    )
    assert first[0].text in ("yes", "no") and len(second) == 4
    streamed = await text_of(llm.stream(llm.chat_prompt(conversation), GREEDY, max_tokens=8))
    assert streamed == second[0].text


async def test_closing_ends_what_is_open(checkpoint):
    llm = AsyncLLM(make(checkpoint))
    long = asyncio.create_task(llm.generate(PROMPTS, GREEDY, max_tokens=1500, ignore_eos=True))
    async with in_a_step(llm):
        closing = asyncio.gather(llm.close(), llm.close())
        await asyncio.sleep(0.01)
    await closing
    for call in (long, llm.generate("x"), llm.embed("x"), llm.load(), text_of(llm.stream("x"))):
        with pytest.raises(EngineError, match="closed") as caught:
            await call
        assert caught.value.code is grpc.StatusCode.CANCELLED
    llm._llm.core.check_conservation()
    assert llm._llm.core.load().kv_pages_in_use == 0


async def test_an_engine_that_fails_tells_everybody(checkpoint, monkeypatch):
    inner = make(checkpoint)
    llm = AsyncLLM(inner)

    def fail(batch):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(inner.core._runner, "launch", fail)
    for _ in range(2):  # a step that fails ends its own requests only
        with pytest.raises(EngineError, match="try again"):
            await llm.generate("x", max_tokens=4)
    with pytest.raises(EngineError, match="the device is gone"):
        await llm.generate("x", max_tokens=4)
    with pytest.raises(EngineError, match="the device is gone"):
        await llm.embed("x")
    await llm.close()


def test_it_serves_loops_of_several_threads(checkpoint, expected):
    llm = AsyncLLM(make(checkpoint))
    texts = {}

    def serve(number):
        async def ask():
            answers = [llm.generate(p, GREEDY, max_tokens=16, ignore_eos=True) for p in PROMPTS[number::2]]
            texts[number] = [completions[0].text for completions in await asyncio.gather(*answers)]

        asyncio.run(ask())

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (texts[0], texts[1]) == (expected[0::2], expected[1::2])
    asyncio.run(llm.close())


def test_a_loop_that_ended_leaves_nothing_running(checkpoint):
    llm = AsyncLLM(make(checkpoint))

    async def begin_and_leave():
        stream = llm.stream("tell me", GREEDY, max_tokens=1500, ignore_eos=True)
        await anext(stream)
        llm._thread.give_up = lambda waiter: None  # as if the loop had died before it could say so

    asyncio.run(begin_and_leave())
    asyncio.run(until_idle(llm))
    asyncio.run(llm.close())
