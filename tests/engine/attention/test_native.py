"""The kernels' attention against attention written out in float64, token by token and head by head."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rhizome_engine.attention.base import AttentionInputs, AttentionLayer
from rhizome_engine.attention.native import NativeBackend
from rhizome_engine.attention.paged_kv import PagedKV
from rhizome_engine.attention.sdpa import SdpaBackend
from rhizome_engine.checkpoint.rope_config import RopeConfig
from rhizome_engine.kernels.native.build import VARIANTS, BuildError
from rhizome_engine.kernels.native.library import cpu_flags, find_library, open_library
from rhizome_engine.layers.rotary import Rope

CPU = torch.device("cpu")
NUM_LAYERS = 2
LAYER = 1
# Of results and stored keys: one rounding of the pool's type, and float32 sums.
STORED = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11}

MIXED = [(1, 17), (20, 20), (1, 3), (5, 70), (1, 300), (2, 33), (1, 1), (70, 200)]


@pytest.fixture(scope="session", params=[variant.name for variant in VARIANTS])
def library(request):
    variant = next(variant for variant in VARIANTS if variant.name == request.param)
    if not variant.cpu_flags <= cpu_flags():
        pytest.skip(f"this processor does not have {variant.name}")
    try:
        loaded = open_library(find_library(variant), variant)
    except BuildError as error:
        pytest.skip(f"no kernels: {error}")
    loaded.set_num_threads(2)
    return loaded


@dataclass(frozen=True)
class Shape:
    num_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 64
    page_size: int = 16
    dtype: torch.dtype = torch.float32
    window: int = 0
    softcap: float = 0.0
    rotary_fraction: float | None = 1.0
    norms: bool = False
    seed: int = 0

    def layer(self):
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
            q_norm=gains[0] if self.norms else None,
            k_norm=gains[1] if self.norms else None,
            norm_eps=1e-5,
        )

    def ropes(self):
        """Two tables, of which the layer uses the second."""
        other = Rope(RopeConfig(theta=77.0), self.head_dim, CPU)
        mine = RopeConfig(theta=1000.0, rotary_fraction=self.rotary_fraction or 1.0)
        return [other, Rope(mine, self.head_dim, CPU)]


class Scene:
    """A pool in which all is NaN but what rows computed before, and a step that continues them.

    Args:
        shape: of the layer.
        rows: (new tokens, context with them) of each row.
        only: rows that are in the step; all have their pages.
    """

    def __init__(self, shape, rows, only=None):
        self.shape = shape
        size = shape.page_size
        torch.manual_seed(shape.seed)
        self.kv = PagedKV(
            num_layers=NUM_LAYERS,
            num_pages=sum(-(-context // size) for _, context in rows) + 3,
            page_size=size,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            dtype=shape.dtype,
            device=CPU,
        )
        self.kv.data.fill_(float("nan"))
        pages = torch.randperm(self.kv.num_pages).tolist()
        self.slots, self.new = [], []
        table = np.full((len(rows), max(-(-context // size) for _, context in rows)), -7, np.int32)
        width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
        qkv = []
        for row, (count, context) in enumerate(rows):
            mine = [pages.pop() for _ in range(-(-context // size))]
            table[row, : len(mine)] = mine
            slots = torch.tensor([mine[p // size] * size + p % size for p in range(context)])
            older = slots[: context - count]
            for part in (0, 1):
                data = self.kv.data[LAYER, part].view(-1, shape.num_kv_heads, shape.head_dim)
                data[older] = torch.randn(len(older), *data.shape[1:]).to(shape.dtype)
            self.slots.append(slots)
            self.new.append(count)
            qkv.append(torch.randn(count, width))
        rows_here = range(len(rows)) if only is None else only
        self.rows = list(rows_here)
        self.qkv_of = qkv
        self.qkv = torch.cat([qkv[row] for row in self.rows])
        counts = [rows[row][0] for row in self.rows]
        contexts = [rows[row][1] for row in self.rows]
        self.before = self.kv.data.clone()
        self.inputs = AttentionInputs(
            positions=torch.cat([torch.arange(c - n, c) for n, c in zip(counts, contexts, strict=True)]),
            slot_mapping=torch.cat([self.slots[row][-rows[row][0] :] for row in self.rows]),
            query_start=np.cumsum([0, *counts]).astype(np.int32),
            context_len=np.array(contexts, np.int32),
            page_table=table[self.rows],
        )

    def attend(self, library):
        plan = NativeBackend(self.kv, self.shape.ropes(), library).plan(self.inputs)
        return plan.attend(self.shape.layer(), self.qkv).clone()

    def slot_rows(self, data, part):
        return data[LAYER, part].view(-1, self.shape.num_kv_heads, self.shape.head_dim)


def turned(x, gain, positions, shape):
    """Normalise and rotate heads [tokens, heads, head_dim] in float64."""
    x = x.double()
    if gain is not None:
        x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain.double()
    if shape.rotary_fraction is None:
        return x
    cos, sin = (table.double()[:, None] for table in shape.ropes()[1].table(positions))
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1)


def by_hand(scene):
    """Return results [tokens, heads * head_dim] in float64, and each row's new keys and values."""
    shape, layer = scene.shape, scene.shape.layer()
    results, stored = [], []
    for row in scene.rows:
        count, slots = scene.new[row], scene.slots[row]
        positions = torch.arange(len(slots) - count, len(slots))
        heads = scene.qkv_of[row].view(count, -1, shape.head_dim)
        q, k, v = heads.split([shape.num_heads, shape.num_kv_heads, shape.num_kv_heads], dim=1)
        q = turned(q, layer.q_norm, positions, shape)
        k = turned(k, layer.k_norm, positions, shape)
        stored.append((k, v.double()))
        older = slots[: len(slots) - count]
        keys = torch.cat((scene.slot_rows(scene.before, 0)[older].double(), k.to(shape.dtype).double()))
        values = torch.cat((scene.slot_rows(scene.before, 1)[older].double(), v.to(shape.dtype).double()))
        group = shape.num_heads // shape.num_kv_heads
        result = torch.empty(count, shape.num_heads, shape.head_dim, dtype=torch.float64)
        for token, position in enumerate(positions.tolist()):
            seen = slice(max(0, position - shape.window + 1) if shape.window else 0, position + 1)
            for head in range(shape.num_heads):
                scores = keys[seen, head // group] @ q[token, head] * layer.scale
                if shape.softcap:
                    scores = shape.softcap * torch.tanh(scores / shape.softcap)
                result[token, head] = scores.softmax(0) @ values[seen, head // group]
        results.append(result.flatten(1))
    return torch.cat(results), stored


def check(library, shape, rows):
    scene = Scene(shape, rows)
    got = scene.attend(library)
    expected, stored = by_hand(scene)
    # A key that rounds the other way moves scores by one unit of the pool's type.
    tolerance = 3e-5 if shape.dtype == torch.float32 else 2 * STORED[shape.dtype]
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)
    untouched = torch.ones(scene.kv.num_pages * shape.page_size, dtype=torch.bool)
    for row, of_row in zip(scene.rows, stored, strict=True):
        mine = scene.slots[row][-scene.new[row] :]
        untouched[mine] = False
        for part in (0, 1):
            there = scene.slot_rows(scene.kv.data, part)[mine].double()
            rounding = STORED[shape.dtype]
            torch.testing.assert_close(there, of_row[part], rtol=rounding, atol=rounding / 64)
    for part in (0, 1):
        before, after = (scene.slot_rows(data, part)[untouched] for data in (scene.before, scene.kv.data))
        torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("page_size", [1, 3, 16, 64, 256])
@pytest.mark.parametrize("dtype", list(STORED), ids=str)
def test_any_mix_of_rows_on_pages_of_any_size(library, page_size, dtype):
    check(library, Shape(page_size=page_size, dtype=dtype), MIXED)


@pytest.mark.parametrize("dtype", list(STORED), ids=str)
@pytest.mark.parametrize("head_dim", [8, 24, 32, 40, 64, 80, 88, 96, 128, 200, 256])
def test_heads_of_any_width(library, head_dim, dtype):
    check(library, Shape(head_dim=head_dim, dtype=dtype), [(1, 1), (1, 38), (1, 270), (9, 9), (34, 90)])


@pytest.mark.parametrize("num_kv_heads", [1, 3, 5])
@pytest.mark.parametrize("group", [1, 3, 4, 5, 8, 12])
def test_any_number_of_heads_shares_keys(library, num_kv_heads, group):
    shape = Shape(
        num_heads=group * num_kv_heads, num_kv_heads=num_kv_heads, head_dim=32, dtype=torch.bfloat16
    )
    check(library, shape, [(1, 5), (1, 290), (3, 3), (40, 70)])


@pytest.mark.parametrize("page_size", [3, 16])
@pytest.mark.parametrize("window", [1, 5, 100])
def test_a_window_hides_what_lies_before_it(library, window, page_size):
    check(library, Shape(window=window, page_size=page_size), [*MIXED, (1, 1200), (150, 150), (3, 1300)])


@pytest.mark.parametrize("softcap", [0.5, 30.0])
def test_scores_are_capped(library, softcap):
    check(library, Shape(softcap=softcap, window=90), MIXED)


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("rotary_fraction", [None, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("head_dim", [64, 80])
def test_heads_are_normalised_and_rotated_as_far_as_the_layer_says(library, head_dim, rotary_fraction, norms):
    shape = Shape(head_dim=head_dim, rotary_fraction=rotary_fraction, norms=norms, dtype=torch.bfloat16)
    check(library, shape, [(1, 1), (1, 50), (7, 7), (21, 60)])


def test_long_contexts_are_cut_into_parts_and_put_together(library):
    check(library, Shape(num_heads=3, num_kv_heads=1), [(1, 2500), (4, 2600), (1, 257), (30, 1500)])
    check(library, Shape(num_heads=12, num_kv_heads=1, dtype=torch.float16), [(1, 2500), (2, 1100)])


def test_scores_of_any_size_neither_overflow_nor_vanish(library):
    scene = Scene(Shape(rotary_fraction=None), [(1, 40), (30, 80)])
    scene.qkv *= 200.0
    scene.qkv_of = [200.0 * qkv for qkv in scene.qkv_of]
    expected, _ = by_hand(scene)
    # Scores are about 1e5, so one float32 rounding of them moves a weight by a percent.
    torch.testing.assert_close(scene.attend(library).double(), expected, rtol=0.05, atol=5.0)


@st.composite
def scenes(draw):
    num_kv_heads = draw(st.integers(1, 5))
    shape = Shape(
        num_heads=num_kv_heads * draw(st.sampled_from([1, 2, 3, 4, 7, 8, 9])),
        num_kv_heads=num_kv_heads,
        head_dim=8 * draw(st.integers(1, 12)),
        page_size=draw(st.integers(1, 40)),
        dtype=draw(st.sampled_from(list(STORED))),
        window=draw(st.sampled_from([0, 0, 1, 7, 64, 150])),
        softcap=draw(st.sampled_from([0.0, 0.0, 5.0])),
        rotary_fraction=draw(st.sampled_from([None, 0.5, 1.0])),
        norms=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )
    news = draw(st.lists(st.one_of(st.just(1), st.integers(1, 60)), min_size=1, max_size=5))
    return shape, [(new, new + draw(st.one_of(st.just(0), st.integers(0, 400)))) for new in news]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scene=scenes())
def test_random_batches(library, scene):
    check(library, *scene)


@pytest.mark.parametrize("dtype", list(STORED), ids=str)
def test_a_row_does_not_depend_on_its_neighbours_or_the_threads_by_a_single_bit(library, dtype):
    rows = [(1, 17), (1, 900), (40, 1300), (1, 160), (6, 700), (130, 130)]
    shape = Shape(dtype=dtype, window=800)
    alone = torch.cat([Scene(shape, rows, only=[row]).attend(library) for row in range(len(rows))])
    try:
        for threads in (1, 2, 4):
            library.set_num_threads(threads)
            assert torch.equal(Scene(shape, rows).attend(library), alone)
    finally:
        library.set_num_threads(2)


@pytest.mark.parametrize("shape", [Shape(), Shape(window=20, softcap=8.0, rotary_fraction=0.5, norms=True)])
def test_agrees_with_sdpa(library, shape):
    mine, theirs = Scene(shape, MIXED), Scene(shape, MIXED)
    theirs.kv.data.nan_to_num_(0.0)  # it reads whole pages and masks
    theirs.inputs.page_table[theirs.inputs.page_table < 0] = 0
    expected = SdpaBackend(theirs.kv, shape.ropes()).plan(theirs.inputs).attend(shape.layer(), theirs.qkv)
    torch.testing.assert_close(mine.attend(library), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine.kv.data.nan_to_num(0.0), theirs.kv.data, rtol=1e-4, atol=1e-5)


def test_layers_of_different_shapes_share_a_plan(library):
    shape = Shape()
    scene = Scene(shape, MIXED)
    plan = NativeBackend(scene.kv, shape.ropes(), library).plan(scene.inputs)
    plain, windowed = shape.layer(), replace(shape, window=5).layer()
    first = plan.attend(plain, scene.qkv).clone()
    second = plan.attend(windowed, scene.qkv).clone()
    assert torch.equal(plan.attend(plain, scene.qkv), first)
    assert torch.equal(plan.attend(windowed, scene.qkv), second)
    assert not torch.equal(first, second)


def test_plans_live_side_by_side_and_their_memory_is_used_again(library):
    shape = Shape()
    scene = Scene(shape, MIXED)
    other = Scene(shape, [(1, 400), (3, 5)])
    backend = NativeBackend(scene.kv, shape.ropes(), library)
    first = backend.plan(scene.inputs)
    expected = first.attend(shape.layer(), scene.qkv).clone()
    second = NativeBackend.plan(backend, replace(other.inputs, page_table=other.inputs.page_table))
    assert torch.equal(first.attend(shape.layer(), scene.qkv), expected)
    del first, second
    assert len(backend.spare_steps) == 2
    third = backend.plan(scene.inputs)
    assert len(backend.spare_steps) == 1
    assert torch.equal(third.attend(shape.layer(), scene.qkv), expected)


def test_a_step_that_contradicts_itself_is_refused_before_memory_is_touched(library):
    shape = Shape()
    scene = Scene(shape, [(1, 40), (3, 20)])
    backend = NativeBackend(scene.kv, shape.ropes(), library)
    beyond = scene.inputs.page_table.copy()
    beyond[1, 0] = scene.kv.num_pages
    for wrong in (
        {"page_table": beyond},
        {"page_table": scene.inputs.page_table[:, :1]},
        {"slot_mapping": scene.inputs.slot_mapping.flip(0)},
        {"context_len": np.array([40, 2], np.int32)},
        {"query_start": np.array([0, 1, 9], np.int32)},
    ):
        with pytest.raises(ValueError, match=r"row [01] of the step has tokens, pages or slots that do not"):
            backend.plan(replace(scene.inputs, **wrong))


def test_wrong_activations_layers_and_pools_are_refused(library):
    shape = Shape()
    scene = Scene(shape, [(1, 40)])
    backend = NativeBackend(scene.kv, shape.ropes(), library)
    plan = backend.plan(scene.inputs)
    for qkv in (scene.qkv[:, 1:], scene.qkv.double(), scene.qkv.T.contiguous().T.repeat(2, 1)):
        with pytest.raises(ValueError, match="qkv must be contiguous float32 \\[1, 640\\]"):
            plan.attend(shape.layer(), qkv)
    with pytest.raises(ValueError, match="rotary table 2 of 2"):
        plan.attend(replace(shape.layer(), rope=2), scene.qkv)
    with pytest.raises(ValueError, match="the KV pool was made for 2 of 64"):
        plan.attend(replace(shape.layer(), num_kv_heads=1), scene.qkv)
    with pytest.raises(ValueError, match="7 heads cannot share 2"):
        plan.attend(replace(shape.layer(), num_heads=7), scene.qkv)
    with pytest.raises(ValueError, match="gain must be 64 contiguous float32"):
        plan.attend(replace(shape.layer(), q_norm=torch.ones(3)), scene.qkv)
    for head_dim in (12, 264):
        with pytest.raises(ValueError, match=f"not {head_dim}"):
            NativeBackend(Scene(Shape(head_dim=head_dim), [(1, 1)]).kv, [], library)
    with pytest.raises(ValueError, match="float64"):
        NativeBackend(Scene(replace(shape, dtype=torch.float64), [(1, 1)]).kv, [], library)
