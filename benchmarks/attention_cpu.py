"""Attention of a whole forward pass on the CPU: the kernels' own back end and the one through PyTorch.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/attention_cpu.py [--dtype bfloat16] [--threads N] [--quick]

The layers have the shape of SmolLM-135M: 30 of 9 query and 3 key-value heads of 64. Each layer has its own
keys and values, so they come from memory as they do in service. The last line is one JSON object:
case → milliseconds of both and their ratio, and the arithmetic and memory speed that the kernels reached.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from rhizome_engine.attention.base import AttentionInputs, AttentionLayer
from rhizome_engine.attention.native import NativeBackend
from rhizome_engine.attention.paged_kv import PagedKV
from rhizome_engine.attention.sdpa import SdpaBackend
from rhizome_engine.checkpoint.rope_config import RopeConfig
from rhizome_engine.kernels.native.library import load_library
from rhizome_engine.layers.rotary import Rope

NUM_LAYERS, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 30, 9, 3, 64
PAGE_SIZE = 16
PREFIX = 1024
POOL_BYTES = 1 << 30
CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Case:
    """Rows of equal size.

    Attributes:
        name: in the output.
        num_rows: how many.
        new_tokens: of each.
        context: of each, with the new ones.
    """

    name: str
    num_rows: int
    new_tokens: int
    context: int

    @property
    def flops(self) -> float:
        """Of the two products of a forward pass, what the causal mask hides left out."""
        seen = self.new_tokens * (self.context - (self.new_tokens - 1) / 2)
        return 4.0 * self.num_rows * seen * NUM_HEADS * HEAD_DIM * NUM_LAYERS

    def kv_bytes(self, dtype: torch.dtype) -> int:
        """Of keys and values that a forward pass looks at."""
        return 2 * self.num_rows * self.context * NUM_KV_HEADS * HEAD_DIM * dtype.itemsize * NUM_LAYERS


def all_cases(quick: bool) -> list[Case]:
    """Decodes, prompts alone, prompts after a cached prefix."""
    contexts = (160,) if quick else (128, 160, 1024, 4096)
    decodes = [
        Case(f"decode {rows} x {context}", rows, 1, context) for context in contexts for rows in (1, 8, 32)
    ]
    prompts = [Case(f"prefill {n}", 1, n, n) for n in (128, 512, 2048)]
    chunks = [Case(f"prefill {n} after {PREFIX}", 1, n, n + PREFIX) for n in (16, 128, 512)]
    return decodes + prompts + chunks


def make_pool(case: Case, dtype: torch.dtype) -> PagedKV:
    """Random keys and values; of very large pools some layers are used several times."""
    pages = case.num_rows * -(-case.context // PAGE_SIZE)
    layer_bytes = 2 * pages * PAGE_SIZE * NUM_KV_HEADS * HEAD_DIM * dtype.itemsize
    kv = PagedKV(
        num_layers=max(1, min(NUM_LAYERS, POOL_BYTES // layer_bytes)),
        num_pages=pages,
        page_size=PAGE_SIZE,
        num_kv_heads=NUM_KV_HEADS,
        head_dim=HEAD_DIM,
        dtype=dtype,
        device=CPU,
    )
    return kv


def fill(kv: PagedKV) -> None:
    """Write random numbers everywhere, after the back ends have seen the empty pool."""
    flat = kv.data.view(-1)
    some = torch.randn(1 << 20).to(kv.data.dtype)
    for start in range(0, len(flat), len(some)):
        part = flat[start : start + len(some)]
        part.copy_(some[: len(part)])


def make_inputs(case: Case, kv: PagedKV) -> AttentionInputs:
    """Rows on pages in random order."""
    generator = np.random.default_rng(0)
    table = generator.permutation(kv.num_pages).astype(np.int32).reshape(case.num_rows, -1)
    span = np.arange(case.context - case.new_tokens, case.context)
    slots = table[:, span // PAGE_SIZE].astype(np.int64) * PAGE_SIZE + span % PAGE_SIZE
    return AttentionInputs(
        positions=torch.from_numpy(np.tile(span, case.num_rows)),
        slot_mapping=torch.from_numpy(slots.reshape(-1)),
        query_start=np.arange(case.num_rows + 1, dtype=np.int32) * case.new_tokens,
        context_len=np.full(case.num_rows, case.context, np.int32),
        page_table=table,
    )


def make_layers(kv: PagedKV) -> list[AttentionLayer]:
    """All layers of the model."""
    return [
        AttentionLayer(index % len(kv.data), NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, HEAD_DIM**-0.5)
        for index in range(len(kv.data))
    ]


def fastest_ms(action: Callable[[], object], seconds: float) -> float:
    """Repeat for about so many seconds after a warm-up; the fastest of at least three runs.

    The fastest, because what other programs do to the caches and the clock only ever adds to it.
    """
    action()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def measure(case: Case, dtype: torch.dtype, seconds: float, with_sdpa: bool) -> dict[str, float]:
    """Time one case with both back ends."""
    kv = make_pool(case, dtype)
    ropes = [Rope(RopeConfig(), HEAD_DIM, CPU)]
    backends = {"native": NativeBackend(kv, ropes)}
    if with_sdpa:
        backends["sdpa"] = SdpaBackend(kv, ropes)
    fill(kv)
    inputs = make_inputs(case, kv)
    distinct = make_layers(kv)
    layers = [distinct[index % len(distinct)] for index in range(NUM_LAYERS)]
    width = (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM
    qkv = torch.randn(case.num_rows * case.new_tokens, width)

    def forward(backend: NativeBackend | SdpaBackend) -> None:
        plan = backend.plan(inputs)
        for layer in layers:
            plan.attend(layer, qkv)

    figures = {
        f"{name}_ms": round(fastest_ms(lambda backend=backend: forward(backend), seconds), 3)
        for name, backend in backends.items()
    }
    native_s = figures["native_ms"] / 1e3
    figures["gflops"] = round(case.flops / native_s / 1e9, 1)
    figures["gbytes_s"] = round(case.kv_bytes(dtype) / native_s / 1e9, 1)
    if with_sdpa:
        figures["ratio"] = round(figures["sdpa_ms"] / figures["native_ms"], 2)
    return figures


def main() -> None:
    """Measure all cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the KV pool")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.5, help="for each measurement")
    parser.add_argument("--quick", action="store_true", help="only short contexts")
    parser.add_argument("--no-sdpa", action="store_true", help="only the kernels")
    parser.add_argument("--only", default="", help="cases whose names begin so")
    args = parser.parse_args()
    library = load_library()
    if library is None:
        raise SystemExit("there are no kernels for this processor")
    torch.set_num_threads(args.threads)
    library.set_num_threads(args.threads)
    print(
        f"{library.variant}, {args.threads} threads, KV {args.dtype}, {NUM_LAYERS} layers, fastest of several"
    )
    results = {}
    with torch.inference_mode():
        for case in all_cases(args.quick):
            if not case.name.startswith(args.only):
                continue
            figures = results[case.name] = measure(
                case, DTYPES[args.dtype], args.seconds, with_sdpa=not args.no_sdpa
            )
            print(f"{case.name:24}", *(f"{name} {value:9.3f}" for name, value in figures.items()), flush=True)
    print(json.dumps({"benchmark": "attention_cpu", "dtype": args.dtype, "threads": args.threads, **results}))


if __name__ == "__main__":
    main()
