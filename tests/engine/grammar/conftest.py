"""A compiler over a real tokenizer."""

from __future__ import annotations

import pytest

from rhizome_testing import random_speaker
from rhizome_testing.random_speaker import Speaker


@pytest.fixture(scope="session")
def byte_speaker() -> Speaker:
    return random_speaker.byte_speaker()
