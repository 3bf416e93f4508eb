"""`make test-compose`: the CPU stack as real containers behind nginx with TLS, and what may happen to it.

The first run makes base images, collects wheels and builds, which takes a quarter of an hour; later ones
build what changed. RHIZOME_DOCKER_ROOT says where a daemon of our own keeps all that, RHIZOME_COMPOSE_VERSION
which images to take as they are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from tests.deploy.compose_stack import MODEL, VERSION, ComposeStack, only_for_the_asking, tell

pytestmark = only_for_the_asking

STREAMS = 8
TOKENS = 1200


@pytest.fixture(scope="module")
def stack(
    docker_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComposeStack]:
    stack = ComposeStack(docker_environment, tmp_path_factory.mktemp("certificates"))
    began = time.monotonic()
    try:
        stack.compose("up", "--detach", timeout_s=1200)
        stack.wait(lambda: len(stack.containers()) == 5 and stack.healthy(), "five healthy containers")
        tell(f"up: {time.monotonic() - began:.0f} s")
        yield stack
    finally:
        began = time.monotonic()
        stack.compose("down", "--volumes")
        tell(f"down: {time.monotonic() - began:.0f} s\n")


@pytest.fixture(scope="module")
def client(stack: ComposeStack) -> Iterator[openai.OpenAI]:
    with stack.client() as client:
        yield client


def test_images_are_small_and_hold_no_tools(stack: ComposeStack) -> None:
    for image, largest_mb in (("gateway", 250), ("proxy", 250), ("engine", 1200)):
        tag = f"rhizome/{image}:{VERSION}" + ("-cpu" if image == "engine" else "")
        size_mb = int(stack.docker("image", "inspect", "--format", "{{.Size}}", tag)) / 1e6
        tell(f"{tag}: {size_mb:.0f} MB")
        assert size_mb <= largest_mb
        look = "for one in cc gcc g++ make pip curl; do command -v $one; done;"
        look += " python -c 'import torch' 2> /dev/null && echo torch"
        found = stack.docker(
            "run", "--rm", "--network", "none", "--entrypoint", "sh", tag, "-c", f"{look}; true"
        )
        assert found == ("torch" if image == "engine" else "")


def test_containers_may_do_nothing_else(stack: ComposeStack) -> None:
    for container in stack.containers():
        settings = container["HostConfig"]
        assert settings["ReadonlyRootfs"], container["Name"]
        assert settings["CapDrop"] == ["ALL"]
        assert settings["Memory"] > 0
        assert settings["NanoCpus"] > 0
        assert settings["PidsLimit"] > 0
        tried = "id -u; touch /opt/x 2> /dev/null || echo read-only; touch /tmp/x && echo writable"
        assert stack.docker("exec", container["Id"], "sh", "-c", tried).split() == [
            "65532",
            "read-only",
            "writable",
        ]


def test_a_chat_through_nginx(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "What is the capital of France?"}], temperature=0
    )
    assert "Paris" in (answer.choices[0].message.content or "")


def long_stream(client: openai.OpenAI, seed: int, begun: threading.Barrier | None = None) -> str:
    """A long text that depends on its seed only."""
    text = ""
    stream = client.completions.create(
        model=MODEL,
        prompt=f"Number {seed}:",
        max_tokens=TOKENS,
        seed=seed,
        temperature=1,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    for chunk in stream:
        text += chunk.choices[0].text if chunk.choices else ""
        if begun is not None and text:
            begun.wait(120)
            begun = None
    return text


def test_streams_go_on_when_their_engine_is_killed(stack: ComposeStack, client: openai.OpenAI) -> None:
    expected = [long_stream(client, seed) for seed in range(STREAMS)]
    assert min(map(len, expected)) > 100
    assert len(set(expected)) == STREAMS
    begun = threading.Barrier(STREAMS + 1)
    victim = stack.containers("engine")[0]
    with ThreadPoolExecutor(STREAMS) as pool:
        streams = [pool.submit(long_stream, client, seed, begun) for seed in range(STREAMS)]
        begun.wait(300)
        stack.docker("kill", "--signal", "KILL", victim["Id"])
        texts = [stream.result(300) for stream in streams]
    resumed = [
        line for line in stack.figures("proxy").splitlines() if line.startswith("rhizome_proxy_resumes_total")
    ]
    count = sum(float(line.rpartition(" ")[2]) for line in resumed)
    tell(f"engine killed under {STREAMS} streams: {count:.0f} went on elsewhere")
    assert texts == expected
    assert count >= 1


def test_three_engines_are_found_by_name(stack: ComposeStack, client: openai.OpenAI) -> None:
    began = time.monotonic()
    stack.compose("up", "--detach", "--scale", "engine=3", timeout_s=900)
    stack.wait(lambda: stack.ready_engines() == 3, "the proxy has three ready engines")
    tell(f"from one engine to three: {time.monotonic() - began:.0f} s")
    assert len(stack.containers("engine")) == 3
    with ThreadPoolExecutor(STREAMS) as pool:
        texts = list(pool.map(lambda seed: long_stream(client, seed), range(STREAMS)))
    assert len(set(texts)) == STREAMS


def test_an_engine_that_is_stopped_drains(stack: ComposeStack, client: openai.OpenAI) -> None:
    expected = long_stream(client, 1)
    begun = threading.Barrier(2)
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(long_stream, client, 1, begun)
        begun.wait(300)
        stack.compose("stop", "engine", timeout_s=300)
        assert stream.result(300) == expected
    assert {one["State"]["ExitCode"] for one in stack.containers("engine")} == {0}


def test_everything_stops_by_itself(stack: ComposeStack) -> None:
    began = time.monotonic()
    stack.compose("stop", timeout_s=300)
    tell(f"stop: {time.monotonic() - began:.0f} s")
    assert {one["Name"]: one["State"]["ExitCode"] for one in stack.containers()} == {
        one["Name"]: 0 for one in stack.containers()
    }
