from anthropic.types import MessageTokensCount
from tests.gateway.anthropic.conftest import BODY, HI, WEATHER, strictly

from rhizome_testing.talking_engine import TalkingEngine


async def test_counts_what_a_message_would_cost(client, engine: TalkingEngine) -> None:
    more = {
        "system": "Be brief.",
        "tools": [WEATHER],
        "messages": [*HI, {"role": "assistant", "content": "W"}],
    }
    counted = await client.messages.count_tokens(model="talking-model", **more)
    strictly(MessageTokensCount, counted.to_dict())
    assert not engine.submits
    usage = (await client.messages.create(**BODY | more)).usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


async def test_takes_the_body_of_a_message(gateway) -> None:
    answer = await gateway.http.post("/v1/messages/count_tokens?beta=true", json=BODY | {"stream": True})
    assert answer.status_code == 200 and answer.headers["request-id"]
    assert answer.json().keys() == {"input_tokens"}
