"""When requests arrive in an open loop."""

from __future__ import annotations

import random
from collections.abc import Iterator


def arrival_times(rate: float, burstiness: float, chance: random.Random) -> Iterator[float]:
    """Yield arrival times in seconds from 0, without end; the first request arrives at once.

    Gaps are drawn from a gamma distribution with mean 1 / rate and coefficient of variation
    1 / sqrt(burstiness): at 1 a Poisson process, below 1 burstier, towards infinity evenly spaced.

    Args:
        rate: requests per second.
        burstiness: the distribution's shape.
        chance: source of randomness.

    Raises:
        ValueError: a number is not positive.
    """
    if not rate > 0 or not burstiness > 0:
        raise ValueError(f"rate and burstiness must be positive, not {rate} and {burstiness}")
    now = 0.0
    while True:
        yield now
        now += chance.gammavariate(burstiness, 1 / (rate * burstiness))
