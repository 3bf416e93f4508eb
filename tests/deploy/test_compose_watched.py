"""`make test-compose`: the stack in containers, watched: one request is one trace, Prometheus finds all.

The trace of a request that loses its engine on the way is the same one.
"""

from __future__ import annotations

import json
import secrets
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from tests.deploy.compose_stack import MODEL, ComposeStack, only_for_the_asking, tell
from tests.deploy.compose_watched import WatchedStack, build_prometheus, outline, watched_stack

from rhizome_testing.otlp_sink import SunkSpan

pytestmark = only_for_the_asking

STREAMS = 4
TOKENS = 1200
ANSWER = [
    "        rhizome-engine SERVER",
    "          rhizome.queue",
    "          rhizome.prefill",
    "          rhizome.decode",
]
REQUEST = ["rhizome-gateway SERVER", "  rhizome-gateway CLIENT", "    rhizome-proxy SERVER"]
ATTEMPT = ["      rhizome-proxy CLIENT"]
WHOLE = [*REQUEST, *ATTEMPT, *ANSWER]
"""The tree of docs/architecture.md."""
RESUMED = [*REQUEST, *ATTEMPT, *ATTEMPT, *ANSWER]
"""The engine that was killed cannot tell its part any more; the proxy's span of the attempt there does."""
TEXT = {"model": MODEL, "messages": [{"role": "user", "content": "Count from 1 to 9"}], "temperature": 0}


@pytest.fixture(scope="module")
def stack(
    docker_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WatchedStack]:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("Prometheus is missing: install Debian's package prometheus")
    build_prometheus(docker_environment, tmp_path_factory.mktemp("image"), program)
    with watched_stack(docker_environment, tmp_path_factory.mktemp("watched")) as stack:
        yield stack


@pytest.fixture(scope="module")
def client(stack: WatchedStack) -> Iterator[openai.OpenAI]:
    with stack.client() as client:
        yield client


