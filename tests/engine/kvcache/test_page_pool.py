import numpy as np
import pytest

from rhizome_engine.kvcache.page_pool import PagePool


def test_hands_out_every_page_once_and_takes_them_back():
    pool = PagePool(8, 16)
    first, second = pool.allocate(3), pool.allocate(5)
    assert sorted([*first, *second]) == list(range(8)) and pool.num_free == 0
    pool.free(first)
    assert sorted(pool.free_pages.tolist()) == sorted(first.tolist())


def test_the_page_freed_last_is_handed_out_first():
    pool = PagePool(4, 1)
    pages = pool.allocate(4)
    pool.free(pages[2:3])
    pool.free(pages[1:2])
    assert pool.allocate(1).tolist() == pages[1:2].tolist()


def test_freeing_twice_is_an_error_before_two_requests_share_a_page():
    pool = PagePool(4, 1)
    pages = pool.allocate(2)
    pool.free(pages)
    with pytest.raises(RuntimeError, match="freed twice"):
        pool.free(pages)
    assert pool.num_free == 4


def test_freeing_nothing_is_fine():
    PagePool(1, 1).free(np.empty(0, np.int32))


def test_asking_for_more_than_is_free_is_an_error():
    pool = PagePool(2, 1)
    with pytest.raises(RuntimeError, match="only 2 are free"):
        pool.allocate(3)


@pytest.mark.parametrize(("num_pages", "page_size"), [(0, 1), (1, 0)])
def test_a_pool_without_room_is_refused(num_pages, page_size):
    with pytest.raises(ValueError, match=">= 1"):
        PagePool(num_pages, page_size)
