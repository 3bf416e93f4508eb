import numpy as np
import pytest

from rhizome_engine.kvcache.page_pool import PagePool
from rhizome_engine.kvcache.radix_cache import RadixCache
from rhizome_engine.kvcache.sequence_pages import SequencePages
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.scheduler.batch_builder import Chunk, build_batch
from rhizome_engine.scheduler.request import Request

PAGE_SIZE = 4


@pytest.fixture
def request_of():
    pool = PagePool(32, PAGE_SIZE)
    cache = RadixCache(pool)

    def make(prompt, computed, reserve, **settings):
        request = Request("r", prompt, SamplingParams(seed=5), **settings)
        request.admit(10, frozenset({9}), now=0.0, unix_ns=0)
        request.pages = SequencePages(pool, cache, str(id(request)), request.max_total_tokens)
        request.pages.attach(request.token_ids, lambda *_: None, 0)
        assert request.pages.reserve(reserve)
        request.num_computed = computed
        return request

    return make


def test_rows_are_laid_out_one_after_the_other(request_of):
    prefill = request_of(range(100, 110), computed=3, reserve=8)
    decode = request_of(range(200, 206), computed=5, reserve=6)
    batch = build_batch([Chunk(prefill, 5), Chunk(decode, 1)], PAGE_SIZE)
    assert batch.token_ids.tolist() == [103, 104, 105, 106, 107, 205]
    assert batch.positions.tolist() == [3, 4, 5, 6, 7, 5]
    assert batch.query_start.tolist() == [0, 5, 6]
    assert batch.context_len.tolist() == [8, 6]
    first, second = prefill.pages.pages.tolist(), decode.pages.pages.tolist()
    assert batch.page_table.tolist() == [first, second]
    pages = [first[0], first[1], first[1], first[1], first[1], second[1]]
    offsets = [3, 0, 1, 2, 3, 1]
    assert batch.slot_mapping.tolist() == [p * PAGE_SIZE + o for p, o in zip(pages, offsets, strict=True)]
    assert (batch.num_tokens, batch.num_rows) == (6, 2)


def test_array_types_are_the_contract(request_of):
    batch = build_batch([Chunk(request_of([1, 2, 3], 0, 3), 3)], PAGE_SIZE)
    assert {a.dtype for a in (batch.token_ids, batch.positions, batch.slot_mapping)} == {np.dtype(np.int64)}
    assert {a.dtype for a in (batch.query_start, batch.context_len, batch.page_table)} == {np.dtype(np.int32)}


def test_only_rows_that_catch_up_are_sampled(request_of):
    middle = request_of(range(10), computed=0, reserve=4)
    end = request_of(range(10), computed=4, reserve=10, min_tokens=1)
    batch = build_batch([Chunk(middle, 4), Chunk(end, 6)], PAGE_SIZE)
    (sample,) = batch.sample_rows
    assert (sample.row, sample.position, sample.seed) == (1, 10, 5)
    assert (sample.prompt_ids, sample.output_ids, sample.banned_ids) == (list(range(10)), [], (9,))
    end.append(3, now=1.0)
    end.num_computed = 10
    end.pages.reserve(11)
    (sample,) = build_batch([Chunk(end, 1)], PAGE_SIZE).sample_rows
    assert (sample.position, sample.output_ids, sample.banned_ids) == (11, [3], ())


def test_shorter_page_lists_are_padded_with_zero(request_of):
    long, short = request_of(range(12), 0, 12), request_of([1], 0, 1)
    batch = build_batch([Chunk(short, 1), Chunk(long, 12)], PAGE_SIZE)
    assert batch.page_table.shape == (2, 3)
    assert batch.page_table[0].tolist() == [*short.pages.pages.tolist(), 0, 0]
