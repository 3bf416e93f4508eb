"""Names for prefixes of prompts: one 64-bit hash per full block, chained from the first block on.

Engines tell which blocks they cache by these hashes (`WatchKvEvents`); routers compute them for a prompt
and see how much of it each engine holds. `KvStored` in `engine_service.proto` has the definition:

    hash[-1] = the first 8 bytes, little-endian, of BLAKE2b (8 bytes of digest) over the namespace in UTF-8
    hash[i]  = hash[i-1] + mix(id[0]*m[0] + id[1]*m[1] + ... + (i+1)*GOLDEN)      ids of block i, modulo 2^64
    m[j]     = mix((j+1)*GOLDEN) | 1
    mix      = the finaliser of SplitMix64 (Steele, Lea, Flood 2014), which is Stafford's "Mix13"

Position and contents go through `mix` together, so what a block adds is different at each place: blocks in
another order, moved or repeated have other hashes, and yet one cumulative sum chains them all. A hash needs
nothing but its parent's, the position and its own tokens, so a chain can go on where it stopped.

This is a hint for routing and no key of a cache. Two prefixes that nobody made for the purpose collide with a
probability of 2^-64; who wants a collision can compute one. It then misroutes a request, no more: an engine
compares tokens before it reuses anything.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

try:
    from rhizome_transport import block_hashes_native as _native
except ImportError:  # it is compiled in images, and by `make native`
    _native = None  # type: ignore[assignment]

BlockHashes = NDArray[np.uint64]

_GOLDEN = np.array(0x9E3779B97F4A7C15, np.uint64)
_FIRST_PLACES = np.arange(1, 8_193, dtype=np.uint64) * _GOLDEN
_FIRST_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_FACTOR = np.uint64(0x94D049BB133111EB)
_27, _30, _31 = np.uint64(27), np.uint64(30), np.uint64(31)


def block_hashes(token_ids: ArrayLike, block_size: int, namespace: str) -> BlockHashes:
    """Hash every prefix of a prompt that ends with a full block.

    An array of unsigned 32-bit integers is fastest; to read a list takes several times as long as to hash it.

    Args:
        token_ids: [n] integers from 0 to 2^32 - 1.
        block_size: tokens per block.
        namespace: whose prompt it is; the same tokens have other hashes in another one.

    Returns:
        [n // block_size] hash i names blocks 0 to i; the tokens of an incomplete block count nowhere.

    Raises:
        ValueError: a block needs a token at least.
    """
    return extend_hashes(token_ids, block_size, root_hash(namespace), 0)


def root_hash(namespace: str) -> int:
    """The hash before the first block."""
    return int.from_bytes(blake2b(namespace.encode(), digest_size=8).digest(), "little")


def extend_hashes(token_ids: ArrayLike, block_size: int, parent_hash: int, position: int) -> BlockHashes:
    """Continue a chain.

    Args:
        token_ids: [n] the tokens that follow.
        block_size: tokens per block.
        parent_hash: of the block before, or `root_hash`.
        position: how many blocks come before.

    Returns:
        [n // block_size] the hashes of the full blocks that follow.

    Raises:
        ValueError: a block needs a token at least.
    """
    if block_size < 1:
        raise ValueError(f"a block has a token at least, not {block_size}")
    ids = np.asarray(token_ids)
    count = len(ids) // block_size
    if _native is not None and ids.dtype == np.uint32:
        hashes: BlockHashes = np.empty(count, np.uint64)
        _native.extend(np.ascontiguousarray(ids), _multipliers(block_size), parent_hash, position, hashes)
        return hashes
    blocks = ids[: count * block_size].astype(np.uint64).reshape(count, block_size)
    hashes = np.vecdot(blocks, _multipliers(block_size))
    hashes += _places(position, count)
    np.add.accumulate(_mix(hashes), out=hashes)
    hashes += np.uint64(parent_hash)
    return hashes


def choose_hashes(hashes: BlockHashes, mask: int) -> tuple[list[int], list[int]]:
    """Those hashes whose bits are zero under a mask.

    Args:
        hashes: [n] of prefixes of one to n blocks.
        mask: bits of a hash.

    Returns:
        [m] how many blocks the prefixes have, and their hashes.
    """
    if _native is not None:
        return _native.choose(np.ascontiguousarray(hashes), mask)
    places = np.flatnonzero((hashes & np.uint64(mask)) == 0) if mask else np.arange(len(hashes))
    return (places + 1).tolist(), hashes[places].tolist()


def _places(position: int, count: int) -> BlockHashes:
    """What the place of each of `count` blocks adds."""
    if position + count > len(_FIRST_PLACES):
        return np.arange(position + 1, position + count + 1, dtype=np.uint64) * _GOLDEN
    return _FIRST_PLACES[position : position + count]


@lru_cache(maxsize=16)
def _multipliers(block_size: int) -> BlockHashes:
    return _mix(np.arange(1, block_size + 1, dtype=np.uint64) * _GOLDEN) | np.uint64(1)


def _mix(values: NDArray[Any]) -> BlockHashes:
    """Spread every bit over all 64, in place."""
    values ^= values >> _30
    values *= _FIRST_FACTOR
    values ^= values >> _27
    values *= _SECOND_FACTOR
    values ^= values >> _31
    return values
