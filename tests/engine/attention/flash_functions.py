"""What the flash-attn packages document, computed in plain PyTorch under their own names and checks.

It stands where the imported functions would, so that everything around them can be tested without a GPU.
"""

from __future__ import annotations

import torch

from rhizome_engine.attention.flash_packages import FlashFunctions


def _attend(q, k, v, scale, left, right, softcap):
    """Attend [queries, heads, d] to [keys, kv heads, d]: query i stands at key i + keys - queries."""
    group = q.shape[1] // k.shape[1]
    k, v = k.float().repeat_interleave(group, 1), v.float().repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q.float(), k) * scale
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    place = torch.arange(len(q))[:, None] + len(k) - len(q)
    key = torch.arange(len(k))
    hidden = torch.zeros(len(q), len(k), dtype=torch.bool)
    if left is not None and left >= 0:
        hidden |= key < place - left
    if right is not None and right >= 0:
        hidden |= key > place + right
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1).nan_to_num(0.0)
    return torch.einsum("hqk,khd->qhd", weights, v).to(q.dtype)


def _check(q, k, v, *indices):
    assert q.dtype in (torch.float16, torch.bfloat16), "FlashAttention only support fp16 and bf16 data type"
    assert q.dtype == k.dtype == v.dtype, "query, key and value must have the same dtype"
    assert q.shape[-1] <= 256, "FlashAttention forward only supports head dimension at most 256"
    assert q.shape[-1] % 8 == 0, "head_size must be a multiple of 8"
    assert q.shape[-2] % k.shape[-2] == 0, "number of heads in key/value must divide that of the query"
    assert all(tensor.stride(-1) == 1 for tensor in (q, k, v)), "contiguous last dimension"
    for index in indices:
        assert index.dtype == torch.int32 and index.is_contiguous()


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    block_table=None,
):
    _check(q, k, v, cu_seqlens_q, cu_seqlens_k)
    if block_table is None:
        assert len(k) == int(cu_seqlens_k[-1]) and k.ndim == 3
    else:
        assert k.shape[1] % 256 == 0, "Paged KV cache block size must be divisible by 256"
        assert block_table.dtype == torch.int32 and len(block_table) == len(cu_seqlens_q) - 1
    assert len(q) == int(cu_seqlens_q[-1])
    query_len, key_len = cu_seqlens_q.diff(), cu_seqlens_k.diff()
    assert max_seqlen_q >= int(query_len.max()) and max_seqlen_k >= int(key_len.max())
    left, right = window_size
    out = torch.empty_like(q)
    for row in range(len(query_len)):
        queries = slice(int(cu_seqlens_q[row]), int(cu_seqlens_q[row + 1]))
        if block_table is None:
            keys = slice(int(cu_seqlens_k[row]), int(cu_seqlens_k[row + 1]))
            row_k, row_v = k[keys], v[keys]
        else:
            pages, count = block_table[row].long(), int(key_len[row])
            row_k, row_v = k[pages].flatten(0, 1)[:count], v[pages].flatten(0, 1)[:count]
        out[queries] = _attend(q[queries], row_k, row_v, softmax_scale, left, 0 if causal else right, softcap)
    return out


def flash_attn_with_kvcache(
    q,
    k_cache,
    v_cache,
    k=None,
    v=None,
    rotary_cos=None,
    rotary_sin=None,
    cache_seqlens=None,
    cache_batch_idx=None,
    cache_leftpad=None,
    block_table=None,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    rotary_interleaved=True,
    alibi_slopes=None,
    num_splits=0,
    return_softmax_lse=False,
):
    _check(q, k_cache, v_cache, cache_seqlens)
    assert k_cache.shape[1] % 256 == 0, "Paged KV cache block size must be divisible by 256"
    assert block_table.dtype == torch.int32 and block_table.stride(-1) == 1
    assert len(block_table) == len(q) == len(cache_seqlens)
    out = torch.empty_like(q)
    for row, count in enumerate(cache_seqlens.tolist()):
        pages = block_table[row].long()
        keys, values = k_cache[pages].flatten(0, 1)[:count], v_cache[pages].flatten(0, 1)[:count]
        left, right = window_size
        out[row] = _attend(q[row], keys, values, softmax_scale, left, 0 if causal else right, softcap)
    return out


def hopper_varlen_func(
    q,
    k,
    v,
    qv=None,
    cu_seqlens_q=None,
    cu_seqlens_k=None,
    max_seqlen_q=None,
    max_seqlen_k=None,
    page_table=None,
    softmax_scale=None,
    causal=False,
    window_size=(None, None),
    softcap=0.0,
):
    """flash-attn-4's: no window is None, and the log-sums come along."""
    assert qv is None and page_table is None and k.ndim == 3
    assert all(size is None or size >= 0 for size in window_size)
    left, right = (-1 if size is None else size for size in window_size)
    out = flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        softmax_scale=softmax_scale,
        causal=causal,
        window_size=(left, right),
        softcap=softcap,
    )
    return out, None


FLASH_2 = FlashFunctions(flash_attn_varlen_func, flash_attn_with_kvcache, None, "written out")
FLASH_4 = FlashFunctions(None, None, hopper_varlen_func, "written out")
BOTH = FlashFunctions(flash_attn_varlen_func, flash_attn_with_kvcache, hopper_varlen_func, "written out")
