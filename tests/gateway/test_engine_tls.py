"""The gateway and its engine over TLS, each of which shows who it is."""

from pathlib import Path

import httpx
import pytest
from tests.gateway.conftest import running_gateway

from rhizome_testing.certificates import Authority
from rhizome_testing.talking_engine import Say, TalkingEngine
from rhizome_transport.tls import ServerTls


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.mark.parametrize("mutual", [False, True])
async def test_answers_come_over_tls(ours: Authority, mutual: bool) -> None:
    shown, own = ours.issue("engine"), ours.issue("gateway", "DNS:gateway")
    tls = ServerTls.from_files(shown.cert, shown.key, ours.ca if mutual else None)
    settings = {"engine_tls_cert": own.cert, "engine_tls_key": own.key} if mutual else {}
    async with (
        TalkingEngine(script=lambda prompt: [Say("in private")], tls=tls) as engine,
        running_gateway(engine.target, engine_tls_ca=ours.ca, **settings) as gateway,
    ):
        await gateway.becomes_ready()
        answer = (await gateway.chat()).json()
    assert answer["choices"][0]["message"]["content"] == "in private"


async def test_a_stranger_is_not_let_in_and_the_gateway_says_503(ours: Authority) -> None:
    shown = ours.issue("engine")
    tls = ServerTls.from_files(shown.cert, shown.key, ours.ca)
    async with TalkingEngine(tls=tls) as engine, running_gateway(engine.target) as gateway:
        answer: httpx.Response = await gateway.chat()
    assert answer.status_code == 503
    assert not engine.submits


def test_a_half_configured_gateway_does_not_start(tmp_path: Path) -> None:
    from rhizome_gateway.app import connect_engine
    from rhizome_gateway.settings import GatewaySettings

    with pytest.raises(ValueError, match="authority"):
        connect_engine(GatewaySettings(engine_tls_cert=tmp_path / "cert.pem"))
