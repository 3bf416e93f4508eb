"""Copies of pages, in the order in which they were decided.

Whoever decides on one may count on it at once: every step does its copies in this order before anything
else, and steps are computed one after the other. A page can so be saved, handed out and overwritten in one
and the same plan.
"""

from __future__ import annotations

import numpy as np

from rhizome_engine.batch import PageCopy
from rhizome_engine.kvcache.page_pool import Pages


class PageCopies:
    """Copies that were decided and belong to no step yet."""

    def __init__(self) -> None:
        self._copies: list[PageCopy] = []

    def add(self, sources: Pages, targets: Pages, num_slots: int) -> None:
        """Copy pages, or the first slots of each: [n] int32 both."""
        self._copies.append(PageCopy(sources, targets, num_slots))

    def add_one(self, source: int, target: int, num_slots: int) -> None:
        """Copy the first slots of one page."""
        self.add(np.array([source], np.int32), np.array([target], np.int32), num_slots)

    def take(self) -> list[PageCopy]:
        """Hand all of them to a step."""
        taken, self._copies = self._copies, []
        return taken
