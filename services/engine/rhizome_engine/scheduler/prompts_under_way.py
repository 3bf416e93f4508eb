"""How many prompts are computed at the same time.

Long ones share the steps, so each that is added makes all of them later: `max_partial_prefills` of them are
enough to fill every step. Short ones do not fill a step; more of them start while it has tokens to spare.
"""

from __future__ import annotations

from collections.abc import Iterable

from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.request import Request


class PromptsUnderWay:
    """Requests whose prompt is not computed to its end, while others are started beside them.

    Args:
        config: limits.
        prompts: running requests, each with the tokens of its prompt that no step has computed yet.
        num_decoding: tokens of the next step that belong to others.
    """

    def __init__(
        self, config: SchedulerConfig, prompts: Iterable[tuple[Request, int]], num_decoding: int
    ) -> None:
        self._config = config
        self._tokens = {request: self._in_a_step(missing) for request, missing in prompts}
        self._left = config.max_step_tokens - num_decoding - sum(self._tokens.values())

    def __len__(self) -> int:
        return len(self._tokens)

    def is_full_for(self, request: Request) -> bool:
        """Whether enough are under way; a tenant that has none of them may always add one."""
        if len(self) < self._config.max_partial_prefills or self._left > 0:
            return False
        return not self._config.fairness or any(other.tenant == request.tenant for other in self._tokens)

    def add(self, request: Request) -> None:
        """One was started."""
        self._tokens[request] = self._in_a_step(request.num_tokens - request.num_computed)
        self._left -= self._tokens[request]

    def discard(self, request: Request) -> None:
        """One had to go, if it was one."""
        self._left += self._tokens.pop(request, 0)

    def _in_a_step(self, missing: int) -> int:
        """Most of its tokens that one step computes."""
        cap = self._config.max_chunk_tokens
        return missing if cap is None else min(missing, cap)
