"""What people get who talk to the engine with text."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from rhizome.engine.v1 import engine_service_pb2 as messages
from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub
from rhizome.engine.v1.generate_pb2 import (
    FINISH_REASON_CANCELLED,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    GenerateRequest,
    Message,
)
from rhizome_testing.text_requests import ids_of, run, text_of, text_request
from rhizome_text.tokenizer import Tokenizer
from rhizome_transport.errors import from_rpc_error


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Any:
    return EngineServiceStub(channel)


async def test_streams_text_that_is_the_text_of_its_tokens(stub: Any, checkpoint: Path) -> None:
    events = await run(stub, text_request("Hello", max_tokens=24))
    assert events[0].HasField("started")
    assert events[-1].finished.reason == FINISH_REASON_LENGTH
    assert len(ids_of(events)) == 24
    assert text_of(events) == Tokenizer.from_directory(checkpoint).decode(ids_of(events))


async def test_tokens_come_while_more_are_computed(stub: Any) -> None:
    """Deltas merge while a reader is slow, so only a long answer surely comes in several."""
    events = await run(stub, text_request("Hello", max_tokens=1500))
    assert len(ids_of(events)) == 1500
    assert len([event for event in events if event.HasField("delta")]) > 3


async def test_messages_go_through_the_chat_template(stub: Any, checkpoint: Path) -> None:
    conversation = [{"role": "user", "content": "Hi"}]
    tokenizer = Tokenizer.from_directory(checkpoint)
    template = tokenizer.chat_template()
    assert template is not None
    request = text_request("")
    request.messages.messages.extend(Message(**message) for message in conversation)
    by_messages = await run(stub, request)
    by_ids = GenerateRequest(sampling=request.sampling, stop=request.stop)
    by_ids.token_ids.ids.extend(tokenizer.encode(template.render(conversation)))
    assert ids_of(by_messages) == ids_of(await run(stub, by_ids))
    assert by_messages[0].started.prompt_tokens == len(by_ids.token_ids.ids)


async def test_token_ids_come_back_without_text(stub: Any) -> None:
    request = text_request("")
    request.token_ids.ids.extend([10, 20, 30])
    events = await run(stub, request)
    assert ids_of(events) and not text_of(events)


async def test_a_stop_string_ends_the_text_before_it(stub: Any) -> None:
    whole = text_of(await run(stub, text_request("Hello", max_tokens=64)))
    stop = next(whole[i : i + 2] for i in range(8, len(whole)) if whole[i : i + 2].isascii())
    request = text_request("Hello", max_tokens=64)
    request.stop.strings.append(stop)
    events = await run(stub, request)
    assert text_of(events) == whole[: whole.index(stop)]
    assert events[-1].finished.reason == FINISH_REASON_STOP
    assert events[-1].finished.stop_string == stop
    assert events[-1].finished.usage.completion_tokens < 64


async def test_the_same_seed_gives_the_same_text(stub: Any) -> None:
    request = text_request("Once", max_tokens=16)
    request.sampling.temperature = 1.0
    request.sampling.seed = 42
    first, second = await run(stub, request), await run(stub, request)
    assert ids_of(first) == ids_of(second)


async def test_a_text_can_be_told_again_with_the_seed_that_was_drawn_for_it(stub: Any) -> None:
    request = text_request("Once", max_tokens=16)
    request.sampling.temperature = 1.0
    first = await run(stub, request)
    request.sampling.seed = first[0].started.seed
    assert ids_of(await run(stub, request)) == ids_of(first)


async def test_an_engine_goes_on_where_another_one_stopped(stub: Any, checkpoint: Path) -> None:
    request = text_request("", max_tokens=16)
    request.token_ids.ids.extend(Tokenizer.from_directory(checkpoint).encode("Once"))
    request.sampling.temperature = 1.0
    request.sampling.repetition_penalty = 1.3
    whole = await run(stub, request)
    request.sampling.seed = whole[0].started.seed
    request.token_ids.ids.extend(ids_of(whole)[:10])
    request.resumed_tokens = 10
    rest = await run(stub, request)
    assert ids_of(rest) == ids_of(whole)[10:]
    assert rest[-1].finished.usage.completion_tokens == 16
    assert rest[-1].finished.usage.prompt_tokens == whole[-1].finished.usage.prompt_tokens


@pytest.mark.parametrize("stop", ["", "never said"])
async def test_echo_begins_with_the_text_of_the_prompt(stub: Any, checkpoint: Path, stop: str) -> None:
    plain = await run(stub, text_request("Hello there", max_tokens=8))
    request = text_request("Hello there", max_tokens=8, echo=True)
    if stop:
        request.stop.strings.append(stop)
    echoed = await run(stub, request)
    tokenizer = Tokenizer.from_directory(checkpoint)
    prompt = tokenizer.encode("Hello there", add_special_tokens=True)
    assert text_of(echoed) == tokenizer.decode([*prompt, *ids_of(plain)])
    assert text_of(echoed).startswith("Hello there")
    assert ids_of(echoed) == ids_of(plain)


async def test_a_stop_string_in_an_echoed_prompt_ends_nothing(stub: Any) -> None:
    request = text_request("Hello there", max_tokens=8, echo=True)
    request.stop.strings.append("there")
    events = await run(stub, request)
    assert text_of(events).startswith("Hello there")
    assert ids_of(events)


async def test_prompt_log_probabilities_are_the_same_from_a_cached_prompt(stub: Any) -> None:
    request = text_request("A prompt that fills more than one page of the cache", max_tokens=0)
    request.prompt_logprobs = 2
    request.cache_namespace = "scores"

    async def scores() -> list[Any]:
        events = await run(stub, request)
        assert events[-1].finished.reason == FINISH_REASON_LENGTH
        assert not ids_of(events)
        pieces = [one for event in events for one in event.prompt_logprobs.logprobs]
        assert len(pieces) == events[0].started.prompt_tokens - 1
        return pieces

    cold, warm = await scores(), await scores()
    for one, other in zip(cold, warm, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert [ranked.token_id for ranked in one.top] == [ranked.token_id for ranked in other.top]
        assert len(one.top) == 2 and one.top[0].logprob >= one.top[1].logprob
        assert one.logprob <= one.top[0].logprob + 1e-6


async def test_a_bad_word_does_not_come_out(stub: Any, checkpoint: Path) -> None:
    request = text_request("Hello", max_tokens=64)
    free = ids_of(await run(stub, request))
    tokenizer = Tokenizer.from_directory(checkpoint)
    spoken = [(tokenizer.decode(list(pair)), list(pair)) for pair in itertools.pairwise(free)]
    word, pair = next(
        (text, ids) for text, ids in spoken if tokenizer.encode(text) == ids and text.strip() == text
    )
    request.sampling.bad_words.append(word)
    ids = ids_of(await run(stub, request))
    assert len(ids) == 64
    assert tuple(pair) not in itertools.pairwise(ids)
    assert ids[: free.index(pair[1])] == free[: free.index(pair[1])]


async def test_only_allowed_tokens_come_out(stub: Any) -> None:
    request = text_request("Hello", max_tokens=20)
    request.sampling.allowed_token_ids.ids.extend([40, 50])
    assert set(ids_of(await run(stub, request))) <= {40, 50}


async def test_a_choice_is_one_of_its_texts(stub: Any) -> None:
    request = text_request("Hello", max_tokens=40)
    request.stop.ignore_eos = False
    request.grammar.choice.texts.extend(["yes indeed", "by no means"])
    events = await run(stub, request)
    assert text_of(events) in ("yes indeed", "by no means")
    assert events[-1].finished.reason == FINISH_REASON_STOP
    assert events[-1].finished.usage.forced_tokens > 0


async def test_a_json_schema_keeps_the_order_of_its_properties(stub: Any) -> None:
    request = text_request("Hello", max_tokens=200)
    request.stop.ignore_eos = False
    request.grammar.json_schema = (
        '{"type": "object", "properties": {"z": {"type": "boolean"}, "a": {"enum": ["x", "y"]}},'
        ' "required": ["z", "a"], "additionalProperties": false}'
    )
    events = await run(stub, request)
    answer = json.loads(text_of(events))
    assert list(answer) == ["z", "a"]
    assert isinstance(answer["z"], bool) and answer["a"] in ("x", "y")


async def test_a_grammar_that_cannot_be_compiled_fails_only_its_request(stub: Any) -> None:
    bad = text_request("Hello")
    bad.grammar.regex = "(unclosed"
    good = asyncio.create_task(run(stub, text_request("Hello")))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await run(stub, bad)
    error = from_rpc_error(caught.value)
    assert (error.code, error.param) == (grpc.StatusCode.INVALID_ARGUMENT, "grammar")
    assert len(ids_of(await good)) == 12


async def test_cancelling_the_call_frees_the_pages(until_idle: Any, stub: Any) -> None:
    call = stub.Generate(text_request("Hello", max_tokens=1500))
    await call.read()
    await call.read()
    assert (await stub.GetLoad(messages.GetLoadRequest())).load.kv_pages_in_use > 0
    call.cancel()
    await until_idle(stub)


async def test_a_deadline_ends_the_request(until_idle: Any, stub: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub.Generate(text_request("Hello", max_tokens=1900), timeout=0.4):
            pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until_idle(stub)


async def test_abort_ends_requests_by_the_callers_id(stub: Any) -> None:
    call = stub.Generate(text_request("Hello", max_tokens=1900, request_id="mine"))
    events = aiter(call)
    await anext(events)
    await stub.Abort(messages.AbortRequest(request_ids=["mine", "unknown"]))
    rest = [event async for event in events]
    assert rest[-1].finished.reason == FINISH_REASON_CANCELLED


async def test_two_callers_may_use_the_same_id(stub: Any) -> None:
    request = text_request("Hello", request_id="same")
    first, second = await asyncio.gather(run(stub, request), run(stub, request))
    assert ids_of(first) == ids_of(second)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        (lambda r: r.ClearField("text"), "input"),
        (lambda r: r.messages.SetInParent(), "messages"),
        (lambda r: r.messages.messages.add(role="wizard", content="x"), "messages"),
        (lambda r: r.stop.strings.append(""), "stop.strings"),
        (lambda r: r.sampling.bad_words.append(" "), "sampling.bad_words"),
        (lambda r: setattr(r, "resumed_tokens", 1), "resumed_tokens"),
        (lambda r: (r.token_ids.ids.append(5), setattr(r, "echo", True)), "echo"),
        (lambda r: r.grammar.SetInParent(), "grammar"),
        (lambda r: setattr(r.sampling, "top_p", 2.0), "sampling.top_p"),
        (lambda r: r.token_ids.SetInParent(), "prompt"),
        (lambda r: r.token_ids.ids.append(99_999), "prompt"),
        (lambda r: setattr(r, "text", "long " * 2000), "prompt"),
    ],
)
async def test_bad_requests_say_what_is_wrong(stub: Any, change: Any, param: str) -> None:
    request = text_request("Hello")
    change(request)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await run(stub, request)
    error = from_rpc_error(caught.value)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.param == param
