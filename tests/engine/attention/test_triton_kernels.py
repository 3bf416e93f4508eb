"""The Triton kernels one by one: against the reference, with padding, replayed with other contents."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from tests.engine.attention.scene import CPU, Scene, Shape

from rhizome_engine.attention import reference
from rhizome_engine.attention.triton.backend import TritonBackend
from rhizome_engine.attention.triton.decode import block_size
from rhizome_engine.attention.triton.parts import num_parts
from rhizome_engine.attention.triton.store import store
from rhizome_engine.attention.triton.turns import turns
from rhizome_engine.checkpoint.rope_config import RopeConfig
from rhizome_engine.layers.rotary import Rope

GPU = torch.device("cuda", 0) if torch.cuda.is_available() else CPU


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    "shape",
    [
        Shape(rotary_fraction=None, num_kv_heads=1),
        Shape(norms=True, num_heads=3, num_kv_heads=1, head_dim=24, rotary_fraction=0.25),
        Shape(head_dim=80, pool=torch.float16, activations=torch.bfloat16),
        Shape(norms=True, rotary_fraction=None, pool=torch.bfloat16),
    ],
    ids=["as it is", "odd width", "other type", "norm of queries"],
)
def test_store_writes_what_the_reference_writes_and_nothing_where_there_is_no_slot(shape):
    scene = Scene(shape, [(1, 4), (5, 9)], GPU)
    layer = shape.layer(GPU)
    if shape.pool == torch.bfloat16:
        layer = replace(layer, k_norm=None)
    slots = scene.inputs.slot_mapping.clone()
    slots[[1, 4]] = -1
    table = None if layer.rope is None else shape.ropes(GPU)[1].table(scene.inputs.positions)
    pools = [scene.kv.data[1].clone() for _ in range(2)]
    queries = [torch.empty(6, shape.num_heads, shape.head_dim, dtype=shape.pool, device=GPU) for _ in pools]
    store(layer, scene.qkv, table, slots, *pools[0], queries[0])
    reference.store(layer, scene.qkv, table, slots, *pools[1], queries[1])
    near = {"rtol": shape.tolerance, "atol": shape.tolerance / 8}
    torch.testing.assert_close(queries[0], queries[1], **near)
    torch.testing.assert_close(pools[0], pools[1], **near, equal_nan=True)


@pytest.mark.parametrize(
    "config",
    [
        RopeConfig(theta=5e5, rotary_fraction=0.5),
        RopeConfig(kind="yarn", factor=4.0, original_max_position=64, attention_factor=1.2),
        RopeConfig(kind="dynamic", factor=2.0, original_max_position=64),
    ],
    ids=lambda config: config.kind,
)
def test_turns_are_the_tables_of_the_model(config):
    rope = Rope(config, 24, GPU)
    positions = torch.tensor([0, 1, 77, 4095, 131071, 3, 3, 9, 50], device=GPU)
    for got, expected in zip(turns(rope, positions), rope.table(positions), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


STEPS = {
    "decode": ([(1, 17), (1, 1), (1, 70)], 5, 5),
    "one prompt": ([(13, 40)], 24, 1),
    "one token of a prompt": ([(1, 40)], 24, 1),
    "mixed": ([(1, 33), (11, 20), (1, 2)], 20, 5),
    "full": ([(1, 33), (7, 20)], None, None),
}


@pytest.mark.parametrize(("name", "window"), [*((name, 0) for name in STEPS), ("mixed", 12)])
def test_padding_gets_nothing_and_changes_nothing(name, window):
    rows, num_tokens, num_rows = STEPS[name]
    shape = Shape(window=window)
    scene = Scene(shape, rows, GPU)
    expected = scene.expected()
    inputs = scene.static(num_tokens, num_rows)
    padding = len(inputs.positions) - len(scene.qkv)
    garbage = torch.full((padding, scene.qkv.shape[1]), float("nan"), device=GPU)
    plan = TritonBackend(scene.kv, shape.ropes(GPU)).static_plan(inputs)
    result = plan.attend(shape.layer(GPU), torch.cat([scene.qkv, garbage]))
    scene.check(result[: len(scene.qkv)], expected)
    assert result[len(scene.qkv) :].eq(0).all()


def test_the_same_tensors_serve_other_contexts_pages_and_rows():
    shape = Shape(num_kv_heads=1)
    layer = shape.layer(GPU)
    pool = Scene(shape, [(1, 200)], GPU).kv
    backend = TritonBackend(pool, shape.ropes(GPU))
    static = None
    for rows in ([(1, 5), (1, 70), (1, 18)], [(1, 50), (1, 2)], [(1, 16), (1, 17), (1, 34), (1, 1)]):
        scene = Scene(shape, rows, GPU)
        expected, now = scene.expected()[0], scene.static(4, 4)
        table = now.page_table.clone()
        static = static or now
        pool.data.fill_(float("nan"))
        pool.data[:, :, : scene.kv.num_pages] = scene.kv.data
        static.page_table.fill_(pool.num_pages - 1)
        for name in ("positions", "slot_mapping", "context_len", "row_slots"):
            getattr(static, name).copy_(getattr(now, name))
        static.page_table[:, : now.page_table.shape[1]] = table
        qkv = torch.zeros(4, scene.qkv.shape[1], device=GPU)
        qkv[: len(rows)] = scene.qkv
        result = backend.static_plan(static).attend(layer, qkv)
        torch.testing.assert_close(result[: len(rows)], expected, rtol=2e-5, atol=2e-5)
        assert result[len(rows) :].eq(0).all()


def test_a_decode_row_without_a_slot_is_attended_and_not_stored():
    shape = Shape(norms=True)
    scene = Scene(shape, [(1, 20), (1, 33)], GPU)
    expected = scene.expected()[0]
    inputs = scene.static()
    inputs.slot_mapping[1] = -1
    before = scene.kv.data.clone()
    result = TritonBackend(scene.kv, shape.ropes(GPU)).static_plan(inputs).attend(shape.layer(GPU), scene.qkv)
    torch.testing.assert_close(result, expected, rtol=2e-5, atol=2e-5)
    changed = (scene.kv.data != before) & ~(scene.kv.data.isnan() & before.isnan())
    slots = changed.flatten(2, 3).any(dim=(0, 1)).flatten(1).any(dim=1).nonzero().flatten()
    assert slots.tolist() == [int(scene.inputs.slot_mapping[0])]


def test_parts_are_put_together_in_the_same_order_every_time():
    shape = Shape(pool=torch.float16, activations=torch.float16)
    scene = Scene(shape, [(1, 300)], GPU)
    plan = TritonBackend(scene.kv, shape.ropes(GPU)).static_plan(scene.static())
    once = plan.attend(shape.layer(GPU), scene.qkv).clone()
    assert torch.equal(plan.attend(shape.layer(GPU), scene.qkv), once)


def test_parts_occupy_the_device_and_are_never_more_than_blocks():
    block = block_size(64, 2)
    assert block == 64
    assert num_parts(1, 8, 131072, block, 132) == 64
    assert num_parts(1, 8, 1024, block, 132) == 16
    assert num_parts(32, 8, 131072, block, 132) == 2
    assert num_parts(256, 8, 131072, block, 132) == 1
    assert num_parts(1, 8, 1, block, 132) == 1


def test_layers_and_pools_that_do_not_fit_are_refused():
    shape = Shape()
    scene = Scene(shape, [(1, 4)], GPU)
    backend = TritonBackend(scene.kv, shape.ropes(GPU))
    plan = backend.plan(scene.inputs)
    layer = shape.layer(GPU)
    for qkv in (scene.qkv[:, 1:], scene.qkv.repeat(2, 1), scene.qkv.T.contiguous().T.repeat(1, 2)[:, ::2]):
        with pytest.raises(ValueError, match=r"qkv must be contiguous \[1, 128\]"):
            plan.attend(layer, qkv)
    for changes, message in (
        ({"num_kv_heads": 1}, "the KV pool was made for 2 of 16"),
        ({"num_heads": 3}, "3 heads cannot share 2"),
        ({"rope": 2}, "rotary table 2 of 2"),
        ({"q_norm": torch.ones(3)}, r"gain must be 16 float32, not torch.float32 \[3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            plan.attend(replace(layer, **changes), scene.qkv)
    with pytest.raises(ValueError, match=r"needs heads of 2, 4, \.\.\. 256, not 264"):
        TritonBackend(Scene(Shape(head_dim=264), [(1, 1)], GPU).kv, [])
    with pytest.raises(ValueError, match=r"cannot read a KV pool of torch\.float64"):
        TritonBackend(Scene(Shape(pool=torch.float64), [(1, 1)], GPU).kv, [])


TURNS_STACK = 32
"""No spill: cosines of large angles are reduced with the help of an array."""
COMPILE = """
import json, sys, torch
from rhizome_engine.attention.base import AttentionLayer, StaticInputs
from rhizome_engine.attention.triton import backend as module
from rhizome_engine.attention.triton.decode import attention_decode
from rhizome_engine.checkpoint.rope_config import RopeConfig
from rhizome_engine.layers.rotary import Rope
from rhizome_testing.compiled_kernels import compiling

