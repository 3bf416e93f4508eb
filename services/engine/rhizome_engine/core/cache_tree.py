"""`GetCacheTree`: the prefix cache as a message."""

from __future__ import annotations

from rhizome.engine.v1 import engine_service_pb2 as engine
from rhizome_engine.kvcache.cache_survey import CacheSurvey, Surveyed
from rhizome_engine.kvcache.node import RadixNode

_NODES = 256
_MOST_NODES = 4096
"""About 10 ms of the engine's time."""


def to_cache_tree(
    survey: CacheSurvey, request: engine.GetCacheTreeRequest, page_size: int, instance_id: str
) -> engine.GetCacheTreeResponse:
    """What `request` asks for, of this engine.

    Args:
        survey: looks at the cache.
        request: says how much to show.
        page_size: tokens per page.
        instance_id: the engine core's.
    """
    most = min(request.max_nodes, _MOST_NODES) if request.HasField("max_nodes") else _NODES
    namespace = request.cache_namespace if request.HasField("cache_namespace") else None
    found = survey.newest(most, namespace)
    tree = engine.CacheTree(
        instance_id=instance_id,
        page_size=page_size,
        pages_total=survey.num_pages,
        truncated=found.truncated,
    )
    for name, nodes in found.nodes.items():
        entries = [_entry(node, survey, found, with_token_ids=request.with_token_ids) for node in nodes]
        tree.namespaces.append(engine.CacheTreeNamespace(cache_namespace=name, nodes=entries))
    return engine.GetCacheTreeResponse(trees=[tree])


def _entry(
    node: RadixNode, survey: CacheSurvey, found: Surveyed, *, with_token_ids: bool
) -> engine.CacheTreeNode:
    """Pages belong to one node each, and a split leaves the last one where it was: it names the node."""
    parent = node.parent
    entry = engine.CacheTreeNode(
        node_id=int(node.pages[-1]),
        tokens=len(node.key),
        uses=min(node.uses, 255),
        idle_uses=found.now - node.last_use,
        locks=node.lock_ref,
        pinned=survey.pinned(node),
    )
    if parent is not None and parent.parent is not None:
        entry.parent_id = int(parent.pages[-1])
    if with_token_ids:
        entry.token_ids.extend(node.key.tolist())
    return entry
