"""The whole model: logits in every format beside float32, recorded steps beside those that are not."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from gpu_bench.bench import Bench
from gpu_bench.checks.compare import Comparison, check, exact_float32, near

FORMATS = {"none": 3e-2, "int8": 0.15, "fp8": 0.45, "int4": 0.9}
"""Most relative error of logits beside float32, by how weights are kept. Rounding to so few bits is a
property of the format, and a random model forgives less than a trained one; a kernel that computes something
else errs by 1 and more. Sharper is that PyTorch's own arithmetic with the same format may not err less."""
PROMPT = 200
STREAMS, OUTPUT = 5, 48


def run(bench: Bench) -> None:
    """Check."""
    from rhizome_engine.weights.choose import QUANTIZATIONS

    tokens = 5 if bench.smoke else PROMPT
    ids = np.random.default_rng(1).integers(0, bench.shape().vocab_size, tokens)
    oracle: list[torch.Tensor] = []

    def compute_oracle() -> Comparison:
        with exact_float32():
            runner = _runner(bench, dtype="float32", kernels="torch", attention="sdpa", graphs="off")
            oracle.append(runner.logits(_prefill(runner, ids)).cpu())
        return Comparison(True, f"float32, PyTorch and SDPA: {list(oracle[0].shape)}")

    check(bench, "model, the reference runs", compute_oracle, inference=False)
    formats = [name for name in FORMATS if name in QUANTIZATIONS]
    if not oracle:
        return
    bench.drop_engine()
    for name in formats[:1] if bench.smoke else formats:
        check(
            bench,
            f"model, logits, weights {name}",
            partial(_logits, bench, name, ids, oracle[0]),
            inference=False,
        )
    if bench.smoke:  # the test suite does this with more patience
        return
    check(
        bench,
        "model, recorded steps give the tokens of the same steps run again",
        partial(_same_tokens, bench),
        inference=False,
    )


def _runner(bench: Bench, **options: Any) -> Any:
    if bench.smoke and options.get("kernels") != "torch":
        options = {"kernels": "triton", "attention": "triton", **options}
    options.setdefault("dtype", "bfloat16")
    return bench.engine(**options).runner


def _logits(bench: Bench, quantization: str, ids: Any, oracle: torch.Tensor) -> Comparison:
    plain = {"kernels": "torch", "attention": "sdpa", "graphs": "off"}
    runner = _runner(bench, quantization=quantization, **plain)
    usual = _error(runner.logits(_prefill(runner, ids)).cpu(), oracle)
    runner = _runner(bench, quantization=quantization)
    found = runner.logits(_prefill(runner, ids)).cpu()
    result = near(found, oracle, min(FORMATS[quantization], 1.1 * usual + 0.01))
    bench.put(f"logits_error_{quantization}_percent", 100 * _error(found, oracle))
    bench.put(f"logits_error_{quantization}_in_pytorch_percent", 100 * usual)
    same = float((found.argmax(-1) == oracle.argmax(-1)).float().mean())
    bench.put(f"logits_same_argmax_{quantization}_percent", 100 * same)
    # One token more, by the kernels for few rows, on top of the prompt that lies in the pool.
    decode = runner.logits(_one_more(runner, ids)).cpu()
    again = near(decode, runner.logits(_prefill(runner, [*ids, ids[0]])).cpu()[-1:], FORMATS[quantization])
    return Comparison(
        result.passed and again.passed, f"{result.detail}; decode beside prefill: {again.detail}"
    )


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _same_tokens(bench: Bench) -> Comparison:
    """The same requests twice, some greedy and some random: recorded graphs may change nothing at all."""
    from rhizome_engine.sampling.params import SamplingParams

    prompts = [[(7 * row + 3 * place) % 251 for place in range(5 + row)] for row in range(STREAMS)]
    answers = []
    for graphs in ("auto", "rerun"):
        engine = bench.engine(graphs=graphs, dtype="bfloat16")
        engine.wave(prompts, OUTPUT)
        engine.record_graphs()
        found = []
        for params in (SamplingParams(temperature=0.0), SamplingParams(top_p=0.9, seed=3)):
            engine.new_core()
            found.append(engine.wave(prompts, OUTPUT, params).token_ids)
        answers.append(found)
    return Comparison(answers[0] == answers[1], f"{STREAMS} streams of {OUTPUT} tokens, greedy and random")


def _prefill(runner: Any, ids: Any) -> Any:
    return _batch(runner, np.array(ids, np.int64), 0)


def _one_more(runner: Any, ids: Any) -> Any:
    return _batch(runner, np.array(ids[:1], np.int64), len(ids))


def _batch(runner: Any, ids: Any, start: int) -> Any:
    """One row of tokens at positions from `start` on, in the first pages of the pool; samples nothing."""
    from rhizome_engine.batch import Batch
    from rhizome_testing.sampling_batch import sampling_batch

    end = start + len(ids)
    return Batch(
        token_ids=ids,
        positions=np.arange(start, end),
        slot_mapping=np.arange(start, end),
        query_start=np.array([0, len(ids)], np.int32),
        context_len=np.array([end], np.int32),
        page_table=np.arange(-(-end // runner.page_size), dtype=np.int32)[None],
        slots=np.zeros(1, np.int64),
        sampling=sampling_batch([], [], runner.config.vocab_size, rows=[]),
    )
