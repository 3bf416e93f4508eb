"""The scene of `compose.llamacpp.yaml` as processes: two llama.cpp servers behind the proxy and nginx.

Commands and variables are those of the file with the values of `.env.example`; only folders, ports and hosts
are others. The servers are simulated ones; and llama.cpp itself under the server of llama-cpp-python, which
knows other options and tells less, where that and gguf are installed, in this environment or in the one whose
interpreter RHIZOME_LLAMA_CPP_PYTHON names.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.deploy.compose_files import COMPOSE, LLAMACPP, read, with_values
from tests.deploy.nginx_process import NginxProcess

from rhizome_testing.ports import free_ports
from rhizome_testing.processes import ProcessFixture
from rhizome_testing.simulated_server import SimulatedServer

pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx (Debian: nginx-light)")

PYTHON = os.environ.get("RHIZOME_LLAMA_CPP_PYTHON", sys.executable)
MAKER = Path(__file__).parents[2] / "benchmarks" / "peers" / "random_gguf.py"
NAMES = ("llm-1", "llm-2")
TOKENS = 80
ASKED: dict[str, Any] = {"prompt": "Once", "max_tokens": TOKENS, "temperature": 0}


class Scene:
    """What runs.

    Attributes:
        url: where nginx has the API.
        kill: ends a server at once, by its address.
        kind: what the proxy finds the servers to be.
    """

    def __init__(self, url: str, kill: dict[str, Callable[[], None]], kind: str) -> None:
        self.url = url
        self.kill = kill
        self.kind = kind

    def client(self) -> openai.OpenAI:
        """Somebody who asks once."""
        http = httpx.Client(trust_env=False, timeout=120)
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, http_client=http)

    def health(self) -> dict[str, Any]:
        """What the proxy says of itself and of both servers."""
        told: dict[str, Any] = httpx.get(f"{self.url}/health", trust_env=False).json()
        return told

    def wait(self, condition: Callable[[dict[str, Any]], bool], what: str, timeout_s: float = 30) -> None:
        """Poll health until it is as wanted."""
        deadline = time.monotonic() + timeout_s
        while not condition(told := self.health()):
            assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}: {told}"
            time.sleep(0.1)


def example() -> dict[str, str]:
    """What `.env.example` sets."""
    return dict(re.findall(r"^([A-Z_]+)=(.*)$", (COMPOSE / ".env.example").read_text(), re.MULTILINE))


@pytest.fixture(scope="module", params=["simulated", "llama-cpp-python"])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("scene")
    real = request.param == "llama-cpp-python"
    values = example()
    if real:
        if subprocess.run(
            [PYTHON, "-c", "import gguf, llama_cpp.server.app"], capture_output=True
        ).returncode:
            pytest.skip("llama-cpp-python[server] and gguf are not installed; see RHIZOME_LLAMA_CPP_PYTHON")
        subprocess.run([PYTHON, str(MAKER), str(folder / "random.gguf")], check=True)
        values |= {"MODEL_DIR": str(folder), "MODEL": "random.gguf"}
    services = with_values(read(LLAMACPP)["services"], values)
    with ExitStack() as stack:
        kill: dict[str, Callable[[], None]] = {}
        backends = values["BACKENDS"]
        for name in NAMES:
            make = llama_cpp_python if real else simulated
            port, ending = make(stack, services[name], name, folder)
            backends = backends.replace(f"{name}:8080", f"127.0.0.1:{port}")
            kill[f"http://127.0.0.1:{port}"] = ending
        assert not any(name in backends for name in NAMES)
        http_port = proxy(stack, services["proxy"], backends, folder)
        nginx = stack.enter_context(NginxProcess(folder / "nginx", {"http_proxy": http_port}))
        yield Scene(f"http://127.0.0.1:{nginx.http_port}", kill, "openai" if real else "llamacpp")


def simulated(
    stack: ExitStack, service: dict[str, Any], name: str, folder: Path
) -> tuple[int, Callable[[], None]]:
    """A server with the routes of llama.cpp and as many slots; its port, and what kills it."""
    slots = service["command"][service["command"].index("--parallel") + 1]
    server = SimulatedServer("llamacpp", folder, "--max-running", slots, "--itl-base-ms", "10", name=name)
    stack.enter_context(server)
    server.wait_serving()
    return server.port, server.kill


def llama_cpp_python(
    stack: ExitStack, service: dict[str, Any], name: str, folder: Path
) -> tuple[int, Callable[[], None]]:
    """llama.cpp with the model of the file; its port, and what kills it."""
    (port,) = free_ports(1)
    model = service["command"][service["command"].index("--model") + 1].replace("/models/", f"{folder}/")
    options = ["--model", model, "--model_alias", "random", "--n_threads", "1"]
    options += ["--interrupt_requests", "false", "--host", "127.0.0.1", "--port", str(port)]
    command = [PYTHON, "-m", "llama_cpp.server", *options]
    server = stack.enter_context(ProcessFixture(command, log=folder / f"{name}.log", name=name))
    server.wait_for_port(port)

    def kill() -> None:
        server.signal(signal.SIGKILL)
        server.wait()

    return port, kill


def proxy(stack: ExitStack, service: dict[str, Any], backends: str, folder: Path) -> int:
    """The proxy with the variables of the file, healthy as compose sees it; the port of its HTTP face."""
    port, http_port = free_ports(2)
    usual = service["environment"]["RHIZOME_PROXY_HTTP_PORT"]
    assert usual == "8888"
    ports = {"RHIZOME_PROXY_HTTP_PORT": str(http_port), "RHIZOME_PROXY_PORT": str(port)}
    environment = {**service["environment"], **ports, "BACKENDS": backends}
    process = stack.enter_context(
        ProcessFixture.module("rhizome_proxy", log_dir=folder, environment=environment, name="proxy")
    )
    probe = [part.replace("50050", str(port)) for part in service["healthcheck"]["test"][1:]]
    assert probe[0] == "python"

    def healthy() -> bool:
        return subprocess.run([sys.executable, *probe[1:]], capture_output=True).returncode == 0

    process.wait_until(healthy, "its health check passes")
    return http_port


def test_both_servers_are_known_and_asked(scene: Scene) -> None:
    scene.wait(lambda told: len(told["available_backends"]) == 2, "both are ready")
    told = scene.health()
    assert (told["status"], told["total_backends"]) == ("ok", 2)
    for detail in told["details"]:
        assert detail["kind"] == scene.kind
        told_of_load = [detail["metrics"][f"requests_{what}"] for what in ("processing", "deferred")]
        assert told_of_load == ([0, 0] if scene.kind == "llamacpp" else [None, None])
    client = scene.client()
    (model,) = {one.id for one in client.models.list()}

    def ask(number: int) -> str:
        raw = client.chat.completions.with_raw_response.create(
            model=model, messages=[{"role": "user", "content": f"Number {number}"}], max_tokens=8
        )
        usage = raw.parse().usage
        assert usage is not None and usage.completion_tokens == 8
        return str(raw.headers["x-rhizome-backend"])

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(8))) == set(scene.kill)


def test_nobody_is_sent_to_a_server_that_others_keep_busy(scene: Scene) -> None:
    """More than MAX_ALLOWED_DEFERRED wait there, as its metrics say every METRICS_CACHE_TTL_SECONDS."""
    if scene.kind != "llamacpp":
        pytest.skip("it tells nothing of its load")
    client = scene.client()
    model = client.models.list().data[0].id
    crowded, free = scene.kill
    enough = threading.Event()

    def crowd(number: int) -> None:
        direct = openai.OpenAI(
            base_url=f"{crowded}/v1", api_key="none", http_client=httpx.Client(trust_env=False, timeout=120)
        )
        asked = {**ASKED, "prompt": f"Number {number}", "max_tokens": 3000}
        with direct.completions.create(model=model, stream=True, **asked) as stream:
            for _ in stream:
                if enough.is_set():
                    break
        direct.close()

    def busy(told: dict[str, Any]) -> dict[str, bool]:
        return {detail["backend"]: detail["busy"] for detail in told["details"]}

    with ThreadPoolExecutor(10) as pool:
        try:
            for number in range(10):
                pool.submit(crowd, number)
            scene.wait(lambda told: busy(told) == {crowded: True, free: False}, "one of them is busy")
            (seen,) = (one["metrics"] for one in scene.health()["details"] if one["backend"] == crowded)
            assert seen["requests_deferred"] > int(example()["MAX_ALLOWED_DEFERRED"])
            for number in range(6):
                raw = client.completions.with_raw_response.create(
                    model=model, prompt=f"{number}", max_tokens=4
                )
                assert raw.headers["x-rhizome-backend"] == free
        finally:
            enough.set()
    scene.wait(lambda told: busy(told) == {crowded: False, free: False}, "neither is busy any more")


def test_a_stream_goes_on_at_the_other_server(scene: Scene) -> None:
    client = scene.client()
    model = client.models.list().data[0].id
    expected = client.completions.create(model=model, **ASKED).choices[0].text
    assert expected
    with client.completions.with_streaming_response.create(model=model, stream=True, **ASKED) as raw:
        address = raw.headers["x-rhizome-backend"]
        text, killer = "", None
        for chunk in raw.parse():
            text += chunk.choices[0].text if chunk.choices else ""
            if killer is None and len(text) > 20:
                killer = threading.Thread(target=scene.kill[address])
                killer.start()
        assert killer is not None
        killer.join()
    if scene.kind == "llamacpp":
        assert text == expected
    else:  # what was said is read as text, and to this model's tokenizer that is other tokens (docs/proxy.md)
        assert text[:20] == expected[:20]
        assert len(text.split()) == len(expected.split()) == TOKENS
    scene.wait(lambda told: told["status"] == "degraded", "one is down")
    assert scene.health()["available_backends"] == [one for one in scene.kill if one != address]
    again = client.completions.create(model=model, **ASKED)
    assert again.choices[0].text == expected
