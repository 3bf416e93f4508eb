"""What the attention kernels compute, in plain PyTorch: row by row, slowly, on any device.

Kernels are held to these two functions, in the tests and by the benchmark on a GPU. The arguments are the
kernels' own: pools of pages and the index arrays of a step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rhizome_engine.attention.base import AttentionLayer
from rhizome_engine.layers.rms_norm import normalise
from rhizome_engine.layers.rotary import rotate


def store(
    layer: AttentionLayer,
    qkv: Tensor,
    table: tuple[Tensor, Tensor] | None,
    slot_mapping: Tensor,
    keys: Tensor,
    values: Tensor,
    q: Tensor,
) -> None:
    """Normalise and rotate queries and keys; write queries to `q`, keys and values to their slots.

    Args:
        layer: of the model.
        qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim].
        table: cosines and sines of the tokens, each [num_tokens, rotary_dim / 2]; None for no rotation.
        slot_mapping: [num_tokens] int64; nothing is stored of a token whose slot is negative.
        keys: [num_pages, page_size, num_kv_heads, head_dim], written.
        values: like keys.
        q: [num_tokens, num_heads, head_dim], written.
    """
    heads = qkv.view(len(qkv), -1, layer.head_dim).float()
    first_v = layer.num_heads + layer.num_kv_heads
    queries, k, v = heads[:, : layer.num_heads], heads[:, layer.num_heads : first_v], heads[:, first_v:]
    if layer.q_norm is not None:
        queries = normalise(queries, layer.q_norm, layer.norm_eps)
    if layer.k_norm is not None:
        k = normalise(k, layer.k_norm, layer.norm_eps)
    if table is not None:
        queries, k = rotate(queries, *table), rotate(k, *table)
    q.copy_(queries)
    kept = slot_mapping >= 0
    slots = slot_mapping[kept]
    keys.flatten(0, 1)[slots] = k[kept].to(keys.dtype)
    values.flatten(0, 1)[slots] = v[kept].to(values.dtype)


def attend(
    layer: AttentionLayer,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    query_start: Tensor,
    context_len: Tensor,
    row_slots: Tensor,
    page_table: Tensor,
) -> Tensor:
    """Let each token see its row up to and including itself, in float32.

    Args:
        layer: of the model.
        q: [num_tokens, num_heads, head_dim].
        keys: [num_pages, page_size, num_kv_heads, head_dim].
        values: like keys.
        query_start: [num_rows + 1].
        context_len: [num_rows].
        row_slots: [num_rows], each row's row of the page table.
        page_table: [slots, pages].

    Returns:
        [num_tokens, num_heads, head_dim] float32; 0 where a row has no context, and behind the last row
    """
    out = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    page_size = keys.shape[1]
    group = layer.num_heads // layer.num_kv_heads
    bounds, lengths, slots = query_start.tolist(), context_len.tolist(), row_slots.tolist()
    for row, (length, slot) in enumerate(zip(lengths, slots, strict=True)):
        tokens = slice(bounds[row], bounds[row + 1])
        if not length or tokens.start == tokens.stop:
            continue
        pages = page_table[slot, : -(-length // page_size)].long()
        k = keys[pages].flatten(0, 1)[:length].float().repeat_interleave(group, dim=1)
        v = values[pages].flatten(0, 1)[:length].float().repeat_interleave(group, dim=1)
        scores = torch.einsum("thd,shd->hts", q[tokens].float(), k) * layer.scale
        if layer.softcap:
            scores = layer.softcap * torch.tanh(scores / layer.softcap)
        positions = torch.arange(length, device=q.device)
        distance = positions[length - (tokens.stop - tokens.start) :, None] - positions
        hidden = distance < 0
        if layer.window:
            hidden |= distance >= layer.window
        weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
        out[tokens] = torch.einsum("hts,shd->thd", weights, v)
    return out
