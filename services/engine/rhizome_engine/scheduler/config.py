"""Limits and policies of the scheduler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

PolicyName = Literal["fcfs", "lpm", "priority"]


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """How much the engine takes on at once, and in which order.

    Attributes:
        max_batch_size: most requests computed in one step.
        max_queue_size: most requests that wait; more are refused.
        max_concurrent_requests: most requests that hold pages; None for `max_batch_size`. More of them than a
            batch has rows take turns.
        max_step_tokens: most tokens computed in one step.
        max_chunk_tokens: most prompt tokens of one request in one step; None for its fair share.
        max_partial_prefills: most prompts that are computed at the same time; they share a step's tokens, and
            more may only use what they leave.
        max_context_tokens: most tokens of prompt and output together; None for the model's limit.
        policy: who starts next among the requests of one tenant: "fcfs" the one that came first, "lpm" the
            one with the longest cached prefix, "priority" the one with the highest priority.
        lpm_max_wait_s: under "lpm", who has waited longer than this goes first, in order of arrival.
        fairness: among tenants, who was served fewest tokens starts next; off is one queue for all.
        max_tenant_slowdown: with `fairness`, as a factor, most that tenants with many running requests
            may slow one with few down; None for any.
        eviction_policy: a name or an import path, see `kvcache.eviction`.
        max_pinned_tokens: most tokens that pinned prefixes may keep from eviction; None for a quarter of the
            pool.
        overlap: launch a step before the tokens of the one before were read.

    Raises:
        ValueError: a limit is out of range; the message names it.
    """

    max_batch_size: int = 32
    max_queue_size: int = 256
    max_concurrent_requests: int | None = None
    max_step_tokens: int = 512
    max_chunk_tokens: int | None = None
    max_partial_prefills: int = 4
    max_context_tokens: int | None = None
    policy: PolicyName = "fcfs"
    lpm_max_wait_s: float = 2.0
    fairness: bool = True
    max_tenant_slowdown: float | None = 1.2
    eviction_policy: str = "lru"
    max_pinned_tokens: int | None = None
    overlap: bool = False

    def __post_init__(self) -> None:
        """Refuse limits with which no request could ever run."""
        for name in (
            "max_batch_size",
            "max_queue_size",
            "max_concurrent_requests",
            "max_step_tokens",
            "max_chunk_tokens",
            "max_partial_prefills",
            "max_context_tokens",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.policy not in get_args(PolicyName):
            raise ValueError(f"policy must be one of {', '.join(get_args(PolicyName))}, not {self.policy!r}")
        if self.max_tenant_slowdown is not None and self.max_tenant_slowdown < 1.0:
            raise ValueError(f"max_tenant_slowdown must be at least 1, not {self.max_tenant_slowdown}")
        if self.max_pinned_tokens is not None and self.max_pinned_tokens < 0:
            raise ValueError(f"max_pinned_tokens must not be negative, not {self.max_pinned_tokens}")

    @property
    def num_slots(self) -> int:
        """Requests that can hold pages at once."""
        return self.max_concurrent_requests or self.max_batch_size

    @property
    def max_rows(self) -> int:
        """Requests computed in one step: each that decodes takes a token of the budget."""
        return min(self.max_batch_size, self.max_step_tokens)
