"""What the tree asks of an eviction policy.

A policy orders the unlocked nodes of the tree and answers `victim` with a leaf among them. The tree keeps
what policies go by (`created`, `last_use`, `uses`) on the nodes themselves, up to date whether a node is
locked or not, and tells the policy what happens. It walks every path from the leaf towards the root, so a
policy hears of a parent's use after its child's; and it stamps a node before it tells.
"""

from __future__ import annotations

from typing import Protocol

from rhizome_engine.kvcache.node import RadixNode


class EvictionPolicy(Protocol):
    """An order over the unlocked nodes of the tree. `node.rank` is the policy's own."""

    def add(self, node: RadixNode) -> None:
        """A leaf was inserted, or the last lock of a node went; both count as a use."""

    def remove(self, node: RadixNode) -> None:
        """A node was locked, or it was evicted; in the latter case its parent has forgotten it already."""

    def touch(self, node: RadixNode) -> None:
        """An unlocked node was used."""

    def split(self, upper: RadixNode, lower: RadixNode) -> None:
        """An unlocked node became two: `lower` is the known object, `upper` its new parent."""

    def cut(self, node: RadixNode) -> None:
        """The unlocked leaf lost pages at its tail, but not all of them."""

    def victim(self) -> RadixNode | None:
        """The unlocked leaf to evict next, None when every node is locked. Asking changes nothing."""
