"""A pool of pages, a step that continues some rows, and what attention should make of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from rhizome_engine.attention import reference
from rhizome_engine.attention.base import AttentionInputs, AttentionLayer, StaticInputs
from rhizome_engine.attention.paged_kv import PagedKV
from rhizome_engine.checkpoint.rope_config import RopeConfig
from rhizome_engine.layers.rotary import Rope

LAYER = 1
NUM_SLOTS = 8
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Shape:
    """A layer, its pool and the type of activations."""

    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    page_size: int = 16
    pool: torch.dtype = torch.float32
    activations: torch.dtype = torch.float32
    window: int = 0
    softcap: float = 0.0
    rotary_fraction: float | None = 1.0
    norms: bool = False
    seed: int = 0

    def layer(self, device: torch.device = CPU) -> AttentionLayer:
        generator = torch.Generator().manual_seed(self.seed + 1)
        gains = [1 + torch.randn(self.head_dim, generator=generator) / 4 for _ in range(2)]
        return AttentionLayer(
            index=LAYER,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            scale=1.5 / math.sqrt(self.head_dim),
            softcap=self.softcap,
            window=self.window,
            rope=None if self.rotary_fraction is None else 1,
            q_norm=gains[0].to(device) if self.norms else None,
            k_norm=gains[1].to(device) if self.norms else None,
            norm_eps=1e-5,
        )

    def ropes(self, device: torch.device = CPU) -> list[Rope]:
        """Two tables, of which the layer uses the second."""
        mine = RopeConfig(theta=1000.0, rotary_fraction=self.rotary_fraction or 1.0)
        return [Rope(RopeConfig(theta=77.0), self.head_dim, device), Rope(mine, self.head_dim, device)]

    @property
    def tolerance(self) -> float:
        """Of results; the interpreter cuts bits off where a GPU rounds to bfloat16."""
        narrowest = max(torch.finfo(self.pool).eps, torch.finfo(self.activations).eps)
        return 2e-5 if narrowest < 1e-6 else 3 * narrowest


class Scene:
    """A pool in which all is NaN but what the rows computed before, and a step that continues them.

    Args:
        shape: of the layer.
        rows: (new tokens, context with them) of each row.
        device: of the pool.
    """

    def __init__(self, shape: Shape, rows: list[tuple[int, int]], device: torch.device = CPU) -> None:
        self.shape, self.rows, self.device = shape, rows, device
        size = shape.page_size
        counts, contexts = [list(column) for column in zip(*rows, strict=True)]
        needed = [-(-context // size) for context in contexts]
        generator = torch.Generator().manual_seed(shape.seed)
        self.kv = PagedKV(
            num_layers=LAYER + 1,
            num_pages=sum(needed) + 3,
            page_size=size,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            dtype=shape.pool,
            device=device,
        )
        self.kv.data.fill_(float("nan"))
        pages = torch.randperm(self.kv.num_pages, generator=generator).tolist()
        # Beyond a row's own pages stands one of somebody else's: it must not matter.
        table = np.full((len(rows), max(needed) + 1), pages[-1], np.int32)
        slot_mapping = []
        for row, (count, context) in enumerate(rows):
            mine = [pages.pop() for _ in range(needed[row])]
            table[row, : len(mine)] = mine
            positions = np.arange(context)
            slots = torch.from_numpy(table[row][positions // size].astype(np.int64) * size + positions % size)
            for part in (0, 1):
                data = self.kv.data[LAYER, part].flatten(0, 1)
                older = torch.randn(context - count, *data.shape[1:], generator=generator)
                data[slots[: context - count].to(device)] = older.to(device, shape.pool)
            slot_mapping.append(slots[context - count :])
        width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
        self.qkv = torch.randn(sum(counts), width, generator=generator).to(device, shape.activations)
        spans = [torch.arange(context - count, context) for count, context in rows]
        self.inputs = AttentionInputs(
            positions=torch.cat(spans).to(device),
            slot_mapping=torch.cat(slot_mapping).to(device),
            query_start=np.cumsum([0, *counts], dtype=np.int32),
            context_len=np.array(contexts, np.int32),
            page_table=table,
        )

    def static(self, num_tokens: int | None = None, num_rows: int | None = None) -> StaticInputs:
        """Return the step padded to so many tokens and rows, its page table one of slots in another order."""
        tokens, rows = len(self.qkv), len(self.rows)
        more_tokens, more_rows = (num_tokens or tokens) - tokens, (num_rows or rows) - rows
        inputs = self.inputs
        order = np.random.default_rng(0).permutation(NUM_SLOTS)[:rows]
        by_slot = np.zeros((NUM_SLOTS, inputs.page_table.shape[1]), np.int32)
        by_slot[order] = inputs.page_table
        one_each = all(count == 1 for count, _ in self.rows)
        starts = np.concatenate([inputs.query_start, np.full(more_rows, inputs.query_start[-1])])
        arrays = {
            "query_start": np.arange(rows + more_rows + 1) if one_each and num_tokens == num_rows else starts,
            "context_len": np.concatenate([inputs.context_len, np.zeros(more_rows)]),
            "row_slots": np.concatenate([order, np.zeros(more_rows)]),
            "page_table": by_slot,
        }
        on_device = {n: torch.from_numpy(a.astype(np.int32)).to(self.device) for n, a in arrays.items()}
        return StaticInputs(
            positions=torch.nn.functional.pad(inputs.positions, (0, more_tokens)),
            slot_mapping=torch.nn.functional.pad(inputs.slot_mapping, (0, more_tokens), value=-1),
            is_decode=one_each and rows + more_rows == tokens + more_tokens,
            **on_device,
        )

    def expected(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the reference's results, [tokens, heads * head_dim] float32, and the pool after the step."""
        layer, shape, inputs = self.shape.layer(self.device), self.shape, self.inputs
        data = self.kv.data.clone()
        keys, values = data[LAYER]
        q = torch.empty(len(self.qkv), shape.num_heads, shape.head_dim, dtype=shape.pool, device=self.device)
        table = None if layer.rope is None else shape.ropes(self.device)[1].table(inputs.positions)
        reference.store(layer, self.qkv, table, inputs.slot_mapping, keys, values, q)
        arrays = (inputs.query_start, inputs.context_len, np.arange(len(self.rows)), inputs.page_table)
        on_device = (torch.from_numpy(array).to(self.device) for array in arrays)
        return reference.attend(layer, q, keys, values, *on_device).flatten(1), data

    def check(self, result: torch.Tensor, expected: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Compare results and the whole pool: what no token was written to is untouched."""
        tolerance = self.shape.tolerance
        assert result.dtype == self.qkv.dtype
        torch.testing.assert_close(result.float(), expected[0], rtol=tolerance, atol=tolerance)
        after, wanted = self.kv.data.float(), expected[1].float()
        torch.testing.assert_close(after, wanted, rtol=tolerance, atol=tolerance / 8, equal_nan=True)
