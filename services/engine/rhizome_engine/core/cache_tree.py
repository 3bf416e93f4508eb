"""`GetCacheTree`: the prefix cache as a message."""

from __future__ import annotations

from rhizome.engine.v1 import engine_service_pb2 as engine
from rhizome_engine.kvcache.cache_survey import CacheSurvey, Part, Surveyed

_NODES = 256
_MOST_NODES = 4096
"""Some 40 ms of the engine's time."""


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
        host_pages_total=survey.num_host_pages,
        truncated=found.truncated,
    )
    for name, parts in found.parts.items():
        entries = [_entry(part, survey, found, with_token_ids=request.with_token_ids) for part in parts]
        tree.namespaces.append(engine.CacheTreeNamespace(cache_namespace=name, nodes=entries))
    return engine.GetCacheTreeResponse(trees=[tree])


def _entry(part: Part, survey: CacheSurvey, found: Surveyed, *, with_token_ids: bool) -> engine.CacheTreeNode:
    """Pages belong to one node each, and a split leaves the last one where it was: it names the node."""
    entry = engine.CacheTreeNode(
        node_id=part.id,
        tokens=len(part.key),
        uses=min(part.uses, 255),
        idle_uses=found.now - part.last_use,
        locks=part.locks,
        pinned=survey.pinned(part),
        tier=_tier(part),
    )
    if part.parent is not None:
        entry.parent_id = part.parent.id
    if with_token_ids:
        entry.token_ids.extend(part.key.tolist())
    return entry


def _tier(part: Part) -> engine.CacheTier.ValueType:
    if part.host is None:
        return engine.CACHE_TIER_UNSPECIFIED
    return engine.CACHE_TIER_HOST if part.device is None else engine.CACHE_TIER_DEVICE_AND_HOST
