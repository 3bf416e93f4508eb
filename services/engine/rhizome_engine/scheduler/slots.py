"""What the scheduler knows of running requests, as arrays over slots, so that decoding rows cost no Python.

A request has a slot from its start to its end or preemption. These arrays tell what was *scheduled*; the
request itself tells what is *confirmed*, that is, computed and read by the host. With overlap the former runs
one step ahead of the latter:

    token ids   [ prompt ........... | output ......... | x ]
                                                confirmed ^   ^ known

x was scheduled to be chosen and nobody has read it; the device finds it in its token table.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rhizome_engine.batch import Int32, Int64
from rhizome_engine.scheduler.request import Request


class SlotTable:
    """Counters and page tables of running requests.

    Args:
        num_slots: requests that can run at once.
        max_pages: pages that one request can hold.
        page_size: tokens per page.

    Attributes:
        known: [num_slots] int64, tokens of prompt and output, one that is still being chosen included.
        computed: [num_slots] int64, tokens whose keys and values are written or scheduled to be.
        confirmed: [num_slots] int64, tokens that the host has read.
        last_token: [num_slots] int64, the last one of those.
        capacity: [num_slots] int64, tokens that fit the reserved pages.
        limit: [num_slots] int64, at so many known tokens there is nothing left to choose.
        prompt_end: [num_slots] int64, tokens that were known when the request came.
        samples: [num_slots] bool, False for requests that only want their prompt computed.
        constrained: [num_slots] bool, whether the request's output follows a grammar.
        last_turn: [num_slots] int64, when the slot was in a step last, or when it was taken.
        occupant: [num_slots] int64, changes with each request that takes the slot over.
        page_table: [num_slots, max_pages] int32.
    """

    def __init__(self, num_slots: int, max_pages: int, page_size: int) -> None:
        self.known = np.zeros(num_slots, np.int64)
        self.computed = np.zeros(num_slots, np.int64)
        self.confirmed = np.zeros(num_slots, np.int64)
        self.last_token = np.zeros(num_slots, np.int64)
        self.capacity = np.zeros(num_slots, np.int64)
        self.limit = np.zeros(num_slots, np.int64)
        self.prompt_end = np.zeros(num_slots, np.int64)
        self.samples = np.zeros(num_slots, np.bool_)
        self.constrained = np.zeros(num_slots, np.bool_)
        self.last_turn = np.zeros(num_slots, np.int64)
        self._turns = 0
        self._page_size = page_size
        self.occupant = np.zeros(num_slots, np.int64)
        self.page_table: Int32 = np.zeros((num_slots, max_pages), np.int32)
        self._free = list(range(num_slots - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Slots that `take` can hand out."""
        return len(self._free)

    def take(self) -> int:
        """Hand out a free slot.

        Raises:
            IndexError: there is none; callers look first.
        """
        slot = self._free.pop()
        self.occupant[slot] += 1
        return slot

    def give_back(self, slot: int) -> None:
        """Free a slot; results that are still under way for its occupant are recognised by its number."""
        self.occupant[slot] += 1
        self._free.append(slot)

    def fill(self, slot: int, request: Request, num_pages: int) -> None:
        """Describe a new occupant, all of whose known tokens are confirmed and which holds so many pages."""
        self.known[slot] = self.confirmed[slot] = request.num_tokens
        self.computed[slot] = request.num_computed
        self.last_token[slot] = request.token_ids[-1]
        self.capacity[slot] = num_pages * self._page_size
        self.samples[slot] = request.max_output > 0
        self.constrained[slot] = request.grammar is not None
        # The last token of an output is never computed, but a prompt is to its end.
        self.limit[slot] = request.max_total_tokens if request.max_output > 0 else request.num_tokens + 1
        self.prompt_end[slot] = len(request.prompt_ids)
        self.last_turn[slot] = self._turns  # behind all others, where rows are fewer than slots

    def promised_pages(self, slots: Int64) -> int:
        """Pages that the occupants of some slots will need for tokens that they know already."""
        missing = -(-self.known[slots] // self._page_size) - self.capacity[slots] // self._page_size
        return int(np.maximum(missing, 0).sum())

    def have_room(self, slots: Int64) -> NDArray[np.bool_]:
        """Which slots have a page for every known token."""
        return self.known[slots] <= self.capacity[slots]

    def in_turn(self, slots: Int64, count: int) -> NDArray[np.bool_]:
        """Which of the slots have their turn, where only so many can: those that were out longest."""
        if len(slots) <= count:
            return np.ones(len(slots), np.bool_)
        in_turn = np.zeros(len(slots), np.bool_)
        in_turn[np.argsort(self.last_turn[slots], kind="stable")[: max(count, 0)]] = True
        return in_turn

    def take_turns(self, slots: Int64) -> None:
        """Note who is in a step; among them, who waited longest before stays before the others."""
        order = np.argsort(self.last_turn[slots], kind="stable")
        self.last_turn[slots[order]] = self._turns + 1 + np.arange(len(slots))
        self._turns += len(slots)

    def extend(self, slot: int, known: int, last_token: int) -> None:
        """Note that all tokens up to `known` are confirmed, as after some were forced by a grammar."""
        self.known[slot] = self.confirmed[slot] = known
        self.last_token[slot] = last_token

    def confirm(self, slots: Int64, positions: Int64, token_ids: Int64) -> None:
        """Note tokens that were read: [n] each; `positions` are theirs in prompt + output."""
        self.confirmed[slots] = positions + 1
        self.last_token[slots] = token_ids
