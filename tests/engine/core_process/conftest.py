from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from rhizome_testing.hash_core import HashCore
from rhizome_transport.zmq_client import ZmqEngineClient


@pytest.fixture
def hash_core(tmp_path: Path) -> Iterator[HashCore]:
    core = HashCore(tmp_path)
    yield core
    core.stop()


@pytest.fixture
async def client(hash_core: HashCore) -> AsyncIterator[ZmqEngineClient]:
    one = ZmqEngineClient(hash_core.endpoint, peer_name="test")
    yield one
    await one.close()
