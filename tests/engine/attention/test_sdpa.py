"""SDPA over pages against attention written out token by token."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from rhizome_engine.attention.base import AttentionInputs, AttentionLayer
from rhizome_engine.attention.paged_kv import PagedKV
from rhizome_engine.attention.sdpa import MAX_GATHERED_TOKENS, SdpaBackend
from rhizome_engine.checkpoint.rope_config import RopeConfig
from rhizome_engine.layers.rotary import Rope, rotate

NUM_HEADS, KV_HEADS, HEAD_DIM = 6, 2, 8
CPU = torch.device("cpu")
PLAIN = AttentionLayer(
    index=1,
    num_heads=NUM_HEADS,
    num_kv_heads=KV_HEADS,
    head_dim=HEAD_DIM,
    scale=1 / math.sqrt(HEAD_DIM),
    rope=None,
)
ROPES = [Rope(RopeConfig(theta=100.0), HEAD_DIM, CPU), Rope(RopeConfig(rotary_fraction=0.5), HEAD_DIM, CPU)]
MIXED = [(1, 17), (20, 20), (1, 3), (5, 70), (1, 64), (2, 33)]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def make_kv(page_size, num_pages=600, dtype=torch.float32):
    return PagedKV(
        num_layers=2,
        num_pages=num_pages,
        page_size=page_size,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        dtype=dtype,
        device=CPU,
    )


def make_inputs(slot_mapping, query_start, context_len, page_table):
    starts = np.asarray(query_start, np.int32)
    spans = zip(np.diff(starts).tolist(), np.asarray(context_len).tolist(), strict=True)
    return AttentionInputs(
        positions=torch.cat([torch.arange(context - count, context) for count, context in spans]),
        slot_mapping=slot_mapping,
        query_start=starts,
        context_len=np.asarray(context_len, np.int32),
        page_table=page_table,
    )


def turn(layer, x, gain, start):
    """Normalise and rotate heads [tokens, heads, head_dim] from position `start` on."""
    if gain is not None:
        x = x / (x.square().mean(-1, keepdim=True) + layer.norm_eps).sqrt() * gain
    if layer.rope is None:
        return x
    return rotate(x, *ROPES[layer.rope].table(torch.arange(start, start + len(x))))


def attend_by_hand(layer, q, keys, values):
    """Attend [tokens, heads, head_dim], a row's last tokens, to keys [context, kv_heads, head_dim]."""
    out = torch.empty_like(q)
    offset = len(keys) - len(q)
    for token in range(len(q)):
        last = offset + token
        seen = slice(max(0, last - layer.window + 1) if layer.window else 0, last + 1)
        for head in range(NUM_HEADS):
            kv_head = head // (NUM_HEADS // KV_HEADS)
            scores = keys[seen, kv_head] @ q[token, head] * layer.scale
            if layer.softcap:
                scores = layer.softcap * torch.tanh(scores / layer.softcap)
            out[token, head] = scores.softmax(dim=0) @ values[seen, kv_head]
    return out


