"""Every bad value, straight to the engine, over gRPC and ZeroMQ; what a gateway checks is not relied on."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from rhizome.engine.v1.engine_service_pb2 import EmbedRequest, GetLoadRequest
from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub
from rhizome.engine.v1.generate_pb2 import Choices, GenerateRequest, Grammar, Message, TokenIds
from rhizome_testing.engine_process import EngineProcess
from rhizome_testing.hash_core import token_request
from rhizome_transport.client import EngineClient
from rhizome_transport.errors import EngineError, from_rpc_error
from rhizome_transport.grpc_client import GrpcEngineClient
from rhizome_transport.zmq_client import ZmqEngineClient

NAN, INF, LONG = math.nan, math.inf, "x" * 257
OUTSIDE = 2**31
DEEP = '{"type":"array","items":' * 5000 + "{}" + "}" * 5000

Change = Callable[[GenerateRequest], object]


def sampling(**fields: Any) -> Change:
    def change(request: GenerateRequest) -> None:
        for name, value in fields.items():
            setattr(request.sampling, name, value)

    return change


def grammar(**fields: Any) -> Change:
    return lambda request: request.grammar.CopyFrom(Grammar(**fields))


def prompt(*ids: int) -> Change:
    return lambda request: request.token_ids.CopyFrom(TokenIds(ids=ids))


BAD: dict[str, tuple[Change, str]] = {
    "an id too long": (lambda r: setattr(r, "request_id", LONG), "request_id"),
    "another model": (lambda r: setattr(r, "model", "other"), "model"),
    "no input": (lambda r: r.ClearField("token_ids"), "input"),
    "an empty prompt": (prompt(), "prompt"),
    "a token outside": (prompt(1, OUTSIDE), "prompt"),
    "the largest token": (prompt(2**32 - 1), "prompt"),
    "a prompt beyond the context": (prompt(*[1] * 5000), "prompt"),
    "a prompt beyond all contexts": (prompt(*[1] * (2**21 + 1)), "prompt"),
    "a tenant too long": (lambda r: setattr(r, "tenant", LONG), "tenant"),
    "a namespace too long": (lambda r: setattr(r, "cache_namespace", LONG), "cache_namespace"),
    "all tokens were there before": (lambda r: setattr(r, "resumed_tokens", 3), "resumed_tokens"),
    "more tokens were there before": (lambda r: setattr(r, "resumed_tokens", 2**32 - 1), "resumed_tokens"),
    "too many rivals in the prompt": (lambda r: setattr(r, "prompt_logprobs", 129), "prompt_logprobs"),
    "more tokens than at most": (lambda r: setattr(r.stop, "min_tokens", 99), "min_tokens"),
    "a stop token outside": (lambda r: r.stop.token_ids.append(OUTSIDE), "stop.token_ids"),
    "too many stop tokens": (lambda r: r.stop.token_ids.extend(range(5000)), "stop.token_ids"),
    "a bias that is none": (lambda r: r.sampling.logit_bias.update({1: NAN}), "sampling.logit_bias[1]"),
    "a bias without end": (lambda r: r.sampling.logit_bias.update({1: INF}), "sampling.logit_bias[1]"),
    "a bias too large": (lambda r: r.sampling.logit_bias.update({1: 1e6}), "sampling.logit_bias[1]"),
    "a bias outside": (lambda r: r.sampling.logit_bias.update({OUTSIDE: 1.0}), "logit_bias"),
    "too many biases": (
        lambda r: r.sampling.logit_bias.update(dict.fromkeys(range(5000), 1.0)),
        "sampling.logit_bias",
    ),
    "nothing allowed": (
        lambda r: r.sampling.allowed_token_ids.CopyFrom(TokenIds()),
        "sampling.allowed_token_ids",
    ),
    "only what is outside": (
        lambda r: r.sampling.allowed_token_ids.ids.append(OUTSIDE),
        "allowed_token_ids",
    ),
    "too much allowed": (
        lambda r: r.sampling.allowed_token_ids.ids.extend([1] * 300_000),
        "sampling.allowed_token_ids",
    ),
    "an empty bad word": (lambda r: r.sampling.bad_token_sequences.add(), "sampling.bad_token_sequences[0]"),
    "a bad word outside": (
        lambda r: r.sampling.bad_token_sequences.add(ids=[OUTSIDE]),
        "bad_words",
    ),
    "too many bad words": (
        lambda r: r.sampling.bad_token_sequences.extend([TokenIds(ids=[1])] * 2000),
        "sampling.bad_token_sequences",
    ),
    "a bad word too long": (
        lambda r: r.sampling.bad_token_sequences.add(ids=[1] * 100),
        "sampling.bad_token_sequences[0]",
    ),
    "a grammar without a kind": (grammar(), "grammar"),
    "a schema that is no JSON": (grammar(json_schema="{"), "grammar.json_schema"),
    "a schema that is no object": (grammar(json_schema="[1]"), "grammar.json_schema"),
    "a schema too large": (
        grammar(json_schema=json.dumps({"description": "x" * 300_000})),
        "grammar.json_schema",
    ),
    "a schema too deep": (grammar(json_schema=DEEP), "grammar.json_schema"),
    "an expression that is none": (grammar(regex="("), "grammar"),
    "an empty expression": (grammar(regex=""), "grammar.regex"),
    "an expression too large": (grammar(regex="a" * 20_000), "grammar.regex"),
    "a grammar that is none": (grammar(lark="start: ("), "grammar"),
    "no choice": (grammar(choice=Choices()), "grammar.choice"),
    "an empty choice": (grammar(choice=Choices(texts=["a", ""])), "grammar.choice"),
    "choices too large": (grammar(choice=Choices(texts=["a" * 300_000])), "grammar.choice"),
    **{
        f"{name} = {value}": (sampling(**{name: value}), f"sampling.{name}")
        for name, values in {
            "temperature": (NAN, INF, -INF, -0.1, 101),
            "top_p": (NAN, INF, 0, -1, 1.1),
            "top_k": (2**31, 2**32 - 1),
            "min_p": (NAN, INF, -0.1, 1.1),
            "repetition_penalty": (NAN, INF, 0, -1, 101),
            "frequency_penalty": (NAN, INF, -101, 101),
            "presence_penalty": (NAN, -INF, -101, 101),
            "top_logprobs": (129, 2**32 - 1),
        }.items()
        for value in values
    },
}
BAD_IN_FRAMES: dict[str, tuple[Change, str]] = {
    "no id": (lambda r: r.ClearField("request_id"), "request_id"),
    "text": (lambda r: setattr(r, "text", "Hello"), "input"),
    "messages": (lambda r: r.messages.messages.append(Message(role="user", content="a")), "input"),
    "stop strings": (lambda r: r.stop.strings.append("a"), "stop.strings"),
    "bad words": (lambda r: r.sampling.bad_words.append("a"), "sampling.bad_words"),
    "echo": (lambda r: setattr(r, "echo", True), "echo"),
}
BAD_TEXT: dict[str, tuple[Change, str]] = {
    "an empty stop string": (lambda r: r.stop.strings.append(""), "stop.strings"),
    "too many stop strings": (lambda r: r.stop.strings.extend("abcdefghijklmnopq"), "stop.strings"),
    "a stop string too long": (lambda r: r.stop.strings.append(LONG), "stop.strings"),
    "an empty word": (lambda r: r.sampling.bad_words.append(" "), "sampling.bad_words"),
    "too many words": (lambda r: r.sampling.bad_words.extend(["a"] * 1025), "sampling.bad_words"),
    "words too long": (lambda r: r.sampling.bad_words.append("a" * (5 * 2**20)), "sampling.bad_words"),
    "an unknown role": (
        lambda r: r.messages.messages.append(Message(role="nobody", content="a")),
        "messages",
    ),
    "too many messages": (
        lambda r: r.messages.messages.extend([Message(role="user", content="a")] * 10_001),
        "messages",
    ),
    "text that is repeated but none": (lambda r: setattr(r, "echo", True), "echo"),
}
BAD_EMBED: dict[str, tuple[Callable[[EmbedRequest], object], str]] = {
    "no inputs": (lambda r: r.ClearField("inputs"), "inputs"),
    "too many inputs": (lambda r: r.inputs.extend([TokenIds(ids=[1])] * 3000), "inputs"),
    "an empty input": (lambda r: r.inputs.add(), "inputs[1]"),
    "a token outside": (lambda r: r.inputs.add(ids=[OUTSIDE]), "inputs[1]"),
    "a tenant too long": (lambda r: setattr(r, "tenant", LONG), "tenant"),
    "an unknown pooling": (lambda r: setattr(r, "pooling", 77), "pooling"),
}


@pytest.fixture(params=["grpc", "zmq"])
async def client(request: pytest.FixtureRequest, shared_engine: EngineProcess) -> AsyncIterator[EngineClient]:
    if request.param == "grpc":
        one: Any = GrpcEngineClient(shared_engine.target, peer_name="test")
    else:
        arguments = shared_engine.core().cmdline()
        one = ZmqEngineClient(arguments[arguments.index("--core-endpoint") + 1], peer_name="test")
    yield one
    await one.close()


def request_with(change: Change) -> GenerateRequest:
    request = token_request([1, 2, 3], 4, "r")
    change(request)
    return request


async def refusal(events: Any) -> EngineError:
    with pytest.raises(EngineError) as refused:
        async for _ in events:
            pass
    return refused.value


def assert_says_what_is_wrong(case: str, error: EngineError, param: str) -> None:
    expected = grpc.StatusCode.NOT_FOUND if param == "model" else grpc.StatusCode.INVALID_ARGUMENT
    assert (error.code, error.param) == (expected, param), (case, error.message)
    assert len(error.message) <= 1024


async def test_generation_over_frames(client: EngineClient, shared_engine: EngineProcess) -> None:
    core = shared_engine.core()
    for case, (change, param) in {**BAD, **BAD_IN_FRAMES}.items():
        request = request_with(change)
        if not request.request_id:
            continue  # clients make one up; `test_hostile_peers` sends frames of its own
        assert_says_what_is_wrong(case, await refusal(client.generate(request, timeout_s=60)), param)
    good = [event async for event in client.generate(token_request([1, 2, 3], 4), timeout_s=60)]
    assert good[-1].HasField("finished")
    assert shared_engine.core().pid == core.pid


async def test_generation_for_people(shared_engine: EngineProcess, channel: grpc.aio.Channel) -> None:
    stub = EngineServiceStub(channel)
    own_ids = {"an id too long"}  # the front makes ids of its own
    cases = {case: bad for case, bad in BAD.items() if case not in own_ids} | BAD_TEXT
    for case, (change, param) in cases.items():
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in stub.Generate(request_with(change), timeout=60):
                pass
        assert_says_what_is_wrong(case, from_rpc_error(refused.value), param)
    load = (await stub.GetLoad(GetLoadRequest())).load
    assert (load.running_requests, load.waiting_requests, load.kv_pages_in_use) == (0, 0, 0)


async def test_embedding(client: EngineClient) -> None:
    for case, (change, param) in BAD_EMBED.items():
        request = EmbedRequest(inputs=[TokenIds(ids=[1, 2, 3])])
        change(request)
        with pytest.raises(EngineError) as refused:
            await client.embed(request, timeout_s=60)
        assert_says_what_is_wrong(case, refused.value, param)
