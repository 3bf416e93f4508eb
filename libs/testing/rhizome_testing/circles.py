"""What work leaves to the garbage collector: objects that hold each other in a circle."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Awaitable, Callable

_OURS = ("rhizome_", "jinja2.runtime.")
_OF_TESTS = ("rhizome_testing.", "rhizome_launcher.simulate.")
_SETTLE_S = 0.1


async def left_in_circles(work: Callable[[], Awaitable[None]]) -> Counter[str]:
    """Do something twice, and count what the second time leaves for the collector.

    What holds no circle goes with its last reference. The rest waits, with everything it holds, until the
    collector looks for it among all objects, which takes time from every request. The first time makes what
    is kept and made only once.

    Returns:
        Names of our classes that are not for tests, and of what renders templates; and how many of each.
    """
    await work()
    await asyncio.sleep(_SETTLE_S)
    gc.collect()
    enabled, flags = gc.isenabled(), gc.get_debug()
    gc.disable()
    try:
        await work()
        await asyncio.sleep(_SETTLE_S)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        kinds = [type(one) for one in gc.garbage]
    finally:
        gc.set_debug(flags)
        gc.garbage.clear()
        if enabled:
            gc.enable()
    names = [f"{kind.__module__}.{kind.__qualname__}" for kind in kinds]
    return Counter(name for name in names if name.startswith(_OURS) and not name.startswith(_OF_TESTS))
