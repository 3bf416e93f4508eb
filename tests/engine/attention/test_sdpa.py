"""SDPA over pages against attention written out token by token."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rhizome_engine.attention.base import AttentionInputs
from rhizome_engine.attention.choose import choose_attention
from rhizome_engine.attention.paged_kv import PagedKV
from rhizome_engine.attention.sdpa import MAX_GATHERED_TOKENS, SdpaBackend

NUM_HEADS, KV_HEADS, HEAD_DIM = 6, 2, 8


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def make_kv(page_size, num_pages=600):
    return PagedKV(
        num_layers=2,
        num_pages=num_pages,
        page_size=page_size,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def attend_by_hand(q, keys, values):
    """Attend [tokens, heads, head_dim], a row's last tokens, to keys [context, kv_heads, head_dim]."""
    out = torch.empty_like(q)
    offset = len(keys) - len(q)
    for token in range(len(q)):
        for head in range(NUM_HEADS):
            kv_head = head // (NUM_HEADS // KV_HEADS)
            seen = slice(0, offset + token + 1)
            scores = keys[seen, kv_head] @ q[token, head] / math.sqrt(HEAD_DIM)
            out[token, head] = scores.softmax(dim=0) @ values[seen, kv_head]
    return out


def run_rows(rows, page_size, layer=1, poison=None):
    """Attend a batch of (new tokens, context) rows whose older tokens are put into the pool by hand.

    Returns:
        what the back end gave, and what it should be
    """
    torch.manual_seed(0)
    kv = make_kv(page_size)
    if poison is not None:
        kv.data.fill_(poison)
    pages = torch.randperm(kv.num_pages).tolist()
    width = max(-(-context // page_size) for _, context in rows)
    table = np.zeros((len(rows), width), np.int32)
    new_k, new_v, new_slots, queries, expected = [], [], [], [], []
    for row, (count, context) in enumerate(rows):
        mine = [pages.pop() for _ in range(-(-context // page_size))]
        table[row, : len(mine)] = mine
        for page in mine:
            kv.data[:, :, page] = 0.0
        slots = torch.tensor([mine[p // page_size] * page_size + p % page_size for p in range(context)])
        keys = torch.randn(context, KV_HEADS, HEAD_DIM)
        values = torch.randn(context, KV_HEADS, HEAD_DIM)
        q = torch.randn(count, NUM_HEADS, HEAD_DIM)
        old = context - count
        kv.write(layer, slots[:old], keys[:old], values[:old])
        queries.append(q)
        new_k.append(keys[old:])
        new_v.append(values[old:])
        new_slots.append(slots[old:])
        expected.append(attend_by_hand(q, keys, values))
    counts, contexts = zip(*rows, strict=True)
    plan = SdpaBackend(kv).plan(
        AttentionInputs(
            slot_mapping=torch.cat(new_slots),
            query_start=np.cumsum([0, *counts]).astype(np.int32),
            context_len=np.array(contexts, np.int32),
            page_table=table,
        )
    )
    out = plan.attend(layer, torch.cat(queries), torch.cat(new_k), torch.cat(new_v))
    return out, torch.cat(expected)


@pytest.mark.parametrize("page_size", [1, 16, 32])
@pytest.mark.parametrize(
    "rows",
    [
        [(1, 1)],
        [(1, 40)],
        [(1, 5), (1, 33), (1, 34), (1, 90)],
        [(9, 9)],
        [(7, 50)],
        [(1, 17), (20, 20), (1, 3), (5, 70), (1, 64), (2, 33)],
    ],
    ids=["first token", "decode", "ragged decode", "prefill", "chunk after a prefix", "mixed"],
)
def test_equals_attention_written_out(rows, page_size):
    out, expected = run_rows(rows, page_size)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_pages_of_others_cannot_reach_a_row_even_as_nan():
    out, expected = run_rows([(1, 17), (1, 40), (3, 20)], 16, poison=float("nan"))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_decode_rows_of_similar_length_share_a_call():
    kv = make_kv(16)
    contexts = np.array([1, 15, 70, 120, 128, 5000], np.int32)
    plan = SdpaBackend(kv).plan(
        AttentionInputs(
            slot_mapping=torch.arange(6),
            query_start=np.arange(7, dtype=np.int32),
            context_len=contexts,
            page_table=np.zeros((6, 400), np.int32),
        )
    )
    assert [len(group.pages) for group in plan.decode_groups] == [2, 3, 1]
    assert [group.pages.shape[1] for group in plan.decode_groups] == [1, 8, 313]


def test_a_group_is_split_where_gathering_would_take_too_much_memory():
    kv = make_kv(16)
    plan = SdpaBackend(kv).plan(
        AttentionInputs(
            slot_mapping=torch.arange(20),
            query_start=np.arange(21, dtype=np.int32),
            context_len=np.full(20, MAX_GATHERED_TOKENS // 8, np.int32),
            page_table=np.zeros((20, MAX_GATHERED_TOKENS // 8 // 16), np.int32),
        )
    )
    assert [group.tokens.tolist() for group in plan.decode_groups] == [
        list(range(8)),
        list(range(8, 16)),
        list(range(16, 20)),
    ]


def test_a_copied_page_holds_the_first_slots_of_all_layers_and_no_more():
    kv = make_kv(16)
    kv.data.copy_(torch.randn_like(kv.data))
    before = kv.data.clone()
    kv.copy_page(3, 5, 7)
    assert torch.equal(kv.data[:, :, 5, :7], before[:, :, 3, :7])
    assert torch.equal(kv.data[:, :, 5, 7:], before[:, :, 5, 7:])
    assert torch.equal(kv.data[:, :, :5], before[:, :, :5])


def test_layers_are_views_of_one_allocation():
    kv = make_kv(16)
    keys, values = kv.layer(1)
    kv.write(
        1,
        torch.tensor([16 * 4 + 2]),
        torch.ones(1, KV_HEADS, HEAD_DIM),
        torch.full((1, KV_HEADS, HEAD_DIM), 2.0),
    )
    assert keys[4, 2].eq(1).all() and values[4, 2].eq(2).all()
    assert keys.untyped_storage().data_ptr() == kv.data.untyped_storage().data_ptr()
    assert float(kv.data.sum()) == 3 * KV_HEADS * HEAD_DIM


def test_an_unknown_back_end_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"attention must be auto, sdpa, not 'magic'"):
        choose_attention("magic", make_kv(16))
