"""Who else wants to know what the cache holds.

This is the room for a second tier and for routers. A host-memory tier listens to `removed`: the pages still
hold their keys and values during the call, so it copies them (or starts the copy on the device's stream) and
files them under the tokens that it is told; a later miss asks it before computing. A publisher of KV events
listens to both, so that a router knows without asking which engine has which prefix.
"""

from __future__ import annotations

from typing import Protocol

from rhizome_engine.kvcache.node import TokenIds
from rhizome_engine.kvcache.page_pool import Pages


class CacheListener(Protocol):
    """Hears of every page exactly once when it comes and once when it goes.

    Calls come in the middle of the tree's work: a listener must neither raise nor call the cache.
    """

    def stored(self, namespace: str, token_ids: TokenIds, pages: Pages) -> None:
        """The cache took pages.

        Args:
            namespace: whose prompts may use them.
            token_ids: [n * page_size] int32, the whole prefix up to and with these pages' tokens.
            pages: [m] int32, m <= n, where the last m pages' worth of those tokens are.
        """

    def removed(self, namespace: str, token_ids: TokenIds, pages: Pages) -> None:
        """The cache is about to free pages; until this call returns nobody writes to them.

        Args:
            namespace: whose prompts used them.
            token_ids: [n * page_size] int32, the whole prefix up to and with these pages' tokens.
            pages: [m] int32, m <= n, where the last m pages' worth of those tokens are.
        """
