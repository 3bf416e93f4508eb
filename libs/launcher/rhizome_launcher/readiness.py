"""Whether the engines of a stack serve, asked through the standard health service."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from rhizome_transport.probe import SERVING, probe

ENGINE_SERVICE = "rhizome.engine.v1.EngineService"


async def engines_serving(addresses: Iterable[str], timeout_s: float = 1.0) -> bool:
    """Whether every address answers that it serves a model."""
    answers = await asyncio.gather(
        *(asyncio.to_thread(probe, address, ENGINE_SERVICE, timeout_s) for address in addresses)
    )
    return all(code == SERVING for code, _ in answers)