meta = torch.device("meta")
module.why_not = lambda device: None

class Pool:
    data = torch.empty(16, 2, 4096, 16, 8, 64, dtype=torch.bfloat16, device=meta)
    page_size, num_pages = 16, 4096
    def layer(self, index):
        return self.data[index, 0], self.data[index, 1]

rope = Rope(RopeConfig(theta=5e5), 64, meta)
back_end = module.TritonBackend(Pool(), [rope])
back_end._multiprocessors, back_end._large_shared_memory, back_end._hopper = 132, True, True
layer = AttentionLayer(index=3, num_heads=32, num_kv_heads=8, head_dim=64, scale=0.125)
found = []
for tokens, rows, decode in ((1, 1, True), (256, 256, True), (2048, 8, False)):
    def of(*shape, dtype=torch.int32):
        return torch.empty(shape, dtype=dtype, device=meta)
    per_token = of(tokens, dtype=torch.int64)
    inputs = StaticInputs(per_token, per_token, of(rows + 1), of(rows), of(rows), of(256, 512), decode)
    with compiling() as launches:
        back_end.static_plan(inputs).attend(layer, of(tokens, 48 * 64, dtype=torch.bfloat16))
    found.append([[l.name, l.grid, l.spilled_bytes, "wgmma" in l.ptx] for l in launches])
    # Two programs of 8 warps fit into a multiprocessor, however long prompts are.
    assert all(l.registers <= 128 for l in launches if l.name == "attention_extend")
