"""The nginx of `deploy/nginx` before real services: streams, ids, limits, gRPC, errors."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import httpx
import openai
import pytest
from tests.deploy.nginx_process import NGINX, NginxProcess, install, substitute
from tests.gateway.conftest import RunningGateway, eventually, running_gateway

from rhizome.engine.v1.generate_pb2 import GenerateRequest, TokenIds
from rhizome.proxy.v1.proxy_service_pb2 import ListBackendsRequest
from rhizome.proxy.v1.proxy_service_pb2_grpc import ProxyServiceStub
from rhizome_gateway.settings import GatewaySettings
from rhizome_proxy.settings import ProxySettings
from rhizome_testing.certificates import Authority
from rhizome_testing.proxy_process import ProxyProcess
from rhizome_testing.talking_engine import Hang, Say, TalkingEngine, Until
from rhizome_transport.channel import ENGINE_SERVICE
from rhizome_transport.errors import EngineError
from rhizome_transport.grpc_client import GrpcEngineClient
from rhizome_transport.probe import SERVING, probe
from rhizome_transport.tls import ClientTls

pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx (Debian: nginx-light)")

HI = [{"role": "user", "content": "Hi"}]
COMPOSE_TARGETS = NGINX.parent / "compose" / "nginx" / "targets.conf"


class Front:
    """nginx, what is behind it, and clients that believe its certificate."""

    def __init__(self, nginx: NginxProcess, gateway: RunningGateway, engine: TalkingEngine) -> None:
        self.nginx = nginx
        self.gateway = gateway
        self.engine = engine
        trust = ssl.create_default_context(cafile=str(nginx.authority.ca))
        self.http = httpx.AsyncClient(base_url=nginx.url, verify=trust, timeout=30, trust_env=False)
        self.openai = openai.AsyncOpenAI(
            base_url=f"{nginx.url}/v1", api_key="none", max_retries=0, http_client=self.http
        )

    def log(self) -> list[dict[str, object]]:
        """Its access log so far."""
        return [json.loads(line) for line in self.nginx.output.splitlines() if line.startswith("{")]


@asynccontextmanager
async def running_front(folder: Path, **targets: int) -> AsyncIterator[Front]:
    """nginx before a gateway before a scripted engine."""
    async with TalkingEngine() as engine, running_gateway(engine.target) as gateway:
        await gateway.becomes_ready()
        port = int(gateway.url.rpartition(":")[2])
        with NginxProcess(folder / "nginx", {"gateway": port, **targets}) as nginx:
            front = Front(nginx, gateway, engine)
            try:
                yield front
            finally:
                await front.http.aclose()


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    async with running_front(tmp_path) as front:
        yield front


@pytest.mark.parametrize("where", ["host", "compose"])
def test_nginx_takes_the_configuration(tmp_path: Path, where: str) -> None:
    install(tmp_path / "nginx")
    if where == "compose":
        shutil.copy(COMPOSE_TARGETS, tmp_path / "nginx" / "rhizome")
    command = ["nginx", "-t", "-p", str(tmp_path / "nginx"), "-c", str(tmp_path / "nginx" / "nginx.conf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not Path("/etc/nginx/nginx.conf").exists(), reason="needs Debian's nginx.conf")
def test_what_the_readme_says_works_beside_debians_own_configuration(tmp_path: Path) -> None:
    """Its commands as they stand, but for where files lie and for the reload."""
    etc = tmp_path / "nginx"
    shutil.copytree("/etc/nginx", etc)
    own = {"/etc/nginx": str(etc), "/var/log/nginx": str(tmp_path), "/run/nginx": str(tmp_path / "nginx")}
    for path in (etc / "nginx.conf", *etc.glob("modules-enabled/*")):
        path.write_text(moved(path.read_text(), own))
    authority = Authority(tmp_path)
    shown = authority.issue("server")
    shutil.copy(shown.cert, tmp_path / "server.pem")
    shutil.copy(shown.key, tmp_path / "server.key")
    readme = (NGINX / "README.md").read_text()
    block = readme[readme.index("```console\n") :].partition("\n```\n")[0]
    commands = re.sub(r"^# ", "", block.partition("\n")[2], flags=re.MULTILINE)
    assert "nginx -t && systemctl reload nginx" in commands
    commands = commands.replace("nginx -t && systemctl reload nginx", f"nginx -t -c {etc}/nginx.conf")
    commands = moved(commands, {**own, "deploy/nginx": str(NGINX)})
    done = subprocess.run(
        ["bash", "-ec", commands], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (etc / "conf.d" / "rhizome.conf").stat().st_size > 0


def moved(text: str, places: Mapping[str, str]) -> str:
    """A text with other places in it."""
    for old, new in places.items():
        text = text.replace(old, new)
    return text


async def test_every_part_of_a_stream_leaves_before_the_next_one_is_said(front: Front) -> None:
    said = ["One", ", two", ", three"]
    heard = [asyncio.Event() for _ in said]
    front.engine.script = lambda prompt: [
        step for part, event in zip(said, heard, strict=True) for step in (Say(part), Until(event))
    ]
    text = ""
    async with asyncio.timeout(60):
        stream = await front.openai.chat.completions.create(model="talking-model", messages=HI, stream=True)
        async for chunk in stream:
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            for number, event in enumerate(heard, 1):
                if text == "".join(said[:number]):
                    event.set()
    assert text == "One, two, three"


async def test_a_client_that_leaves_is_gone_for_the_engine_as_well(front: Front) -> None:
    front.engine.script = lambda prompt: [Say("Wait"), Hang()]
    body = {"model": "talking-model", "messages": HI, "stream": True}
    async with front.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        async for piece in answer.aiter_text():
            if "content" in piece:
                break
    await eventually(lambda: len(front.engine.cancelled) == 1)


async def test_ids_of_the_client_go_all_the_way(front: Front) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"x-request-id": "order-17.b", "traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
    body = {"model": "talking-model", "messages": HI}
    answer = await front.http.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["x-request-id"] == "order-17.b"
    assert front.engine.submits[0].trace.traceparent.split("-")[1] == trace_id
    await eventually(lambda: bool(front.log()))
    line = front.log()[-1]
    assert (line["request_id"], line["trace_id"], line["status"]) == ("order-17.b", trace_id, 200)


async def test_a_harmful_id_is_replaced(front: Front) -> None:
    answer = await front.http.get("/v1/models", headers={"x-request-id": 'a" onload="'})
    assert answer.status_code == 200
    assert len(answer.headers["x-request-id"]) == 32


async def test_a_body_may_be_as_large_as_the_gateway_takes_it(front: Front) -> None:
    largest = GatewaySettings.model_fields["max_body_bytes"].default
    text = json.dumps({"model": "talking-model", "messages": HI})
    padded = text[:-1] + " " * (largest - len(text)) + "}"
    headers = {"content-type": "application/json"}
    taken = await front.http.post("/v1/chat/completions", content=padded, headers=headers)
    assert taken.status_code == 200, taken.text
    refused = await front.http.post("/v1/chat/completions", content=padded + " ", headers=headers)
    assert refused.status_code == 413
    assert refused.json()["error"]["code"] == "request_too_large"
    assert len(front.engine.submits) == 1


def test_who_asks_too_much_is_told_when_to_come_back(tmp_path: Path) -> None:
    with NginxProcess(tmp_path / "nginx", {}) as nginx:
        answers = answers_to_many(nginx, ["/v1/models"] * 300 + ["/health"])
    refused = [one for one in answers if one.startswith("429")]
    assert {one[:3] for one in answers} == {"503", "429"}  # there is no gateway: those that may pass end soon
    assert 100 <= len(answers) - len(refused) < 250  # the burst, and what came while it was answered
    assert answers[-1].startswith("503")  # health is not counted
    assert "\r\nRetry-After: 1\r\n" in refused[0]
    assert json.loads(refused[0].partition("\r\n\r\n")[2])["error"]["type"] == "rate_limit_error"


def answers_to_many(nginx: NginxProcess, paths: list[str]) -> list[str]:
    """Ask everything at once over one connection, faster than any limit; answers without `HTTP/1.1 `."""
    asked = [f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n" for path in paths]
    asked[-1] = asked[-1].replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")
    trust = ssl.create_default_context(cafile=str(nginx.authority.ca))
    with (
        socket.create_connection(("127.0.0.1", nginx.tls_port), timeout=60) as plain,
        trust.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        connection.sendall("".join(asked).encode())
        told = b"".join(iter(lambda: connection.recv(65536), b""))
    return told.decode().split("HTTP/1.1 ")[1:]


async def test_figures_stay_inside(front: Front) -> None:
    assert (await front.gateway.http.get("/metrics")).status_code == 200
    assert (await front.http.get("/metrics")).status_code == 404


async def test_answers_of_the_gateway_pass_untouched(front: Front) -> None:
    direct = await front.gateway.http.post("/v1/messages", json={"model": "talking-model"})
    through = await front.http.post("/v1/messages", json={"model": "talking-model"})
    assert through.status_code == direct.status_code == 400
    assert through.json()["error"] == direct.json()["error"]
    assert through.headers["strict-transport-security"]


async def test_a_gateway_that_is_away_is_an_error_that_clients_understand(tmp_path: Path) -> None:
    async with running_front(tmp_path, gateway=9) as front:
        with pytest.raises(openai.InternalServerError) as caught:
            await front.openai.models.list()
    assert caught.value.status_code == 503
    assert caught.value.code == "unavailable"
    assert caught.value.response.headers["retry-after"] == "1"


async def test_grpc_streams_through_tls_for_who_shows_a_certificate(tmp_path: Path) -> None:
    heard = asyncio.Event()
    async with TalkingEngine(script=lambda prompt: [Say("Yes"), Until(heard), Say("!")]) as engine:
        with ProxyProcess([engine.target], tmp_path) as proxy:
            await asyncio.to_thread(proxy.wait_ready, 1)
            with NginxProcess(tmp_path / "nginx", {"proxy": proxy.port}) as nginx:
                target = f"127.0.0.1:{nginx.grpc_port}"
                own = nginx.client
                known = ClientTls.from_files(nginx.authority.ca, own.cert, own.key)
                stranger = ClientTls.from_files(nginx.authority.ca)
                assert known is not None
                assert await generated(target, known, heard) == b"Yes!"
                assert (await asyncio.to_thread(probe, target, ENGINE_SERVICE, 10.0, known))[0] == SERVING
                code, told = await asyncio.to_thread(probe, target, ENGINE_SERVICE, 10.0, stranger)
                assert code != SERVING
                assert "UNAUTHENTICATED" in told
                async with grpc.aio.secure_channel(target, known.credentials()) as channel:
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await ProxyServiceStub(channel).ListBackends(ListBackendsRequest(), timeout=10)
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
                proxy.terminate()
                client = GrpcEngineClient(target, peer_name="test", tls=known)
                with pytest.raises(EngineError):
                    await client.model_info()
                await client.close()


async def generated(target: str, tls: ClientTls, heard: asyncio.Event) -> bytes:
    """What the engine says, byte for byte; it goes on once the first part was heard."""
    client = GrpcEngineClient(target, peer_name="test", tls=tls)
    text = b""
    try:
        async with asyncio.timeout(60):
            request = GenerateRequest(token_ids=TokenIds(ids=b"Hi"))
            async for event in client.generate(request):
                if event.WhichOneof("event") == "delta":
                    text += bytes(one for one in event.delta.token_ids if one < 256)
                if text == b"Yes":
                    heard.set()
    finally:
        await client.close()
    return text


async def test_the_http_face_is_reached_and_nobody_chooses_a_tenant(tmp_path: Path) -> None:
    async with TalkingEngine() as engine, running_gateway(engine.target) as gateway:
        await gateway.becomes_ready()
        with ProxyProcess([gateway.url], tmp_path, "--trusted-proxies", "127.0.0.0/8", http=True) as proxy:
            await asyncio.to_thread(proxy.wait_ready, 1)
            with NginxProcess(tmp_path / "nginx", {"http_proxy": proxy.http_port}) as nginx:
                url = f"http://127.0.0.1:{nginx.http_port}"
                async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as http:
                    body = {"model": "talking-model", "messages": HI}
                    answer = await http.post("/v1/chat/completions", json=body)
                    assert answer.json()["choices"][0]["message"]["content"] == "Hello!"
                    assert answer.headers["x-rhizome-attempts"] == "1"
                    assert (await http.get("/health")).json()["status"] == "ok"
                    assert (await http.get("/metrics")).status_code == 404
                    largest = ProxySettings.model_fields["max_body_mib"].default
                    refused = await http.post("/v1/chat/completions", content=b"{" * (largest * 2**20 + 1))
                    assert refused.json()["error"]["code"] == "request_too_large"


def test_what_is_replaced_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "some.conf").write_text("listen 1;")
    with pytest.raises(AssertionError, match="has no 'listen 2'"):
        substitute(tmp_path / "some.conf", {"listen 2": "listen 3"})