def run_rows(rows, page_size, layer=PLAIN, poison=None, dtype=torch.float32):
    """Attend a batch of (new tokens, context) rows whose older tokens are put into the pool by hand.

    Returns:
        what the back end gave, and what it should be
    """
    torch.manual_seed(0)
    kv = make_kv(page_size, dtype=dtype)
    if poison is not None:
        kv.data.fill_(poison)
    pages = torch.randperm(kv.num_pages).tolist()
    width = max(-(-context // page_size) for _, context in rows)
    table = np.zeros((len(rows), width), np.int32)
    new_qkv, new_slots, expected = [], [], []
    for row, (count, context) in enumerate(rows):
        mine = [pages.pop() for _ in range(-(-context // page_size))]
        table[row, : len(mine)] = mine
        for page in mine:
            kv.data[:, :, page] = 0.0
        slots = torch.tensor([mine[p // page_size] * page_size + p % page_size for p in range(context)])
        old = context - count
        keys = torch.randn(old, KV_HEADS, HEAD_DIM).to(dtype)
        values = torch.randn(old, KV_HEADS, HEAD_DIM).to(dtype)
        kv.write(layer.index, slots[:old], keys, values)
        qkv = torch.randn(count, NUM_HEADS + 2 * KV_HEADS, HEAD_DIM)
        q, k, v = qkv.split([NUM_HEADS, KV_HEADS, KV_HEADS], dim=1)
        q, k = turn(layer, q, layer.q_norm, old), turn(layer, k, layer.k_norm, old)
        all_keys, all_values = (
            torch.cat((keys, k.to(dtype))).float(),
            torch.cat((values, v.to(dtype))).float(),
        )
        expected.append(attend_by_hand(layer, q, all_keys, all_values))
        new_qkv.append(qkv.flatten(1))
        new_slots.append(slots[old:])
    counts, contexts = zip(*rows, strict=True)
    inputs = make_inputs(torch.cat(new_slots), np.cumsum([0, *counts]), contexts, table)
    out = SdpaBackend(kv, ROPES).plan(inputs).attend(layer, torch.cat(new_qkv))
    return out, torch.cat(expected).flatten(1)


@pytest.mark.parametrize("page_size", [1, 16, 32])
@pytest.mark.parametrize(
    "rows",
    [
        [(1, 1)],
        [(1, 40)],
        [(1, 5), (1, 33), (1, 34), (1, 90)],
        [(9, 9)],
        [(7, 50)],
        MIXED,
    ],
    ids=["first token", "decode", "ragged decode", "prefill", "chunk after a prefix", "mixed"],
)
def test_equals_attention_written_out(rows, page_size):
    out, expected = run_rows(rows, page_size)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


GAINS = torch.linspace(0.5, 1.5, HEAD_DIM), torch.linspace(1.2, 0.8, HEAD_DIM)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope": 0},
        {"rope": 1},
        {"q_norm": GAINS[0], "k_norm": GAINS[1], "norm_eps": 1e-2},
        {"q_norm": GAINS[0], "k_norm": GAINS[1], "rope": 0},
        {"scale": 0.9},
        {"softcap": 0.7},
        {"window": 1},
        {"window": 7},
        {"window": 1000},
        {"window": 20, "softcap": 0.7, "rope": 1, "scale": 0.5, "q_norm": GAINS[0], "k_norm": GAINS[1]},
    ],
    ids=lambda changes: ", ".join(changes),
)
def test_what_a_layer_asks_for_is_computed_in_every_kind_of_row(changes):
    out, expected = run_rows(MIXED, 16, replace(PLAIN, **changes))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", [PLAIN, replace(PLAIN, softcap=0.7, window=9)], ids=["plain", "capped"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_narrow_pool_rounds_no_more_than_its_type(layer, dtype):
    out, expected = run_rows(MIXED, 16, layer, dtype=dtype)
    assert out.dtype == torch.float32
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)


def test_layers_with_other_windows_share_a_plan():
    torch.manual_seed(0)
    kv = make_kv(16)
    table = np.arange(8, dtype=np.int32).reshape(2, 4)
    slots = torch.cat((torch.arange(60), torch.tensor([4 * 16 + 59])))
    plan = SdpaBackend(kv, ROPES).plan(make_inputs(slots, [0, 60, 61], [60, 60], table))
    qkv = torch.randn(61, (NUM_HEADS + 2 * KV_HEADS) * HEAD_DIM)
    everything = plan.attend(PLAIN, qkv).clone()
    narrow = plan.attend(replace(PLAIN, window=5), qkv).clone()
    assert torch.equal(plan.attend(PLAIN, qkv), everything)
    assert torch.equal(plan.attend(replace(PLAIN, window=5), qkv), narrow)
    same = [torch.allclose(left, right) for left, right in zip(everything, narrow, strict=True)]
    assert same == [True] * 5 + [False] * 56


def test_pages_of_others_cannot_reach_a_row_even_as_nan():
    out, expected = run_rows([(1, 17), (1, 40), (3, 20)], 16, poison=float("nan"))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_decode_rows_of_similar_length_share_a_call():
    contexts = [1, 15, 70, 120, 128, 5000]
    inputs = make_inputs(torch.arange(6), range(7), contexts, np.zeros((6, 400), np.int32))
    plan = SdpaBackend(make_kv(16), ROPES).plan(inputs)
    assert [len(group.pages) for group in plan.decode_groups] == [2, 3, 1]
    assert [group.pages.shape[1] for group in plan.decode_groups] == [1, 8, 313]


def test_a_group_is_split_where_gathering_would_take_too_much_memory():
    context = MAX_GATHERED_TOKENS // 8
    inputs = make_inputs(torch.arange(20), range(21), [context] * 20, np.zeros((20, context // 16), np.int32))
    plan = SdpaBackend(make_kv(16), ROPES).plan(inputs)
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
