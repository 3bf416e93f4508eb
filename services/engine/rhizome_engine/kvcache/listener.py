"""Who else wants to know what the cache holds.

This is the room for a second tier and for routers. The host tier (`host_tier.py`) listens to `removed`: the
pages still hold their keys and values during the call, so it notes that they are to be copied and files them
under the tokens of the node; a later miss asks it before computing. A publisher of KV events
(`core/kv_event_log.py`) listens to both, so that a router knows without asking which engine has which prefix.
"""

from __future__ import annotations

from typing import Protocol

from rhizome_engine.kvcache.node import RadixNode
from rhizome_engine.kvcache.page_pool import Pages


class CacheListener(Protocol):
    """Hears of every page exactly once when it comes and once when it goes.

    Calls come in the middle of the tree's work: a listener must neither raise nor call the cache. It keeps no
    node, because nodes are split later.
    """

    def stored(self, node: RadixNode) -> None:
        """The cache took the pages of a new leaf.

        Args:
            node: `node.pages` are new; `node.prefix_ids()` are all tokens up to and with theirs.
        """

    def removed(self, node: RadixNode, pages: Pages) -> None:
        """The cache is about to free pages; until this call returns nobody writes to them.

        Args:
            node: the leaf that loses them, still whole; `node.prefix_ids()` are all tokens up to and with
                theirs.
            pages: [m] int32, the last ones of `node.pages`.
        """