def traceparent() -> tuple[str, str, dict[str, str]]:
    """A caller's trace and span, and the header that carries them."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    return trace_id, span_id, {"traceparent": f"00-{trace_id}-{span_id}-01"}


def answered(spans: list[SunkSpan]) -> bool:
    """Whether gateway, proxy and an engine have told their parts."""
    of_engine = sum(span.service == "rhizome-engine" for span in spans)
    return {span.service for span in spans} >= {"rhizome-gateway", "rhizome-proxy"} and of_engine >= 4


def in_order(spans: list[SunkSpan]) -> None:
    """Children lie within their parents; all containers have one clock."""
    by_id = {span.span_id: span for span in spans}
    for span in spans:
        assert span.start_ns <= span.end_ns
        if span.parent_span_id in by_id:
            assert by_id[span.parent_span_id].start_ns <= span.start_ns, outline(spans)


def test_a_request_without_a_trace_begins_one_at_the_gateway(
    stack: WatchedStack, client: openai.OpenAI
) -> None:
    raw = client.chat.completions.with_raw_response.create(**TEXT)  # type: ignore[call-overload]
    trace_id = raw.headers["x-trace-id"]
    usage = raw.parse().usage
    spans = stack.trace(trace_id, answered)
    assert outline(spans) == WHOLE
    assert not spans[0].parent_span_id
    assert all(span.status != "ERROR" for span in spans)
    (chat,) = [one for one in spans if (one.service, one.kind) == ("rhizome-gateway", "CLIENT")]
    assert chat.attributes["gen_ai.usage.input_tokens"] == usage.prompt_tokens
    assert chat.attributes["gen_ai.usage.output_tokens"] == usage.completion_tokens
    in_order(spans)


def test_the_trace_of_a_caller_goes_through_nginx(stack: WatchedStack, client: openai.OpenAI) -> None:
    trace_id, span_id, headers = traceparent()
    raw = client.chat.completions.with_raw_response.create(
        **TEXT, extra_headers={**headers, "x-request-id": f"order-{trace_id[:8]}"}
    )  # type: ignore[call-overload]
    assert raw.headers["x-trace-id"] == trace_id
    spans = stack.trace(trace_id, answered)
    assert outline(spans) == WHOLE
    assert spans[0].parent_span_id == span_id
    (container,) = stack.containers("nginx")

    def logged() -> list[str]:
        return [line for line in stack.docker("logs", container["Id"]).splitlines() if trace_id in line]

    stack.wait(lambda: bool(logged()), "nginx has logged the request", 30)
    (line,) = map(json.loads, logged())
    assert (line["path"], line["request_id"]) == ("/v1/chat/completions", f"order-{trace_id[:8]}")


def test_who_asks_not_to_be_traced_is_not(stack: WatchedStack, client: openai.OpenAI) -> None:
    """The variables of the file make the sampler follow the caller."""
    quiet = secrets.token_hex(16)
    headers = {"traceparent": f"00-{quiet}-{secrets.token_hex(8)}-00"}
    client.chat.completions.create(**TEXT, extra_headers=headers)  # type: ignore[call-overload]
    trace_id, _, headers = traceparent()
    client.chat.completions.create(**TEXT, extra_headers=headers)  # type: ignore[call-overload]
    stack.trace(trace_id, answered)
    assert quiet not in stack.traces()


def test_prometheus_finds_every_container_by_name(stack: WatchedStack) -> None:
    """As `prometheus.yml` has it: by DNS, an address for every replica, at port 9464."""

    def up() -> dict[str, int]:
        return {one["job"]: int(value) for one, value in stack.samples("sum by (job) (up)")}

    took_s = stack.wait(
        lambda: up() == {"gateway": 1, "proxy": 1, "engine": 2, "prometheus": 1}, "five are up", 180
    )
    tell(f"Prometheus has found all after {took_s:.0f} s")
    targets = stack.prometheus_api("targets")["activeTargets"]
    hosts = {one["labels"]["instance"] for one in targets if one["labels"]["job"] == "engine"}
    assert hosts == {f"{host(stack, one)}:9464" for one in stack.containers("engine")}
    groups = stack.prometheus_api("rules")["groups"]
    assert {group["name"] for group in groups}
    assert not [rule for group in groups for rule in group["rules"] if rule["health"] == "err"]
    stack.wait(
        lambda: sum(value for _, value in stack.samples("rhizome_gateway_generated_tokens_total")) > 0,
        "the tokens of the chats before are counted",
        180,
    )


def test_the_log_level_changes_while_containers_run(stack: WatchedStack, client: openai.OpenAI) -> None:
    """By docker, and by what `kubectl exec` would run: there is no program `kill`, but a shell."""
    for service in ("gateway", "proxy"):
        stack.docker("kill", "--signal", "USR1", stack.containers(service)[0]["Id"])
    for engine in stack.containers("engine"):
        stack.docker("exec", engine["Id"], "sh", "-c", "kill -USR1 1")
    request_id = f"look-{secrets.token_hex(4)}"
    for _ in range(2):
        client.chat.completions.create(**TEXT, extra_headers={"x-request-id": request_id})  # type: ignore[call-overload]
    for service in ("gateway", "proxy", "engine"):
        stack.wait(
            lambda service=service: any(
                request_id in line and "DEBUG" in line
                for line in stack.compose("logs", "--no-color", service).splitlines()
            ),
            f"{service} tells of the request",
            60,
        )
        for container in stack.containers(service):
            stack.docker("kill", "--signal", "USR2", container["Id"])


def host(stack: ComposeStack, container: dict[str, Any]) -> str:
    """Address of a container in the network of the engines."""
    network = f"{stack.environment['COMPOSE_PROJECT_NAME']}_back"
    return str(container["NetworkSettings"]["Networks"][network]["IPAddress"])


def long_stream(client: openai.OpenAI, seed: int, begun: threading.Barrier) -> tuple[str, str, int]:
    """Stream a long text.

    Returns:
        Trace, span of the caller, and tokens that came.
    """
    trace_id, span_id, headers = traceparent()
    tokens = 0
    stream = client.completions.create(
        model=MODEL,
        prompt=f"Number {seed}:",
        max_tokens=TOKENS,
        seed=seed,
        temperature=1,
        stream=True,
        stream_options={"include_usage": True},
        extra_headers=headers,
        extra_body={"ignore_eos": True},
    )
    waits = True
    for chunk in stream:
        if waits and chunk.choices and chunk.choices[0].text:
            begun.wait(120)
            waits = False
        if chunk.usage is not None:
            tokens = chunk.usage.completion_tokens
    return trace_id, span_id, tokens


def test_an_answer_that_outlives_its_engine_is_one_trace(stack: WatchedStack, client: openai.OpenAI) -> None:
    begun = threading.Barrier(STREAMS + 1)
    victim = stack.containers("engine")[0]
    lost = host(stack, victim)
    with ThreadPoolExecutor(STREAMS) as pool:
        streams = [pool.submit(long_stream, client, seed, begun) for seed in range(STREAMS)]
        begun.wait(300)
        stack.docker("kill", "--signal", "KILL", victim["Id"])
        answers = [stream.result(300) for stream in streams]
    resumed = 0
    for trace_id, span_id, tokens in answers:
        assert tokens == TOKENS
        spans = stack.trace(trace_id, answered)
        assert spans[0].parent_span_id == span_id
        in_order(spans)
        (at_proxy,) = [one for one in spans if (one.service, one.kind) == ("rhizome-proxy", "SERVER")]
        events = [one for one in at_proxy.events if one.name == "rhizome.proxy.resume"]
        assert outline(spans) == (RESUMED if events else WHOLE)
        if events:
            resumed += 1
            was_resumed(spans, events[0].attributes["rhizome.proxy.backend"], lost)
    tell(f"engine killed under {STREAMS} traced streams: {resumed} went on elsewhere")
    assert resumed >= 1


def was_resumed(spans: list[SunkSpan], backend: object, lost: str) -> None:
    """The first attempt was at the engine that is gone, and failed; all else went well."""
    assert str(backend).rpartition(":")[0] == lost
    first, second = (one for one in spans if (one.service, one.kind) == ("rhizome-proxy", "CLIENT"))
    assert (first.status, first.attributes["server.address"]) == ("ERROR", lost)
    assert second.attributes["server.address"] != lost
    (engine,) = (one for one in spans if (one.service, one.kind) == ("rhizome-engine", "SERVER"))
    assert engine.parent_span_id == second.span_id
    assert all(one.status != "ERROR" for one in spans if one is not first)
