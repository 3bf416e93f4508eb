"""Restarting services of a stack that goes on serving: engines one after the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Final

from rhizome_launcher.background.control import ControlError, Note
from rhizome_launcher.background.keeper import Keeper
from rhizome_launcher.plan import LAYERS
from rhizome_launcher.readiness import check

_POLL_S: Final = 0.2


def chosen(keepers: Mapping[str, Keeper], names: Sequence[str]) -> list[Keeper]:
    """The services of these names, of these kinds (`engines`), or all of them, engines first.

    Raises:
        ControlError: one of the names means nothing here.
    """
    found: list[Keeper] = []
    for name in names:
        kind = name.removesuffix("s")
        if name == "all":
            found += keepers.values()
        elif name in keepers:
            found.append(keepers[name])
        elif members := [keeper for keeper in keepers.values() if keeper.plan.kind == kind]:
            found += members
        else:
            raise ControlError(f"there is no service {name!r}; there are {', '.join(keepers)}")
    order = {kind: -number for number, kind in enumerate(LAYERS)}
    return sorted(dict.fromkeys(found), key=lambda keeper: order[keeper.plan.kind])


async def restart_services(
    keepers: Mapping[str, Keeper], names: Sequence[str], timeout_s: float, ready_timeout_s: float, note: Note
) -> None:
    """Stop and start services one by one; the next one's turn is when the whole stack serves again.

    Raises:
        ControlError: one did not come back; those after it were left alone.
    """
    for keeper in chosen(keepers, names):
        name = keeper.plan.name
        note(f"restarting {name}")
        began = time.monotonic()
        await keeper.restart(timeout_s)
        # The proxy counts as serving once it sees all of its engines, this one included.
        for other in (keeper, *(one for one in keepers.values() if one.plan.kind != "engine")):
            await _until_serving(other, began + timeout_s + ready_timeout_s)
        note(f"{name} serves again after {time.monotonic() - began:.1f} s")


async def _until_serving(keeper: Keeper, deadline: float) -> None:
    name, restarts = keeper.plan.name, keeper.record.restarts
    while not (await check(keeper.plan)).serving:
        if keeper.record.state == "failed" or keeper.record.restarts > restarts + 1:
            raise ControlError(
                f"{name} does not come back (exit code {keeper.record.exit_text}); see its log"
            )
        if time.monotonic() > deadline:
            raise ControlError(f"{name} does not serve in time; see its log")
        await asyncio.sleep(_POLL_S)
