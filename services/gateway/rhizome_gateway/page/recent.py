"""What happened of late, from counts that grow since an engine's start."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from rhizome.engine.v1.load_pb2 import Load

WINDOW_S = 60.0


class RecentHits:
    """Prompt tokens of one engine, found in its cache or not, of the last minute."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, int, int]] = deque()
        self._before: Load | None = None

    def add(self, now: float, load: Load) -> None:
        """Take the engine's load, as it is at a time by `time.monotonic`."""
        while self._steps and now - self._steps[0][0] > WINDOW_S:
            self._steps.popleft()
        if not load.HasField("totals"):
            return
        before, self._before = self._before, load
        if before is None or before.instance_id != load.instance_id:  # it counts from zero
            return
        hits = load.totals.cache_hit_tokens - before.totals.cache_hit_tokens
        misses = load.totals.cache_miss_tokens - before.totals.cache_miss_tokens
        if min(hits, misses) >= 0 and hits + misses:
            self._steps.append((now, hits, misses))

    @property
    def tokens(self) -> tuple[int, int]:
        """Those found and those not."""
        return sum(hits for _, hits, _ in self._steps), sum(misses for _, _, misses in self._steps)


def hit_rate(recent: Iterable[RecentHits]) -> float | None:
    """Between 0 and 1, over some engines; None where no prompt came."""
    told = [one.tokens for one in recent]
    hits, misses = sum(hits for hits, _ in told), sum(misses for _, misses in told)
    return round(hits / (hits + misses), 4) if hits + misses else None
