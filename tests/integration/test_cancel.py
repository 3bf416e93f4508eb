"""Closing the HTTP connection frees the request's KV pages in the engine."""

from __future__ import annotations

import json
import time
from http.client import HTTPConnection
from urllib.parse import urlsplit

import grpc
from openai import OpenAI

from rhizome.engine.v1 import engine_service_pb2, engine_service_pb2_grpc
from rhizome.engine.v1.load_pb2 import Load
from rhizome_testing.running_stack import RunningStack
from rhizome_testing.time_bounds import assert_within

LONG = {
    "model": "rhizome-demo",
    "messages": [{"role": "user", "content": "Count from 1 to 60"}],
    "ignore_eos": True,
    "max_tokens": 1500,
    "temperature": 0,
}


def loads(stack: RunningStack) -> list[Load]:
    """The load of every engine."""
    found = []
    for address in stack.stack.engine_addresses:
        with grpc.insecure_channel(address) as channel:
            stub = engine_service_pb2_grpc.EngineServiceStub(channel)
            found.append(stub.GetLoad(engine_service_pb2.GetLoadRequest(), timeout=10).load)
    return found


def wait_for(condition: object, timeout_s: float = 30) -> float:
    """Poll until the callable is true; return the seconds that it took."""
    assert callable(condition)
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout_s, "not within the time"
        time.sleep(0.01)
    return time.monotonic() - started


def running(stack: RunningStack) -> int:
    return sum(load.running_requests + load.waiting_requests for load in loads(stack))


def aborted(stack: RunningStack) -> int:
    return sum(load.totals.aborted for load in loads(stack))


def test_closing_a_stream_ends_the_request(stack: RunningStack, client: OpenAI) -> None:
    def leave() -> float:
        wait_for(lambda: running(stack) == 0)
        before = aborted(stack)
        stream = client.chat.completions.create(**LONG_SDK, stream=True)  # type: ignore[call-overload]
        seen = 0
        for chunk in stream:
            seen += bool(chunk.choices and chunk.choices[0].delta.content)
            if seen == 5:
                break
        assert running(stack) == 1
        stream.close()
        elapsed = wait_for(lambda: running(stack) == 0)
        assert aborted(stack) == before + 1
        assert all(load.kv_pages_in_use == 0 for load in loads(stack))
        return elapsed

    assert_within(1, leave)


def test_hanging_up_on_a_whole_answer_ends_the_request(stack: RunningStack) -> None:
    gateway = urlsplit(stack.url)

    def leave() -> float:
        wait_for(lambda: running(stack) == 0)
        before = aborted(stack)
        connection = HTTPConnection(gateway.hostname or "", gateway.port)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(LONG), headers)
        wait_for(lambda: running(stack) == 1)
        connection.close()
        elapsed = wait_for(lambda: running(stack) == 0)
        assert aborted(stack) == before + 1
        assert all(load.kv_pages_in_use == 0 for load in loads(stack))
        return elapsed

    assert_within(2, leave)


LONG_SDK = {
    **{key: value for key, value in LONG.items() if key != "ignore_eos"},
    "extra_body": {"ignore_eos": True},
}
