"""Names of models: what is listed, what is found, what a request may use."""

from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.conftest import eventually

from rhizome_gateway.auth.caller import SCOPE_KEY, Caller
from rhizome_gateway.engine_session import EngineSession
from rhizome_gateway.errors import ApiError
from rhizome_gateway.model_aliases import ModelAliases
from rhizome_gateway.routes import models
from rhizome_gateway.settings import GatewaySettings
from rhizome_testing.talking_engine import TalkingEngine
from rhizome_transport.grpc_client import GrpcEngineClient

ALIASES = ("gpt-4o=talking-model", "org/small=talking-model", "gone=another-model")


async def test_aliases_are_listed_behind_the_served_name(start_gateway, engine: TalkingEngine) -> None:
    async with start_gateway(engine.target, model_alias=ALIASES) as gateway:
        await gateway.becomes_ready()
        listed = await gateway.openai.models.list()
        assert [model.id for model in listed.data] == ["talking-model", "gpt-4o", "org/small"]
        model = await gateway.openai.models.retrieve("org/small")
        assert (model.id, (model.model_extra or {})["root"]) == ("org/small", "talking-model")
        gone = await gateway.http.get("/v1/models/gone")
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")


async def test_a_response_names_the_model_as_the_client_did(start_gateway, engine: TalkingEngine) -> None:
    async with start_gateway(engine.target, model_alias=ALIASES) as gateway:
        await gateway.becomes_ready()
        answer = await gateway.chat(model="gpt-4o")
        assert (answer.status_code, answer.json()["model"]) == (200, "gpt-4o")
        assert engine.submits[0].request.model == "talking-model"
        for unknown in ("gone", "gpt-4"):
            answer = await gateway.chat(model=unknown)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


async def test_a_wildcard_takes_any_name_and_lists_none(start_gateway, engine: TalkingEngine) -> None:
    async with start_gateway(engine.target, model_alias=("*",)) as gateway:
        await gateway.becomes_ready()
        assert len((await gateway.openai.models.list()).data) == 1
        answer = await gateway.chat(model="claude-haiku")
        assert (answer.status_code, answer.json()["model"]) == (200, "claude-haiku")
        assert (await gateway.openai.models.retrieve("claude-haiku")).id == "claude-haiku"
        engine.model = "next-model"

        async def is_served() -> bool:
            return bool((await gateway.http.get("/version")).json()["model"] == "next-model")

        await eventually(is_served)
        assert (await gateway.chat(model="claude-haiku")).status_code == 200


async def test_versions_are_null_until_an_engine_answers(start_gateway, engine: TalkingEngine) -> None:
    async with start_gateway("127.0.0.1:1") as gateway:
        versions = (await gateway.http.get("/version")).json()
        assert versions["version"] and versions["model"] is versions["engine_version"] is None
    async with start_gateway(engine.target) as gateway:
        await gateway.becomes_ready()
        versions = (await gateway.http.get("/version")).json()
        assert (versions["model"], versions["engine_version"]) == ("talking-model", "0")
        assert versions["default_sampling"] == {"temperature": 0.5}
        assert versions["system_fingerprint"] == (await gateway.chat()).json()["system_fingerprint"]


async def test_a_key_sees_only_the_models_it_may_use(engine: TalkingEngine) -> None:
    session = EngineSession(GrpcEngineClient(engine.target, peer_name="test"), aliases=ModelAliases(ALIASES))
    assert await session.refresh()
    api = FastAPI()
    api.include_router(models.router)
    api.state.session = session

    async def with_key(scope: Any, receive: Any, send: Any) -> None:
        await api({**scope, SCOPE_KEY: Caller("a", "b", models=("gpt-*",))}, receive, send)

    client = httpx.AsyncClient(transport=httpx.ASGITransport(with_key), base_url="http://gateway")
    try:
        listed = (await client.get("/v1/models")).json()
        assert [model["id"] for model in listed["data"]] == ["gpt-4o"]
        assert (await client.get("/v1/models/gpt-4o")).json()["id"] == "gpt-4o"
        with pytest.raises(ApiError) as refused:
            await client.get("/v1/models/talking-model")
        assert refused.value.status == 403
    finally:
        await client.aclose()
        await session.close()


@pytest.mark.parametrize("entries", [("a",), ("=b",), ("a=",), ("",), ("a=b", "a=c"), ("*=", "*=b")])
def test_what_is_no_alias_is_refused_at_the_start(entries: Sequence[str]) -> None:
    with pytest.raises(ValueError, match="alias"):
        ModelAliases(entries)
    with pytest.raises(ValueError, match="alias"):
        GatewaySettings(model_alias=entries)


def test_aliases_come_from_flags_and_from_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHIZOME_GATEWAY_MODEL_ALIAS", "a=b,*")
    assert GatewaySettings().model_alias == ("a=b", "*")
    assert GatewaySettings(model_alias=("c=d",)).model_alias == ("c=d",)


NAMES = st.text("abc/-.", min_size=1, max_size=3)


@given(aliases=st.dictionaries(NAMES, NAMES), served=NAMES, asked=NAMES)
def test_what_is_listed_is_what_can_be_asked_for(aliases: dict[str, str], served: str, asked: str) -> None:
    entries = [f"{name}={target}" for name, target in aliases.items()]
    names = ModelAliases(entries).names(served)
    assert ModelAliases(entries).means(asked, served) == (asked in names)
    assert names[0] == served and len(set(names)) == len(names)
    open_to_all = ModelAliases([*entries, "*"])
    assert open_to_all.names(served) == names
    assert open_to_all.means(asked, served) == (asked in names or asked not in aliases)
