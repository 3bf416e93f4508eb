"""One stack of real processes with keys, and the clients that other people wrote."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI, OpenAI

from rhizome_testing.openai_watch import every_answer_is_openais  # noqa: F401  (a fixture for all)
from rhizome_testing.running_stack import RunningStack, demo_stack_settings, running_stack
from rhizome_testing.watched_relay import watched_relay

KEYS: dict[str, dict[str, object]] = {
    "sk-everything": {},
    "sk-other-models": {"models": ["other-*"]},
    "sk-one-a-minute": {"requests_per_minute": 1},
}
KEY = "sk-everything"


def keys_file(path: Path) -> Path:
    lines = []
    for number, (key, limits) in enumerate(KEYS.items()):
        digest = hashlib.sha256(key.encode()).hexdigest()
        lines += ["[[keys]]", f'name = "client-{number}"', f'sha256 = "{digest}"']
        lines += [f"{field} = {value!r}" for field, value in limits.items()]
    path.write_text("\n".join(lines))
    path.chmod(0o600)
    return path


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    keys = keys_file(tmp_path_factory.mktemp("keys") / "keys.toml")
    arguments = ("--keys-file", str(keys), "--model-alias", "gpt-4.1-mini=rhizome-demo")
    settings = demo_stack_settings(tmp_path_factory.mktemp("logs"), gateway_arguments=arguments)
    with running_stack(settings) as running:
        yield running


@pytest.fixture
def base_url(stack: RunningStack) -> str:
    return f"{stack.url}/v1"


@pytest.fixture
def relayed_url(stack: RunningStack) -> Iterator[str]:
    """For clients in processes of their own: the answers pass this process, where they are checked."""
    with watched_relay(stack.url) as url:
        yield f"{url}/v1"


@pytest.fixture
def client(base_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=base_url, api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
async def async_client(base_url: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=base_url, api_key=KEY, max_retries=0, timeout=60) as client:
        yield client
