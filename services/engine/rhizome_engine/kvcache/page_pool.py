"""The free list of KV pages.

Only page numbers live here; the tensors behind them belong to the model runner. A page is in exactly one of
three places at any time, which is what `EngineCore.check_conservation` asserts:

    free (this pool)  |  cached (the radix tree)  |  in flight (one request's `SequencePages`)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pages = NDArray[np.int32]


class PagePool:
    """A stack of free page numbers; the page freed last is handed out first, because it is warm in caches.

    Args:
        num_pages: pages of the pool.
        page_size: tokens per page.
        first: the least page number; two pools whose numbers differ can be told apart by them.

    Raises:
        ValueError: a size is not positive.
    """

    def __init__(self, num_pages: int, page_size: int, first: int = 0) -> None:
        if num_pages < 1 or page_size < 1:
            raise ValueError(f"a pool needs pages and page_size >= 1, not {num_pages} and {page_size}")
        self.num_pages = num_pages
        self.page_size = page_size
        self._first = first
        self._stack = np.arange(first + num_pages - 1, first - 1, -1, dtype=np.int32)
        self._top = num_pages
        self._is_free = np.ones(num_pages, dtype=np.bool_)

    @property
    def num_free(self) -> int:
        """Pages that `allocate` can hand out."""
        return self._top

    @property
    def free_pages(self) -> Pages:
        """A copy of the free page numbers, for checks."""
        return self._stack[: self._top].copy()

    def allocate(self, count: int) -> Pages:
        """Take pages out.

        Raises:
            RuntimeError: fewer are free; callers make room first, so this is a bug in the caller.
        """
        if count > self._top:
            raise RuntimeError(f"{count} pages were asked for, but only {self._top} are free")
        self._top -= count
        pages = self._stack[self._top : self._top + count].copy()
        self._is_free[pages - self._first] = False
        return pages

    def free(self, pages: Pages) -> None:
        """Give pages back.

        Raises:
            RuntimeError: a page is free already; two owners would share it from now on.
        """
        if not len(pages):
            return
        places = pages - self._first
        if self._is_free[places].any() or len(pages) > self.num_pages - self._top:
            raise RuntimeError(f"pages freed twice: {pages[self._is_free[places]].tolist()}")
        self._is_free[places] = True
        self._stack[self._top : self._top + len(pages)] = pages
        self._top += len(pages)