versions = set()
for width in (512, 7):
    inputs = StaticInputs(of(4), of(4), of(5), of(4), of(4), of(256, width), True)
    with compiling():
        back_end.static_plan(inputs).attend(layer, of(4, 48 * 64, dtype=torch.bfloat16))
    versions.add(len(attention_decode.device_caches[0][0]))
assert len(versions) == 1, "compiled anew for another width of the page table"
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler is for Linux")
def test_recorded_steps_compile_for_hopper_and_read_nothing_back():
    """Tensors without memory show it: whatever reads one fails."""
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    process = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    one, many, prompts = json.loads(process.stdout)
    assert one == [
        ["attention_turns", [1], TURNS_STACK, False],
        ["attention_decode", [1, 8, 64], 0, False],
        ["attention_reduce", [1, 32], 0, False],
    ]
    assert many == [
        ["attention_turns", [32], TURNS_STACK, False],
        ["attention_decode", [256, 8, 1], 0, False],
    ]
    assert prompts == [
        ["attention_turns", [256], TURNS_STACK, False],
        ["attention_store", [2048, 6], 0, False],
        ["attention_decode", [8, 8, 8], 0, False],
        ["attention_reduce", [8, 32], 0, False],
        ["attention_extend", [2048 // 32 + 8 + 1, 8], 0, True],
    ]
