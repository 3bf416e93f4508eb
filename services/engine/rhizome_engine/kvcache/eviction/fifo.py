"""First in, first out: what is used meanwhile makes no difference."""

from __future__ import annotations

from rhizome_engine.kvcache.eviction.lazy_heap import LazyHeapPolicy
from rhizome_engine.kvcache.node import RadixNode


class FifoPolicy(LazyHeapPolicy):
    """Evicts the unlocked leaf that was inserted first.

    A node is as old as the insertion that brought its tokens: both halves of a split have the age of the
    whole, and locks change no age. A child is never older than its parent, yet goes before it. So an old
    prefix stays as long as it has children, however late they came; once its last child is evicted it is the
    oldest leaf, and follows at once.
    """

    def key(self, node: RadixNode) -> int:
        """When it was inserted."""
        return node.created
