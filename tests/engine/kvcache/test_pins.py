import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhizome_engine.kvcache.page_pool import PagePool
from rhizome_engine.kvcache.pins import NothingCachedError, PinBudgetError, PinnedPrefixes
from rhizome_engine.kvcache.radix_cache import RadixCache


def ids(*tokens):
    return np.array(tokens, np.int32)


class Pinning:
    """A cache of two-token pages, and pins with a clock that is set by hand."""

    def __init__(self, budget_pages=4, num_pages=16):
        self.now = 100.0
        self.pool = PagePool(num_pages, 2)
        self.cache = RadixCache(self.pool)
        self.pins = PinnedPrefixes(self.cache, 2, budget_pages, lambda: self.now)

    def put(self, *tokens, namespace=""):
        pages = self.pool.allocate(len(tokens) // 2)
        self.pool.free(self.cache.insert(namespace, ids(*tokens), pages).duplicates)


@pytest.fixture
def pinning():
    return Pinning()


def test_a_pinned_prefix_survives_eviction_and_flush_and_is_free_to_go_afterwards(pinning):
    pinning.put(1, 2, 3, 4, 5, 6)
    pin = pinning.pins.pin("", ids(1, 2, 3, 4))
    assert pinning.cache.evict(16) == 1 and pinning.cache.clear() == 0
    assert pinning.cache.peek("", ids(1, 2, 3, 4, 5, 6)) == 4
    assert pinning.pool.num_free + pinning.cache.protected_pages == 16
    assert pinning.pins.unpin(pin.id)
    assert pinning.cache.clear() == 2 and pinning.pool.num_free == 16


def test_says_how_much_of_the_prefix_is_pinned(pinning):
    pinning.put(1, 2, 3, 4)
    pin = pinning.pins.pin("", ids(1, 2, 3, 4, 5, 6, 7))
    assert (pin.num_tokens, pin.num_pages, pin.expires_at) == (4, 2, None)
    assert pinning.pins.list() == [pin]


def test_refuses_a_prefix_of_which_no_whole_page_is_cached(pinning):
    pinning.put(1, 2, namespace="other tenant")
    with pytest.raises(NothingCachedError, match="of the prefix of 2 tokens not even one page of 2"):
        pinning.pins.pin("", ids(1, 2))


def test_over_budget_tells_the_arithmetic_and_pins_nothing(pinning):
    pinning.put(1, 2, 3, 4, 5, 6)
    pinning.put(1, 2, 7, 8, 9, 10)
    pinning.pins.pin("", ids(1, 2, 3, 4, 5, 6))
    with pytest.raises(PinBudgetError) as raised:
        pinning.pins.pin("", ids(1, 2, 7, 8, 9, 10))
    assert str(raised.value) == (
        "the prefix takes 3 pages, 1 of them pinned already; "
        "the other 2 and the 3 pages pinned now exceed the budget of 4 pages"
    )
    assert pinning.pins.pinned_pages == pinning.cache.protected_pages == 3
    assert pinning.pins.pin("", ids(1, 2, 7, 8)).num_pages == 2


def test_pinning_again_lets_the_pin_live_longer_and_never_shorter(pinning):
    pinning.put(1, 2, 3, 4)
    first = pinning.pins.pin("", ids(1, 2, 3, 4), 10.0)
    assert first.expires_at == 110.0
    pinning.now = 105.0
    assert pinning.pins.pin("", ids(1, 2, 3, 4), 2.0).expires_at == 110.0
    again = pinning.pins.pin("", ids(1, 2, 3, 4), 10.0)
    assert again.id == first.id and again.expires_at == 115.0
    assert pinning.pins.pinned_pages == 2 and pinning.pins.list() == [again]
    assert pinning.pins.expire(114.9) == []
    assert pinning.pins.expire(115.0) == [again] and pinning.cache.evictable_pages == 2
    assert pinning.pins.list() == []


def test_a_pin_without_end_keeps_none(pinning):
    pinning.put(1, 2)
    pinning.pins.pin("", ids(1, 2), 10.0)
    assert pinning.pins.pin("", ids(1, 2)).expires_at is None
    assert pinning.pins.pin("", ids(1, 2), 10.0).expires_at is None
    assert pinning.pins.expire(1e9) == [] and pinning.pins.pinned_pages == 1


def test_what_has_ended_makes_room_for_the_next(pinning):
    pinning.put(1, 2, 3, 4, 5, 6)
    pinning.put(7, 8, 9, 10)
    pinning.pins.pin("", ids(1, 2, 3, 4, 5, 6), 1.0)
    pinning.now += 1.0
    assert pinning.pins.pin("", ids(7, 8, 9, 10)).num_pages == 2
    assert pinning.pins.pinned_pages == 2


def test_the_earliest_of_many_ends_on_time(pinning):
    for token, ttl_s in ((1, 10.0), (2, 30.0), (3, None)):
        pinning.put(token, token)
        pinning.pins.pin("", ids(token, token), ttl_s)
    assert [len(pinning.pins.expire(now)) for now in (109.0, 110.0, 129.0, 130.0, 500.0)] == [0, 1, 0, 1, 0]


def test_ids_tell_namespaces_apart_and_agree_between_engines():
    engines = Pinning(), Pinning()
    found = []
    for engine in engines:
        for namespace in ("a", "b"):
            engine.put(1, 2, namespace=namespace)
            found.append(engine.pins.pin(namespace, ids(1, 2)).id)
    assert found[:2] == found[2:] and found[0] != found[1]


def test_an_unknown_id_is_no_pin(pinning):
    assert not pinning.pins.unpin("none")


@pytest.mark.parametrize("ttl_s", [0, -1.0, float("nan")])
def test_refuses_a_time_to_live_that_is_not_positive(pinning, ttl_s):
    with pytest.raises(ValueError, match="ttl_s must be positive"):
        pinning.pins.pin("", ids(1, 2), ttl_s)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=1, max_size=8),
    st.integers(1, 12),
)
def test_shared_pages_cost_the_budget_once(prefixes, budget_pages):
    pinning = Pinning(budget_pages, num_pages=64)
    taken = set()
    for prefix in prefixes:
        tokens = [token for page in prefix for token in (page, page)]
        pinning.put(*tokens)
        pages = {tuple(prefix[: end + 1]) for end in range(len(prefix))}
        if len(taken | pages) <= budget_pages:
            pinning.pins.pin("", ids(*tokens))
            taken |= pages
        else:
            with pytest.raises(PinBudgetError):
                pinning.pins.pin("", ids(*tokens))
        assert pinning.pins.pinned_pages == len(taken) == pinning.cache.protected_pages
    for pin in pinning.pins.list():
        assert pinning.pins.unpin(pin.id)
    assert pinning.pins.pinned_pages == pinning.cache.protected_pages == 0
