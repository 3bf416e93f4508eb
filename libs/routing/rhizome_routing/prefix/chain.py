"""A prompt as the prefix index sees it: some of the hashes of its prefixes.

Engines name what they cache by chained hashes of blocks (`rhizome_transport.block_hashes`), 16 tokens long by
default. To keep each of them costs 200 bytes per block and engine, and routing needs no such precision, so
the index keeps a sample: the hashes whose lowest bits are zero, about one in `SAMPLE_TOKENS` tokens. The hash
itself decides, not its position, so everybody samples alike, even where events come in no order (a snapshot).
A cached prefix looks shorter than it is, by `SAMPLE_TOKENS` on average. Blocks of `SAMPLE_TOKENS` and more
are all kept. Of a long prompt more bits have to be zero for a hash to be looked up, so that a look-up takes
no longer with its length.

Text is treated the same way: four bytes stand for a token, so a chunk of `TEXT_BLOCK` of them is 256 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rhizome_transport.block_hashes import BlockHashes, block_hashes, choose_hashes

SAMPLE_TOKENS: Final = 64
MOST_PROBES: Final = 64
TEXT_TOKEN_BYTES: Final = 4
TEXT_BLOCK: Final = 64
TEXT_CHUNK_BYTES: Final = TEXT_BLOCK * TEXT_TOKEN_BYTES
_HASH: Final = (1 << 64) - 1


@dataclass(slots=True)
class Chain:
    """The sampled prefixes of one prompt, shortest first.

    Attributes:
        probes: [m] hashes to look up, at most about `MOST_PROBES`.
        tokens: [m] how long the prefixes are that the probes name.
        named: [n] all hashes, of which the sample is taken when it is asked for; a list is the sample.
        mask: the sample's.
    """

    probes: list[int]
    tokens: list[int]
    named: BlockHashes | list[int]
    mask: int

    @property
    def hashes(self) -> list[int]:
        """The sample."""
        if isinstance(self.named, list):
            return self.named
        return choose_hashes(self.named, self.mask)[1]


def chain_of(token_ids: NDArray[np.uint32], block_size: int, namespace: str) -> Chain:
    """Sample the prefixes of a prompt that end with a full block of `block_size` tokens."""
    hashes = block_hashes(token_ids, block_size, namespace)
    mask = sample_mask(block_size)
    finer = mask
    while len(hashes) > (finer + 1) * MOST_PROBES:
        finer = finer << 1 | 1
    blocks, probes = choose_hashes(hashes, finer)
    return Chain(probes, [count * block_size for count in blocks], hashes, mask)


def sampled(hashes: Iterable[int], block_size: int) -> list[int]:
    """Those of `hashes`, named by an engine with blocks of `block_size` tokens, that the index keeps."""
    mask = sample_mask(block_size)
    return [one for one in hashes if not one & mask]


def sample_mask(block_size: int) -> int:
    """A hash is kept where these bits are zero."""
    return (1 << (SAMPLE_TOKENS // block_size).bit_length() - 1) - 1 if block_size < SAMPLE_TOKENS else 0


def chain_of_text(text: bytes, namespace: str) -> Chain:
    """The prefixes of a text that end with a full chunk.

    Nobody else names text so, so Python's own keyed hash will do: it is a hundred times as fast on a chunk as
    numpy's start, and others cannot make texts collide.
    """
    one, named = hash(namespace), []
    for begin in range(0, len(text) - TEXT_CHUNK_BYTES + 1, TEXT_CHUNK_BYTES):
        one = hash((one, text[begin : begin + TEXT_CHUNK_BYTES]))
        named.append(one & _HASH)
    if len(named) <= MOST_PROBES:
        return Chain(named, list(range(TEXT_BLOCK, (len(named) + 1) * TEXT_BLOCK, TEXT_BLOCK)), named, 0)
    mask = 0
    while len(named) > (mask + 1) * MOST_PROBES:
        mask = mask << 1 | 1
    probed = [(name, place) for place, name in enumerate(named, 1) if not name & mask]
    return Chain([name for name, _ in probed], [place * TEXT_BLOCK for _, place in probed], named, 0)
