"""Compilers over real tokenizers, and a model that speaks at random."""

from __future__ import annotations

from pathlib import Path

import pytest

from rhizome_testing import random_speaker
from rhizome_testing.random_speaker import Speaker

DEMO = Path(__file__).parents[2] / "models" / "demo"
DEMO_VOCAB = 1152  # the model's; the tokenizer has 1106


@pytest.fixture(scope="session")
def byte_speaker() -> Speaker:
    return random_speaker.byte_speaker()


@pytest.fixture(scope="session")
def demo_speaker() -> Speaker:
    return random_speaker.checkpoint_speaker(DEMO, DEMO_VOCAB, (4, 1))


@pytest.fixture(params=["byte", "demo"])
def speaker(request: pytest.FixtureRequest) -> Speaker:
    """Each tokenizer in turn."""
    return request.getfixturevalue(f"{request.param}_speaker")
