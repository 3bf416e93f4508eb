"""Every attention back end on ragged batches, by page size and layer, eager and as it is recorded."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from gpu_bench.bench import Bench
from gpu_bench.checks.compare import Comparison, check, near
from gpu_bench.plain_checkout import ROOT

DECODE = [(1, 1), (1, 37), (1, 300), (1, 4097)]
MIXED = [(1, 65), (40, 40), (17, 333), (1, 2), (100, 1124)]
SMALL = [(1, 1), (1, 19), (3, 8)]
TOLERANCE = 1e-2


def run(bench: Bench, chosen: tuple[str, ...]) -> None:
    """Check every back end that runs here.

    Args:
        bench: the device.
        chosen: beginnings of the names of layers.
    """
    sys.path.insert(0, str(ROOT / "tests" / "engine" / "attention"))
    import scene

    from rhizome_engine.attention.choose import probe

    base = scene.Shape(
        num_heads=32, num_kv_heads=8, head_dim=64, pool=torch.bfloat16, activations=torch.bfloat16
    )
    layers = {
        "1B": base,
        "8B": replace(base, head_dim=128),
        "window, softcap, norms": replace(
            base, num_heads=16, head_dim=128, window=50, softcap=30.0, norms=True
        ),
        "head 256, one KV head": replace(base, num_heads=8, num_kv_heads=1, head_dim=256),
    }
    if bench.smoke:
        layers = {"tiny": replace(base, num_heads=4, num_kv_heads=2, head_dim=16)}
    for backend in ("sdpa", "triton", "flash_attn"):
        try:
            probe(
                backend,
                device=bench.device,
                dtype=base.pool,
                page_size=16,
                head_dim=64,
                native_kernels=False,
            )
        except ValueError as error:
            if "8B" not in chosen:  # told once
                bench.recorder.note(f"attention {error}")
            continue
        for label, layer in layers.items():
            if not label.startswith(chosen):
                continue
            for page_size in (16,) if bench.smoke else (1, 16, 256):
                rows = {"small": SMALL} if bench.smoke else {"decode": DECODE, "mixed": MIXED}
                for kind, lengths in rows.items():
                    shape = replace(layer, page_size=page_size)
                    name = f"attention {backend}, {label}, pages of {page_size}, {kind}"
                    check(bench, name, partial(_eager, scene, shape, lengths, backend, bench.device))
                    if backend != "sdpa":
                        static = partial(_static, scene, shape, lengths, backend, bench)
                        check(bench, f"{name}, recorded", static)


def _backend(name: str, made: Any, device: torch.device) -> Any:
    from rhizome_engine.attention.choose import AttentionChoice, make_attention

    return make_attention(AttentionChoice(name, "checked"), made.kv, made.shape.ropes(device))


def _eager(scene: Any, shape: Any, rows: Any, backend: str, device: torch.device) -> Comparison:
    made = scene.Scene(shape, rows, device)
    expected, pool = made.expected()
    result = _backend(backend, made, device).plan(made.inputs).attend(shape.layer(device), made.qkv)
    found = near(result, expected, TOLERANCE)
    return found if not found.passed else _stored(made.kv.data, pool, found)


def _static(scene: Any, shape: Any, rows: Any, backend: str, bench: Bench) -> Comparison:
    """Padded to more tokens and rows; on a GPU recorded and replayed, with all outputs poisoned between."""
    made = scene.Scene(shape, rows, bench.device)
    expected, pool = made.expected()
    decode = all(count == 1 for count, _ in rows)
    tokens, count = (len(rows) + 3,) * 2 if decode else (len(made.qkv) + 5, len(rows) + 2)
    inputs = made.static(tokens, count)
    qkv = torch.nn.functional.pad(made.qkv, (0, 0, 0, tokens - len(made.qkv)))
    serving, layer = _backend(backend, made, bench.device), shape.layer(bench.device)
    plan = serving.static_plan(inputs)
    if plan is None:
        return Comparison(True, "makes no plan that can be recorded")
    before = made.kv.data.clone()
    result = plan.attend(layer, qkv)
    if bench.on_gpu:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            result = serving.static_plan(inputs).attend(layer, qkv)
        made.kv.data.copy_(before)
        result.fill_(float("nan"))
        graph.replay()
    padding = result[len(made.qkv) :]
    if bool(padding.count_nonzero()) or bool(padding.isnan().any()):
        return Comparison(False, "what belongs to padding tokens is not 0")
    found = near(result[: len(made.qkv)], expected, TOLERANCE)
    return found if not found.passed else _stored(made.kv.data, pool, found)


def _stored(found: torch.Tensor, expected: torch.Tensor, result: Comparison) -> Comparison:
    """Whether the pool holds what it should, NaN where nothing was ever written."""
    if not torch.equal(found.isnan(), expected.isnan()):
        return Comparison(False, f"{result.detail}; but other slots of the pool were written than should be")
    pool = near(found.nan_to_num(), expected.nan_to_num(), TOLERANCE)
    return result if pool.passed else Comparison(False, f"the pool: {pool.detail}")
