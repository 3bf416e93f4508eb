"""A peer's stream to an engine, where it ends before it has begun."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from rhizome_proxy.service.engine_link import EngineLink
from rhizome_transport.errors import EngineError


def link_to_nobody() -> tuple[EngineLink, Any, list[EngineError]]:
    """A link whose connection never opens, its backend, and what it is lost by."""

    async def connect() -> Any:
        await asyncio.Event().wait()

    backend: Any = SimpleNamespace(name="engine", cuts=set(), engine=SimpleNamespace(connect=connect))
    lost: list[EngineError] = []
    link = EngineLink(
        backend,
        peer_name="test",
        window_frames=2,
        on_frame=lambda *_: None,
        on_lost=lambda _, error: lost.append(error),
    )
    return link, backend, lost


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_link_that_is_cut_before_it_begins_is_lost():
    _, backend, lost = link_to_nobody()
    for cut in list(backend.cuts):
        cut()
    await settle()
    assert [error.code.name for error in lost] == ["UNAVAILABLE"] and not backend.cuts


async def test_a_link_that_is_closed_is_not_lost_even_where_it_was_cut():
    link, backend, lost = link_to_nobody()
    await settle()
    link.cut()
    link.close()
    await settle()
    assert not lost and not backend.cuts
