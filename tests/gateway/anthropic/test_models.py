"""The models, for clients of Anthropic's API; the path is OpenAI's, too."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import anthropic
import pytest
from anthropic.types import ModelInfo
from tests.gateway.anthropic.conftest import strictly
from tests.gateway.conftest import RunningGateway, running_gateway

from rhizome_testing.talking_engine import TalkingEngine

ALIASES = ("claude-a=talking-model", "claude-b=talking-model", "org/small=talking-model")
NAMES = ["talking-model", "claude-a", "claude-b", "org/small"]
SPEAKS = {"anthropic-version": "2023-06-01"}


@pytest.fixture
async def gateway(engine: TalkingEngine) -> AsyncIterator[RunningGateway]:
    async with running_gateway(engine.target, model_alias=ALIASES) as gateway:
        await gateway.becomes_ready()
        yield gateway


async def test_the_sdk_lists_all_models_page_by_page(client: anthropic.AsyncAnthropic) -> None:
    for limit in (1, 3, 4, 20):
        assert [model.id async for model in client.models.list(limit=limit)] == NAMES
    page = await client.models.list(limit=3)
    assert (page.first_id, page.last_id, page.has_more) == ("talking-model", "claude-b", True)
    backwards = await client.models.list(limit=2, before_id="org/small")
    assert [model.id for model in backwards.data] == ["claude-a", "claude-b"] and backwards.has_more
    assert page._request_id


async def test_a_model_is_one_that_the_sdk_knows(client, gateway: RunningGateway) -> None:
    for name in NAMES:
        model = await client.models.retrieve(name)
        shown = (await gateway.http.get(f"/v1/models/{name}", headers=SPEAKS)).json()
        strictly(ModelInfo, shown | {"created_at": model.created_at})
        assert (model.id, model.type) == (name, "model")
        assert model.max_input_tokens == 512
        assert abs((datetime.now(UTC) - model.created_at).total_seconds()) < 60


async def test_errors_come_in_the_envelope_that_the_client_knows(client, gateway: RunningGateway) -> None:
    with pytest.raises(anthropic.NotFoundError, match="not_found_error"):
        await client.models.retrieve("gone")
    wrong = ("limit=0", "limit=1001", "limit=x", "limit=-1", "after_id=gone", "after_id=a&before_id=b")
    for query in wrong:
        answer = await gateway.http.get(f"/v1/models?{query}", headers=SPEAKS)
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error"), query


async def test_without_the_header_it_is_openais_list(gateway: RunningGateway) -> None:
    listed = (await gateway.http.get("/v1/models?limit=1")).json()
    assert listed["object"] == "list" and [model["id"] for model in listed["data"]] == NAMES
    gone = (await gateway.http.get("/v1/models/gone")).json()
    assert gone["error"]["code"] == "model_not_found"
