"""Engines die or freeze in the middle of answers, and clients get the very text they would have got."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import psutil
import pytest
from openai import OpenAI
from tests.integration.test_processes_die import core_of, in_flight, wait_until

from rhizome.proxy.v1 import proxy_service_pb2, proxy_service_pb2_grpc
from rhizome_testing.running_stack import RunningStack, demo_stack_settings, running_stack

MAX_TOKENS = 400
NAMES = ["Paris", "a cat", "the sea", "old books", "bread", "winter", "a train", "seven stones"]
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0, "frequency_penalty": 0.8, "presence_penalty": 0.4},
    {"temperature": 0.9, "seed": 5},
    {"temperature": 1.1, "seed": 6, "top_p": 0.9, "presence_penalty": 1.0},
    {"temperature": 0.8, "seed": 7, "logprobs": True, "top_logprobs": 2},
    {"temperature": 0.9, "seed": 8, "extra_body": {"structured_outputs": {"regex": "([a-z]{2,9} ){300}"}}},
]


@dataclass
class Answer:
    """What one client reads, as it reads it."""

    text: str = ""
    chunks: int = 0
    logprobs: list[tuple[str, float]] = field(default_factory=list)
    finish_reason: str | None = None
    usage: tuple[int, int] | None = None
    error: Exception | None = None

    def read(self, url: str, number: int) -> None:
        try:
            with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
                stream = client.chat.completions.create(
                    model="rhizome-demo",
                    messages=[{"role": "user", "content": f"Tell a story about {NAMES[number % 8]}."}],
                    max_tokens=MAX_TOKENS,
                    stream=True,
                    stream_options={"include_usage": True},
                    **{"extra_body": {"min_tokens": MAX_TOKENS}, **SETTINGS[number % len(SETTINGS)]},
                )
                for chunk in stream:
                    self._take(chunk)
        except Exception as error:
            self.error = error

    def _take(self, chunk: Any) -> None:
        self.chunks += 1
        if chunk.usage is not None:
            self.usage = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
        for choice in chunk.choices:
            self.text += choice.delta.content or ""
            self.finish_reason = choice.finish_reason or self.finish_reason
            if choice.logprobs is not None:
                self.logprobs += [(one.token, round(one.logprob, 3)) for one in choice.logprobs.content or []]


def start(url: str, count: int) -> tuple[list[Answer], list[threading.Thread]]:
    answers = [Answer() for _ in range(count)]
    clients = [threading.Thread(target=one.read, args=(url, at)) for at, one in enumerate(answers)]
    for client in clients:
        client.start()
    return answers, clients


def check(answers: list[Answer], expected: list[Answer]) -> None:
    for answer, wanted in zip(answers, expected, strict=True):
        assert answer.error is None
        assert (answer.text, answer.usage) == (wanted.text, wanted.usage)
        assert (answer.logprobs, answer.finish_reason) == (wanted.logprobs, "length")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    # That an engine drains has to be seen before its time to drain is over, or its end looks like an Abort.
    environment = {
        "RHIZOME_PROXY_POLL_INTERVAL_S": "0.1",
        "RHIZOME_PROXY_POLL_TIMEOUT_S": "0.5",
        "RHIZOME_PROXY_STALL_TIMEOUT_S": "2",
    }
    settings = demo_stack_settings(
        tmp_path_factory.mktemp("logs"),
        environment=environment,
        engine_arguments=("--served-model-name", "rhizome-demo", "--drain-timeout-s", "0.5"),
    )
    with running_stack(settings) as running:
        yield running


@pytest.fixture(scope="module")
def expected(stack: RunningStack) -> list[Answer]:
    answers, clients = start(stack.url, 12)
    for client in clients:
        client.join(60)
    check(answers, answers)
    return answers


def processes(stack: RunningStack, engine: str) -> list[psutil.Process]:
    front = stack.service(engine)
    return [psutil.Process(front.pid), core_of(front)]


def open_streams(stack: RunningStack, victim: int, answers: list[Answer]) -> int:
    """How many streams the victim has, once all clients are in the middle of theirs."""
    wait_until(lambda: all(answer.chunks >= 4 for answer in answers), timeout_s=30)
    assert all(answer.finish_reason is None for answer in answers), "too short to be cut"
    return in_flight(stack, stack.stack.engine_addresses[victim])


def test_a_killed_engine_costs_no_token(stack: RunningStack, expected: list[Answer]) -> None:
    victims = processes(stack, "engine-0")
    answers, clients = start(stack.url, len(expected))
    assert open_streams(stack, 0, answers) >= 3
    for process in victims:
        process.kill()
    for client in clients:
        client.join(60)
    check(answers, expected)
    stack.run(stack.service("engine-0").start(), 60)


def test_a_frozen_engine_costs_no_token(stack: RunningStack, expected: list[Answer]) -> None:
    proxied = stack.stack.engine_addresses[0]
    wait_until(lambda: ready(stack, proxied), timeout_s=60)
    victims = processes(stack, "engine-1")
    answers, clients = start(stack.url, len(expected))
    assert open_streams(stack, 1, answers) >= 1
    for process in victims:
        process.suspend()
    try:
        for client in clients:
            client.join(60)
        check(answers, expected)
    finally:
        for process in victims:
            process.resume()


def test_an_engine_that_stops_too_soon_costs_no_token(stack: RunningStack, expected: list[Answer]) -> None:
    """Told to stop, an engine ends after a while what it has open."""
    wait_until(lambda: ready(stack, stack.stack.engine_addresses[1]), timeout_s=60)
    answers, clients = start(stack.url, len(expected))
    assert open_streams(stack, 0, answers) >= 1
    psutil.Process(stack.service("engine-0").pid).terminate()
    for client in clients:
        client.join(60)
    check(answers, expected)


def ready(stack: RunningStack, address: str) -> bool:
    with grpc.insecure_channel(stack.stack.proxy_address) as channel:
        stub = proxy_service_pb2_grpc.ProxyServiceStub(channel)
        backends = stub.ListBackends(proxy_service_pb2.ListBackendsRequest(), timeout=10).backends
    return any(b.address == address and b.state == proxy_service_pb2.BACKEND_STATE_READY for b in backends)
