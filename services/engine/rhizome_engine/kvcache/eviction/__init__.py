"""Which cached prefix goes first when pages are needed: one module per policy, `choose` finds one by name."""

from rhizome_engine.kvcache.eviction.base import EvictionPolicy
from rhizome_engine.kvcache.eviction.choose import EVICTION_POLICIES, PolicyFactory, eviction_policy
from rhizome_engine.kvcache.eviction.fifo import FifoPolicy
from rhizome_engine.kvcache.eviction.lazy_heap import LazyHeapPolicy
from rhizome_engine.kvcache.eviction.lfu import LfuPolicy
from rhizome_engine.kvcache.eviction.lru import LruPolicy

__all__ = [
    "EVICTION_POLICIES",
    "EvictionPolicy",
    "FifoPolicy",
    "LazyHeapPolicy",
    "LfuPolicy",
    "LruPolicy",
    "PolicyFactory",
    "eviction_policy",
]
