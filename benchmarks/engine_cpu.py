"""How fast the model runner computes on a CPU: decode at several batch sizes, and prefill.

The model has the shape of a 135M-parameter Llama (SmolLM-135M) and random weights; speed does not depend on
their values. No scheduler, no transport: this is what a step costs.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/engine_cpu.py [--dtype float32] [--threads N] [--model DIR]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from rhizome_engine.batch import Batch
from rhizome_engine.runner import ModelRunner
from rhizome_engine.sampling.params import SamplingParams
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint
from rhizome_testing.sampling_batch import sampling_batch

SHAPE_135M = LlamaShape(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
)
CONTEXT = 256
PREFILL = 512
PAGE_SIZE = 16


def make_batch(num_rows: int, query_len: int, context_len: int) -> Batch:
    """Rows of equal length, each in its own pages, all sampled greedily."""
    pages_per_row = -(-context_len // PAGE_SIZE)
    table = np.arange(num_rows * pages_per_row, dtype=np.int32).reshape(num_rows, pages_per_row)
    span = np.arange(context_len - query_len, context_len)
    slots = table[:, span // PAGE_SIZE].astype(np.int64) * PAGE_SIZE + span % PAGE_SIZE
    greedy = SamplingParams(temperature=0.0)
    return Batch(
        token_ids=np.arange(num_rows * query_len, dtype=np.int64) % SHAPE_135M.vocab_size,
        positions=np.tile(span, num_rows).astype(np.int64),
        slot_mapping=slots.reshape(-1),
        query_start=np.arange(num_rows + 1, dtype=np.int32) * query_len,
        context_len=np.full(num_rows, context_len, np.int32),
        page_table=table,
        sampling=sampling_batch([greedy] * num_rows, [context_len] * num_rows, SHAPE_135M.vocab_size),
    )


def median_s(action: Callable[[], object], seconds: float = 3.0) -> float:
    """Repeat for about so many seconds after a warm-up; the median of at least three runs."""
    action()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(runner: ModelRunner) -> dict[str, float]:
    """Return figures by name."""
    figures: dict[str, float] = {}
    for num_rows in (1, 8, 32):
        batch = make_batch(num_rows, 1, CONTEXT)
        figures[f"decode_tok_s_{num_rows}"] = num_rows / median_s(lambda batch=batch: runner.run(batch))
    prefill = make_batch(1, PREFILL, PREFILL)
    figures[f"prefill_tok_s_{PREFILL}"] = PREFILL / median_s(lambda: runner.run(prefill))
    return figures


def main() -> None:
    """Make the model, measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--model", type=Path, help="a checkpoint to use instead of a random one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = arguments.model or write_llama_checkpoint(Path(directory), SHAPE_135M)
        started = time.perf_counter()
        runner = ModelRunner(
            path,
            device="cpu",
            dtype=arguments.dtype,
            page_size=PAGE_SIZE,
            num_pages=32 * CONTEXT // PAGE_SIZE,
            num_threads=arguments.threads,
        )
        figures = {"load_s": time.perf_counter() - started, **measure(runner)}
    print(f"135M Llama shape, {arguments.dtype}, {torch.get_num_threads()} threads, context {CONTEXT}")
    for name, value in figures.items():
        print(f"  {name:<24}{value:>10.2f}")
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
