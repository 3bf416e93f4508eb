"""An intrusive doubly linked list in order of last use.

Intrusive: the links are attributes of the elements, so removal from the middle needs no search and no
allocation. Every operation is O(1).

    sentinel <-> oldest <-> ... <-> newest <-> sentinel
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar, cast


class Linked:
    """What an element of the list has to be: somewhere to keep its neighbours, None while in no list."""

    __slots__ = ("newer", "older")

    def __init__(self) -> None:
        self.older: Linked | None = None
        self.newer: Linked | None = None


T = TypeVar("T", bound=Linked)


class LruList(Generic[T]):
    """Elements from least to most recently used."""

    def __init__(self) -> None:
        self._sentinel = Linked()
        self._sentinel.older = self._sentinel.newer = self._sentinel
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[T]:
        element = self._sentinel.newer
        while element is not self._sentinel:
            assert element is not None
            yield cast(T, element)
            element = element.newer

    @property
    def oldest(self) -> T | None:
        """The least recently used element, None when the list is empty."""
        first = self._sentinel.newer
        return None if first is self._sentinel else cast(T, first)

    def append(self, element: T) -> None:
        """Put a new element at the most recently used end."""
        newest = self._sentinel.older
        assert newest is not None
        self._link(newest, element, self._sentinel)

    def insert_after(self, element: T, older: T) -> None:
        """Put a new element directly on the newer side of one that is in the list."""
        assert older.newer is not None
        self._link(older, element, older.newer)

    def remove(self, element: T) -> None:
        """Take an element out."""
        older, newer = element.older, element.newer
        assert older is not None and newer is not None, "the element is in no list"
        older.newer, newer.older = newer, older
        element.older = element.newer = None
        self._length -= 1

    def move_to_newest(self, element: T) -> None:
        """Note that an element was used now."""
        older, newer, end = element.older, element.newer, self._sentinel
        if newer is end:
            return
        assert older is not None and newer is not None, "the element is in no list"
        # `remove` and `append` in one: every lookup does this for each node of its path.
        older.newer, newer.older = newer, older
        newest = end.older
        assert newest is not None
        element.older, element.newer = newest, end
        newest.newer = end.older = element

    def _link(self, older: Linked, element: Linked, newer: Linked) -> None:
        assert element.older is None and element.newer is None, "the element is in a list already"
        element.older, element.newer = older, newer
        older.newer = newer.older = element
        self._length += 1
