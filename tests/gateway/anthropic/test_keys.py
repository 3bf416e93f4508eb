import hashlib
from pathlib import Path

import anthropic
import pytest
from tests.gateway.anthropic.conftest import BODY, HI, anthropic_gateway, async_client

from rhizome_testing.talking_engine import TalkingEngine

LIMITS = {"alice": "", "bob": 'models = ["other-*"]', "carol": "requests_per_minute = 1"}


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    lines = []
    for name, more in LIMITS.items():
        digest = hashlib.sha256(f"sk-{name}".encode()).hexdigest()
        lines += ["[[keys]]", f'name = "{name}"', f'sha256 = "{digest}"', more]
    path = tmp_path / "keys.toml"
    path.write_text("\n".join(lines))
    path.chmod(0o600)
    return path


async def test_keys_and_limits_show_as_errors_of_the_sdk(engine: TalkingEngine, keys_file: Path) -> None:
    async with anthropic_gateway(engine, keys_file=keys_file) as gateway, async_client(gateway.url) as client:
        for extra in ({"api_key": "sk-alice"}, {"auth_token": "sk-alice"}):
            asked = client.with_options(**extra)
            assert (await asked.messages.create(**BODY)).stop_reason == "end_turn"
        with pytest.raises(anthropic.AuthenticationError) as unknown:
            await client.with_options(api_key="sk-mallory").messages.create(**BODY)
        assert unknown.value.type == "authentication_error"
        bob = client.with_options(api_key="sk-bob")
        for ask in (
            bob.messages.create(**BODY),
            bob.messages.count_tokens(model="talking-model", messages=HI),
        ):
            with pytest.raises(anthropic.PermissionDeniedError) as denied:
                await ask
            assert denied.value.type == "permission_error" and denied.value.request_id
        carol = client.with_options(api_key="sk-carol")
        await carol.messages.count_tokens(model="talking-model", messages=HI)
        with pytest.raises(anthropic.RateLimitError) as limited:
            await carol.messages.create(**BODY)
        assert limited.value.type == "rate_limit_error"
        assert int(limited.value.response.headers["retry-after"]) >= 1
