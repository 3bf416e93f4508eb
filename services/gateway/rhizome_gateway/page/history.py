"""The figures of the last ten minutes, so that a page that begins has them at once."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

_MOST_SAMPLES = 300
_ENOUGH_FOR_P95 = 20
"""Of fewer values it would be the largest, or a guess."""


class History:
    """Remembers samples of what `/v1/metrics` tells. Times are seconds since the epoch.

    Setting the clock does not bend them: they count on from when this began.
    """

    def __init__(self) -> None:
        self._epoch = time.time() - time.monotonic()
        self._samples: deque[dict[str, float | None]] = deque(maxlen=_MOST_SAMPLES)

    def add(self, figures: Mapping[str, Any], hit_rate: float | None) -> None:
        """Take a sample.

        Args:
            figures: as `/v1/metrics` has them.
            hit_rate: of the last minute, between 0 and 1.
        """
        gateway = figures["gateway"]
        engine, cache, queue = (figures[name] or {} for name in ("engine", "cache", "queue"))
        first, gap = (
            gateway.get(name) or {} for name in ("time_to_first_token_ms", "inter_token_latency_ms")
        )
        self._samples.append(
            {
                "at": round(self._epoch + time.monotonic(), 2),
                "requests_per_second": gateway.get("requests_per_second"),
                "tokens_per_second": gateway.get("tokens_per_second"),
                "running": engine.get("running_requests"),
                "waiting": queue.get("waiting_requests"),
                "kv_percent": cache.get("kv_utilization_percent"),
                "hit_percent": None if hit_rate is None else round(100 * hit_rate, 2),
                "first_token_p50_ms": first.get("p50"),
                "first_token_p95_ms": _p95(first),
                "gap_p50_ms": gap.get("p50"),
                "gap_p95_ms": _p95(gap),
            }
        )

    def since(self, at: float) -> dict[str, list[float | None]]:
        """The samples after a time, oldest first, as one list for each figure."""
        samples = [one for one in self._samples if (one["at"] or 0.0) > at]
        return {name: [one[name] for one in samples] for name in (self._samples[0] if self._samples else ())}


def _p95(quantiles: Mapping[str, float | None]) -> float | None:
    return quantiles.get("p95") if (quantiles.get("count") or 0) >= _ENOUGH_FOR_P95 else None
