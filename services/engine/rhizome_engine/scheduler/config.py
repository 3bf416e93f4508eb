"""Limits of the scheduler."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """How much the engine takes on at once.

    Attributes:
        max_batch_size: most requests computed in one step.
        max_queue_size: most requests that wait; more are refused.
        max_step_tokens: most tokens computed in one step.
        max_chunk_tokens: most prompt tokens of one request in one step; None for `max_step_tokens`.
        max_context_tokens: most tokens of prompt and output together; None for the model's limit.
        eviction_policy: a name in `kvcache.eviction.EVICTION_POLICIES`.

    Raises:
        ValueError: a limit is not positive; the message names it.
    """

    max_batch_size: int = 32
    max_queue_size: int = 256
    max_step_tokens: int = 512
    max_chunk_tokens: int | None = None
    max_context_tokens: int | None = None
    eviction_policy: str = "lru"

    def __post_init__(self) -> None:
        """Refuse limits with which no request could ever run."""
        for name in (
            "max_batch_size",
            "max_queue_size",
            "max_step_tokens",
            "max_chunk_tokens",
            "max_context_tokens",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
