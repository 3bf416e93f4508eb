"""Which prefixes of a prompt are looked at."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhizome_routing.prefix.chain import (
    MOST_PROBES,
    SAMPLE_TOKENS,
    TEXT_BLOCK,
    TEXT_CHUNK_BYTES,
    chain_of,
    chain_of_text,
    sample_mask,
    sampled,
)
from rhizome_transport.block_hashes import block_hashes

DRAW = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("block_size", "mask"), [(1, 63), (8, 7), (16, 3), (20, 1), (32, 1), (64, 0), (512, 0)]
)
def test_blocks_are_sampled_to_about_the_same_number_of_tokens(block_size, mask):
    assert sample_mask(block_size) == mask
    ids = DRAW.integers(0, 128_000, 200_000, dtype=np.uint32)
    chain = chain_of(ids, block_size, "")
    per_hash = 200_000 / len(chain.hashes)
    assert per_hash == pytest.approx(max((mask + 1) * block_size, block_size), rel=0.15)
    assert len(chain.probes) <= 1.5 * MOST_PROBES
    assert set(chain.probes) <= set(chain.hashes)


@settings(max_examples=50, deadline=None)
@given(
    tokens=st.integers(0, 3000),
    common=st.integers(0, 3000),
    block_size=st.sampled_from([1, 16, 64, 100]),
)
def test_engines_and_prompts_are_sampled_alike(tokens, common, block_size):
    ids = DRAW.integers(0, 128_000, tokens, dtype=np.uint32)
    chain = chain_of(ids, block_size, "x")
    named = block_hashes(ids, block_size, "x").tolist()
    assert chain.hashes == sampled(named, block_size)
    assert [named[length // block_size - 1] for length in chain.tokens] == chain.probes
    other = chain_of(ids[:common], block_size, "x")
    assert chain.hashes[: len(other.hashes)] == other.hashes


def test_a_long_prompt_is_probed_for_its_whole_length():
    # Numbers of its own: others draw as many as they like, and the longest step is a matter of luck.
    draw = np.random.default_rng(0)
    chain = chain_of(draw.integers(0, 128_000, 131_072, dtype=np.uint32), 16, "")
    steps = np.diff([0, *chain.tokens, 131_072])
    assert len(chain.probes) < 2 * MOST_PROBES < len(chain.hashes)
    assert steps.max() < 131_072 / 10
    assert steps.mean() > SAMPLE_TOKENS


def test_texts_share_what_they_have_in_common_in_whole_chunks():
    text = DRAW.integers(0, 256, 20_000, dtype=np.uint8).tobytes()
    whole = chain_of_text(text, "").hashes
    assert len(whole) == len(set(whole)) == 20_000 // TEXT_CHUNK_BYTES
    for length in (0, 255, 256, 5_000):
        other = chain_of_text(text[:length] + b"\xff" + text[length + 1 :], "").hashes
        same = length // TEXT_CHUNK_BYTES
        if text[length : length + 1] != b"\xff":
            assert other[:same] == whole[:same]
            assert not set(other[same:]) & set(whole)
    assert not set(chain_of_text(text, "other").hashes) & set(whole)


def test_a_long_text_has_few_probes_each_with_its_length():
    chain = chain_of_text(DRAW.integers(0, 256, 1_000_000, dtype=np.uint8).tobytes(), "")
    assert 10 < len(chain.probes) < 2 * MOST_PROBES  # 61 are to be expected; the hash is keyed anew each time
    lengths = {one: place * TEXT_BLOCK for place, one in enumerate(chain.hashes, 1)}
    assert chain.tokens == [lengths[one] for one in chain.probes]
