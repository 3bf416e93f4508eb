"""One stack of real processes – two engines, proxy, gateway, bundled model – for most integration tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI

from rhizome_testing.openai_watch import every_answer_is_openais  # noqa: F401  (a fixture for all)
from rhizome_testing.otlp_sink import OtlpSink
from rhizome_testing.running_stack import RunningStack, demo_stack_settings, running_stack


@pytest.fixture(scope="session")
def otlp_sink() -> Iterator[OtlpSink]:
    with OtlpSink() as sink:
        yield sink


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, otlp_sink: OtlpSink) -> Iterator[RunningStack]:
    settings = demo_stack_settings(tmp_path_factory.mktemp("logs"), environment=otlp_sink.environment)
    with running_stack(settings) as running:
        yield running


@pytest.fixture
def client(stack: RunningStack) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{stack.url}/v1", api_key="not-needed", max_retries=0, timeout=60) as openai:
        yield openai
