"""Which pages each slot has, on the device, for steps that are recorded.

A step's page table [num_rows, max_pages] is compared with a shadow of what the device holds, and only entries
that differ travel, as places and pages in the step's own buffer. The device writes them into its table before
attention reads it, so a request that decodes costs one entry when it comes to a new page, and nothing else.

    batch.page_table ──differs from──▶ shadow (host) ──(place, page) pairs──▶ table (device), by slot

Steps that are computed without a recording take their page table along and need not tell this one: whatever
they changed differs from the shadow and travels with the next recorded step.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rhizome_engine.batch import Batch, Int32, Int64


class PageChanges(NamedTuple):
    """Entries that the device has to change.

    Attributes:
        places: [n] int64, indices into the flat table, each once.
        pages: [n] int32.
        unused: an index that may be written and means nothing, for padding.
    """

    places: Int64
    pages: Int32
    unused: int = 0

    def split(self, count: int) -> tuple[PageChanges, PageChanges]:
        """The first so many, and the others."""
        first = PageChanges(self.places[:count], self.pages[:count], self.unused)
        return first, PageChanges(self.places[count:], self.pages[count:], self.unused)


NO_CHANGES = PageChanges(np.empty(0, np.int64), np.empty(0, np.int32))


class PageTables:
    """The device's table and what the host knows of it.

    Args:
        num_slots: slots.
        max_pages: pages of the longest context.
        page_size: tokens per page.
        device: where the table is.

    Attributes:
        table: [num_slots + 1, max_pages] int32; the last row belongs to no slot.
        nobody: its number.
    """

    def __init__(self, num_slots: int, max_pages: int, page_size: int, device: torch.device) -> None:
        self.table = torch.zeros(num_slots + 1, max_pages, dtype=torch.int32, device=device)
        self.nobody = num_slots
        self._flat = self.table.view(-1)
        self._shadow = np.zeros((num_slots + 1, max_pages), np.int32)
        self._flat_shadow = self._shadow.reshape(-1)
        self._columns = np.arange(max_pages)
        self._page_size = page_size
        self._nothing = NO_CHANGES._replace(unused=num_slots * max_pages)

    @property
    def nothing(self) -> PageChanges:
        """No change."""
        return self._nothing

    def changes(self, batch: Batch) -> PageChanges:
        """What the device does not know of a step's page table; from now on it counts as known.

        What stands in a row beyond its own pages means nothing and is not looked at.
        """
        table = batch.page_table
        width = table.shape[1]
        num_pages = -(-batch.context_len // self._page_size)
        differs = self._shadow[batch.slots, :width] != table
        differs &= self._columns[:width] < num_pages[:, None]
        where = np.flatnonzero(differs)
        if not len(where):
            return self._nothing
        rows, columns = np.divmod(where, width)
        places = batch.slots[rows] * self._shadow.shape[1] + columns
        pages = table[rows, columns]
        self._flat_shadow[places] = pages
        return PageChanges(places, pages, self._nothing.unused)

    def forget(self) -> None:
        """The device may have missed changes: everything is sent again."""
        self._shadow.fill(-1)

    def apply(self, places: Tensor, pages: Tensor) -> None:
        """Write entries, both on the device; those of padding go where nobody reads."""
        self._flat.scatter_(0, places, pages)
