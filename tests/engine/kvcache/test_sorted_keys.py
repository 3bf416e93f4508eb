from hypothesis import given, settings
from hypothesis import strategies as st

from rhizome_engine.kvcache.sorted_keys import SortedKeys


def shared(left, right):
    return next(
        (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
    )


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.binary(max_size=3)), max_size=60),
    st.binary(max_size=3),
)
def test_a_neighbour_shares_the_longest_prefix(operations, key):
    keys, expected = SortedKeys(), set()
    for add, other in operations:
        if add and other not in expected:
            keys.add(other)
            expected.add(other)
        elif not add and other in expected:
            keys.remove(other)
            expected.discard(other)
    assert list(keys) == sorted(expected)
    best = max((shared(key, other) for other in expected), default=0)
    assert max((shared(key, other) for other in keys.neighbours(key)), default=0) == best


def test_many_keys_stay_in_order_while_blocks_split_and_vanish():
    keys = SortedKeys()
    numbers = [(i * 7919) % 5000 for i in range(5000)]
    for number in numbers:
        keys.add(number.to_bytes(2, "big"))
    assert list(keys) == [i.to_bytes(2, "big") for i in range(5000)]
    assert keys.neighbours((2500).to_bytes(2, "big")) == [i.to_bytes(2, "big") for i in (2499, 2500)]
    for number in numbers:
        if number % 2:
            keys.remove(number.to_bytes(2, "big"))
    for number in range(1, 4999, 2):
        found = keys.neighbours(number.to_bytes(2, "big"))
        assert found == [i.to_bytes(2, "big") for i in (number - 1, number + 1)]
    for number in range(0, 5000, 2):
        keys.remove(number.to_bytes(2, "big"))
    assert list(keys) == [] and keys.neighbours(b"x") == []
