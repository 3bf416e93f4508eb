"""One real gateway in front of an engine that talks, for each module that attacks it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rhizome_testing.gateway_process import GatewayProcess
from rhizome_testing.talking_process import TalkingProcess

THINKING_S = 0.03
"""How long the engine thinks before it answers: less than any model needs for its first token."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TalkingProcess]:
    with TalkingProcess(tmp_path_factory.mktemp("engine"), "--pause-s", str(THINKING_S)) as engine:
        yield engine


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, engine: TalkingProcess) -> Iterator[GatewayProcess]:
    """It takes any model's name, so that requests with generated names come to the end too."""
    logs = tmp_path_factory.mktemp("gateway")
    with GatewayProcess(engine.target, logs, "--model-alias", "*=talking-model") as gateway:
        gateway.wait_ready()
        yield gateway
