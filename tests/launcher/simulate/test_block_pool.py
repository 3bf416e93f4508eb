from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from rhizome_launcher.simulate.block_pool import BlockPool, Removed, Stored

BLOCKS = 12


def chain(prompt: int, length: int) -> list[int]:
    """Hashes of a prompt; the first two blocks are everybody's."""
    return [block if block < 2 else prompt * 100 + block for block in range(length)]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6), st.integers(0, 5), st.booleans()), max_size=40)
)
def test_blocks_are_never_lost_and_changes_tell_what_is_cached(
    steps: list[tuple[int, int, int, bool]],
) -> None:
    pool = BlockPool(BLOCKS, watched=True)
    held: list[tuple[list[int], int]] = []
    told: set[int] = set()
    for prompt, length, private, release in steps:
        if release and held:
            pool.release(*held.pop(prompt % len(held)))
        else:
            hashes = chain(prompt, length)
            hits = pool.match(hashes)
            if pool.reserve(hashes[:hits], length - hits + private):
                tokens = [0] * 4 * (length - hits)
                pool.share(hashes[hits - 1] if hits else None, hashes[hits:], tokens)
                held.append((hashes, private))
        for change in pool.changes:
            if isinstance(change, Stored):
                assert told.isdisjoint(change.hashes)
                assert change.parent is None or change.parent in told
                assert len(change.token_ids) == 4 * len(change.hashes)
                told.update(change.hashes)
            else:
                told.difference_update(change.hashes)
        pool.changes.clear()
        assert told == set(pool.hashes())
        assert pool.in_use == len({block for hashes, _ in held for block in hashes}) + sum(n for _, n in held)
        assert pool.in_use + pool.idle <= BLOCKS


def test_what_was_idle_longest_goes_first_and_ends_before_starts() -> None:
    pool = BlockPool(4, watched=True)
    for hashes in ([1, 2], [3, 4]):
        assert pool.reserve((), 2)
        pool.share(None, hashes, [0, 0])
        pool.release(hashes, 0)
    assert pool.reserve((), 3)
    assert pool.changes[-1] == Removed((2, 1, 4))


def test_nothing_is_held_where_there_is_no_room() -> None:
    pool = BlockPool(4)
    assert pool.reserve((), 2)
    pool.share(None, [1, 2], [0, 0])
    pool.release([1, 2], 0)
    assert not pool.reserve([1, 2], 3)
    assert (pool.in_use, pool.idle) == (0, 2)
