"""The server that comes with llama-cpp-python, with a model made on the spot.

It runs where `pip install 'llama-cpp-python[server]' gguf` was done, in this environment or in the one whose
interpreter `RHIZOME_LLAMA_CPP_PYTHON` names.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from tests.backends.conftest import opening
from tests.relay.static_proxy import CountingBudget, StaticPicker, StaticTarget

from rhizome_backends import http_server
from rhizome_backends.base import Probe
from rhizome_relay.fetch import fetch
from rhizome_relay.origin import read_origin
from rhizome_relay.picker import Origin
from rhizome_relay.pool import Pools
from rhizome_relay.relay import Relay
from rhizome_relay.server import HttpServer
from rhizome_relay.settings import RelaySettings
from rhizome_testing.ports import free_ports
from rhizome_testing.processes import ProcessFixture

PYTHON = os.environ.get("RHIZOME_LLAMA_CPP_PYTHON", sys.executable)
MAKER = Path(__file__).parents[2] / "benchmarks" / "peers" / "random_gguf.py"
TOKENS = 300


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    imported = subprocess.run([PYTHON, "-c", "import gguf, llama_cpp.server.app"], capture_output=True)
    if imported.returncode:
        pytest.skip("llama-cpp-python[server] and gguf are not installed; see RHIZOME_LLAMA_CPP_PYTHON")
    folder = tmp_path_factory.mktemp("llama_cpp_python")
    subprocess.run([PYTHON, str(MAKER), str(folder / "random.gguf")], check=True)
    (port,) = free_ports(1)
    options = ["--model", str(folder / "random.gguf"), "--model_alias", "random", "--n_threads", "1"]
    command = [PYTHON, "-m", "llama_cpp.server", "--port", str(port), *options, "--host", "127.0.0.1"]
    server = ProcessFixture(command, log=folder / "log", name="llama_cpp.server")
    try:
        server.wait_for_port(port, timeout_s=60.0)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()


async def test_is_a_backend_of_the_openai_api(url: str, pools: Pools) -> None:
    server = opening(url, pools=pools)
    assert await server.probe(20.0) == Probe(serving=True, models=("random",))
    assert server.kind == "openai"


async def test_answers_through_the_relay(url: str) -> None:
    """It takes no request id that is no UUID."""
    origin = read_origin(url)
    relay = HttpServer(Relay(StaticPicker([StaticTarget(origin.port)]), CountingBudget()))
    await relay.start("127.0.0.1", 0)
    pools = Pools(RelaySettings())
    message = {"role": "user", "content": "Once"}
    answer = await fetch(
        pools,
        Origin("127.0.0.1", relay.port),
        b"/v1/chat/completions",
        headers=((b"content-type", b"application/json"),),
        timeout_s=20.0,
        method=b"POST",
        body=orjson.dumps({"model": "random", "messages": [message], "max_tokens": 4, "temperature": 0}),
    )
    pools.close()
    await relay.stop(1.0)
    assert answer.status == 200, answer
    assert orjson.loads(answer.body)["usage"]["completion_tokens"] == 4


async def test_checks_do_not_break_off_what_it_says(
    url: str, pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To answer for its models it ends the stream that runs, as if the model had said all."""
    monkeypatch.setattr(http_server, "REFRESH_S", 0.0)
    server = opening(url, pools=pools)
    await server.probe(20.0)
    body = {"model": "random", "prompt": "Once", "max_tokens": TOKENS, "temperature": 0, "stream": True}
    streaming = asyncio.create_task(
        fetch(
            pools,
            read_origin(url),
            b"/v1/completions",
            headers=((b"content-type", b"application/json"),),
            timeout_s=60.0,
            method=b"POST",
            body=orjson.dumps(body),
        )
    )
    checks = 0
    while not streaming.done():
        assert (await server.probe(20.0)).serving
        checks += 1
        await asyncio.sleep(0.05)
    lines = (await streaming).body.split(b"\n")
    events = [orjson.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert sum(bool(event["choices"][0]["text"]) for event in events) == TOKENS
    assert checks > 1
