"""The hash of blocks: as the contract defines it, and good enough to tell prefixes apart."""

from __future__ import annotations

import re
from hashlib import blake2b
from itertools import pairwise, permutations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhizome_transport.block_hashes import block_hashes, choose_hashes, extend_hashes, root_hash

PROTO = Path(__file__).parents[2] / "proto/rhizome/engine/v1/engine_service.proto"
MASK = 2**64 - 1
G = 0x9E3779B97F4A7C15

tokens = st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 3), max_size=70)
block_sizes = st.integers(1, 17)
namespaces = st.text(max_size=5)


def mix(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def as_the_contract_says(ids: list[int], size: int, namespace: str) -> list[int]:
    hashes = []
    newest = int.from_bytes(blake2b(namespace.encode(), digest_size=8).digest(), "little")
    for i in range(len(ids) // size):
        block = ids[i * size : (i + 1) * size]
        contents = sum(id_ * (mix((j + 1) * G & MASK) | 1) for j, id_ in enumerate(block))
        newest = newest + mix(contents + (i + 1) * G & MASK) & MASK
        hashes.append(newest)
    return hashes


@given(tokens, block_sizes, namespaces)
def test_is_what_the_contract_says(ids: list[int], size: int, namespace: str) -> None:
    said = as_the_contract_says(ids, size, namespace)
    for given_as in (ids, np.array(ids, np.uint32)):
        assert block_hashes(given_as, size, namespace).tolist() == said


def test_the_example_in_the_contract_is_right() -> None:
    example = re.search(r"// 0x([0-9A-F]{16}) and 0x([0-9A-F]{16})", PROTO.read_text())
    assert example is not None
    assert block_hashes(range(1, 9), 4, "tenant").tolist() == [int(one, 16) for one in example.groups()]


@given(tokens, block_sizes, namespaces, st.integers(0, 70))
def test_a_chain_goes_on_from_any_block(ids: list[int], size: int, namespace: str, cut: int) -> None:
    whole = block_hashes(ids, size, namespace).tolist()
    cut = min(cut, len(whole))
    parent = whole[cut - 1] if cut else root_hash(namespace)
    assert whole[:cut] == block_hashes(ids[: cut * size + size - 1], size, namespace).tolist()[:cut]
    for later in (ids[cut * size :], np.array(ids[cut * size :], np.uint32)):
        assert whole[cut:] == extend_hashes(later, size, parent, cut).tolist()


@pytest.mark.parametrize("dtype", [np.uint32, np.int64])
def test_where_the_ids_lie_does_not_matter(dtype: type) -> None:
    ids = np.random.default_rng(2).integers(0, 2**32, 160_001).astype(dtype)
    wanted = block_hashes(ids.tolist(), 16, "").tolist()
    assert len(wanted) == 10_000
    apart = np.zeros((len(ids), 3), dtype)
    apart[:, 1] = ids
    shifted = np.frombuffer(b"." + ids.tobytes(), dtype, offset=1)
    for array in (ids, apart[:, 1], shifted, ids[::-1][::-1]):
        assert block_hashes(array, 16, "").tolist() == wanted
    ids.flags.writeable = False
    assert block_hashes(ids, 16, "").tolist() == wanted


@given(st.lists(st.integers(0, 2**31 - 1)), block_sizes)
def test_the_type_of_the_ids_does_not_matter(ids: list[int], size: int) -> None:
    wanted = block_hashes(ids, size, "").tolist()
    for dtype in (np.int32, np.uint32, np.int64, np.uint64):
        array = np.array(ids, dtype)
        assert block_hashes(array, size, "").tolist() == wanted
        assert array.tolist() == ids, "the caller's array is the caller's"


@given(st.lists(st.tuples(tokens, namespaces), max_size=10), st.integers(1, 5))
def test_different_prefixes_have_different_hashes(prompts: list[tuple[list[int], str]], size: int) -> None:
    prefixes, hashes = set(), set()
    for ids, namespace in prompts:
        prefixes |= {(namespace, *ids[:end]) for end in range(size, len(ids) + 1, size)}
        hashes |= {*block_hashes(ids, size, namespace).tolist()}
    assert len(prefixes) == len(hashes)


def test_systematic_prompts_do_not_collide() -> None:
    """Each family has prompts that a weak sum or product would confuse."""
    prompts: dict[str, list[list[int]]] = {
        "permuted blocks": [
            [id_ for block in order for id_ in range(block * 4, block * 4 + 4)]
            for order in permutations(range(6))
        ],
        "permuted tokens": [list(order) for order in permutations(range(7))],
        "one token for ever": [[id_] * 400 for id_ in range(500)],
        "shifted": [list(range(start, start + 200)) for start in range(500)],
        "padded": [[0] * start + [1] + [0] * (99 - start) for start in range(100)],
        "few ids": [list(ids) for ids in product(range(3), repeat=8)],
        "multiples": [[id_ << shift for id_ in range(1, 9)] for shift in range(24)],
        "swapped between neighbours": [[a, 0, 0, 0, b, 0, 0, 0] for a, b in product(range(64), repeat=2)],
    }
    known: dict[int, tuple[int, ...]] = {}
    for ids in (prompt for family in prompts.values() for prompt in family):
        for block, hash_ in enumerate(block_hashes(ids, 4, "").tolist(), start=1):
            prefix = tuple(ids[: block * 4])
            assert known.setdefault(hash_, prefix) == prefix
    assert len(known) > 50_000


def test_few_of_many_hashes_share_half_of_their_bits() -> None:
    """Half a million hashes, cut in two, collide as often as random numbers do: about 29 times, +-5."""
    rng = np.random.default_rng(0)
    hashes = block_hashes(rng.integers(0, 100, 2_000_000), 4, "")
    for half in (hashes & np.uint64(2**32 - 1), hashes >> np.uint64(32)):
        assert 8 < len(half) - len(np.unique(half)) < 60
    ones = np.unpackbits(hashes.view(np.uint8)).reshape(-1, 64).mean(axis=0)
    assert (abs(ones - 0.5) < 0.003).all()


@pytest.mark.parametrize("block_size", [1, 16])
def test_one_bit_of_one_id_changes_half_of_the_bits_from_there_on(block_size: int) -> None:
    rng = np.random.default_rng(1)
    changed = []
    for _ in range(300):
        ids = rng.integers(0, 128_000, 8 * block_size)
        other = ids.copy()
        place = int(rng.integers(len(ids)))
        other[place] ^= 1 << int(rng.integers(17))
        difference = block_hashes(ids, block_size, "") ^ block_hashes(other, block_size, "")
        first = place // block_size
        assert not difference[:first].any() and difference[first:].all()
        changed.append(np.unpackbits(difference[first:].view(np.uint8)).mean())
    assert abs(float(np.mean(changed)) - 0.5) < 0.02


@given(st.lists(st.integers(0, MASK) | st.integers(0, 40)), st.sampled_from([0, 1, 3, 7, MASK]))
def test_chooses_hashes_by_their_bits(hashes: list[int], mask: int) -> None:
    chosen = [(place, one) for place, one in enumerate(hashes, 1) if not one & mask]
    lengths, named = choose_hashes(np.array(hashes, np.uint64), mask)
    assert list(zip(lengths, named, strict=True)) == chosen
    assert choose_hashes(np.array(hashes, np.uint64)[::-1][::-1], mask) == (lengths, named)


@given(tokens, st.lists(namespaces, min_size=2, unique=True), block_sizes)
def test_namespaces_share_no_hash(ids: list[int], names: list[str], size: int) -> None:
    per_name = [{*block_hashes(ids, size, name).tolist()} for name in names]
    assert not any(one & other for one, other in pairwise(per_name))


def test_a_block_has_a_token_at_least() -> None:
    with pytest.raises(ValueError, match="not 0"):
        block_hashes([1], 0, "")
