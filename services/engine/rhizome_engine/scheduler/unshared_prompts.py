"""Prompts that are being computed and are not in the tree yet.

A request that would compute the same beginning waits for it: `n` answers to one prompt, or many questions
about one document, compute it once.
"""

from __future__ import annotations

from rhizome_engine.kvcache.node import common_prefix
from rhizome_engine.scheduler.request import Request

_MIN_SHARED_TOKENS = 4
"""A prefix is worth waiting for from this length on."""


class UnsharedPrompts:
    """Running requests whose prompt is not computed to its end.

    Args:
        page_size: tokens per page; only whole pages are shared.
    """

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._requests: list[Request] = []

    def add(self, request: Request) -> None:
        """A request started, with part of its prompt to compute."""
        if request.fills_cache and request.num_computed < len(request.prompt_ids):
            self._requests.append(request)

    def discard(self, request: Request) -> None:
        """Its prompt is shared, or it stopped."""
        if request in self._requests:
            self._requests.remove(request)

    def share(self, request: Request, *, is_awaited: bool) -> None:
        """Put what a running request computed of its prompt into the tree, if it is complete or awaited."""
        complete = request.num_computed >= len(request.prompt_ids)
        if request in self._requests and (complete or is_awaited):
            assert request.pages is not None
            request.pages.share(request.computed_ids)
            if complete:
                self._requests.remove(request)

    def will_give(self, request: Request, cached_tokens: int) -> bool:
        """Whether somebody is computing a prefix that a request could take over.

        Args:
            request: waits.
            cached_tokens: what it would find in the tree now.
        """
        if not request.reads_cache:
            return False
        for other in self._requests:
            if other.namespace == request.namespace:
                prompt = other.token_ids[: len(other.prompt_ids)]
                common = common_prefix(prompt, request.token_ids[:-1]) // self._page_size * self._page_size
                if common - cached_tokens >= max(self._page_size, _MIN_SHARED_TOKENS):
                    return True
        return False
