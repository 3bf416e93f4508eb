"""Milliseconds to choose a step's tokens, beside a plain sampler that handles one row after the other.

    python benchmarks/sampling.py [--threads 1] [--quick]
    python benchmarks/sampling.py --device cuda [--quick]       microseconds of our kernels, of PyTorch's
                                                                operations and of a plain argmax

Logits fall off like a language model's: a few likely tokens and a long tail; `flat` is a temperature at which
hundreds survive top-p, so that the whole vocabulary has to be searched. Rows are in a 1,000-token context.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from rhizome_engine.batch import Int64, SamplingBatch
from rhizome_engine.sampling.device_sampling import DeviceSampling
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.sampling.rows import SamplingRows
from rhizome_engine.sampling.sampler import sample
from rhizome_engine.sampling.staging import to_device
from rhizome_engine.sampling.static_choice import choose_tokens
from rhizome_engine.sampling.token_table import TokenTable

CONTEXT, PROMPT = 1_000, 500
ROWS = (1, 8, 32, 256)
VOCABULARIES = (49_152, 128_256)
DEVICE_ROWS = (1, 32, 256)
DEVICE_CASES = ("greedy", "temperature", "top_p", "top_p_flat", "top_k", "all_filters", "penalties")
CASES = {
    "greedy": SamplingParams(temperature=0.0),
    "temperature": SamplingParams(temperature=0.8),
    "top_p": SamplingParams(temperature=0.8, top_p=0.9),
    "top_p_flat": SamplingParams(temperature=1.6, top_p=0.95),
    "top_k": SamplingParams(temperature=0.8, top_k=50),
    "all_filters": SamplingParams(temperature=0.8, top_k=50, top_p=0.9, min_p=0.02),
    "penalties": SamplingParams(0.0, repetition_penalty=1.1, frequency_penalty=0.2, presence_penalty=0.1),
    "logit_bias": SamplingParams(temperature=0.0, logit_bias=dict.fromkeys(range(0, 1000, 100), 1.0)),
    "allowed_tokens": SamplingParams(temperature=0.0, allowed_token_ids=tuple(range(0, 40_000, 3))),
    "logprobs_20": SamplingParams(temperature=0.0, top_logprobs=20),
}


def median_ms(call: Callable[[], object], budget_s: float) -> float:
    """Median milliseconds of one call, of as many as fit the budget, but three."""
    times: list[float] = []
    call()
    while len(times) < 3 or (sum(times) < budget_s and len(times) < 50):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def plain_row(logits: Tensor, history: Tensor, params: SamplingParams, generator: torch.Generator) -> int:
    """Choose one row's token in the obvious way."""
    if params.top_logprobs is not None:
        logits.log_softmax(dim=-1).topk(params.top_logprobs)
    logits = logits.clone()
    if params.has_penalties:
        seen, (output, counts) = torch.unique(history), torch.unique(history[PROMPT:], return_counts=True)
        logits[seen] = torch.where(
            logits[seen] > 0,
            logits[seen] / params.repetition_penalty,
            logits[seen] * params.repetition_penalty,
        )
        logits[output] -= params.frequency_penalty * counts + params.presence_penalty
    for token, bias in params.logit_bias.items():
        logits[token] += bias
    if params.allowed_token_ids is not None:
        banned = torch.ones_like(logits, dtype=torch.bool)
        banned[list(params.allowed_token_ids)] = False
        logits[banned] = -torch.inf
    if params.greedy:
        return int(logits.argmax())
    probs = (logits / params.temperature).softmax(dim=-1)
    if params.top_k or params.top_p < 1.0 or params.min_p:
        probs, tokens = probs.sort(descending=True)
        if params.top_k:
            probs[params.top_k :] = 0.0
        if params.top_p < 1.0:
            probs[probs.cumsum(dim=-1) - probs >= params.top_p * probs.sum()] = 0.0
        probs[probs < params.min_p * probs[0]] = 0.0
        return int(tokens[torch.multinomial(probs, 1, generator=generator)])
    return int(torch.multinomial(probs, 1, generator=generator))


def language_like_logits(num_rows: int, vocab_size: int) -> Tensor:
    """Logits [num_rows, vocab_size] whose k-th largest is about -1.6 log k, in random order."""
    rng = np.random.default_rng(0)
    ranked = -1.6 * np.log(np.arange(1, vocab_size + 1)) + rng.normal(0, 0.3, vocab_size)
    return torch.from_numpy(np.stack([rng.permutation(ranked) for _ in range(num_rows)])).float()


class Step:
    """A step whose rows all have the same settings."""

    def __init__(self, logits: Tensor, params: SamplingParams) -> None:
        num_rows, vocab_size = logits.shape
        self.logits, self.params = logits, params
        self.settings = SamplingRows(num_rows, vocab_size)
        self.table = TokenTable(num_rows, CONTEXT + 1, logits.device)
        self.history = np.random.default_rng(1).integers(0, vocab_size, CONTEXT, dtype=np.int32)
        for slot in range(num_rows):
            self.settings.set(slot, params, slot, PROMPT)
            self.table.load(slot, self.history)
        self.slots: Int64 = np.arange(num_rows)
        self.positions: Int64 = np.full(num_rows, CONTEXT)

    def build(self) -> SamplingBatch:
        """What the scheduler does."""
        return self.settings.build(self.slots, self.slots, self.positions)

    def sample(self) -> object:
        """What the runner does; edits of the step before still stand in the logits, which costs the same."""
        return sample(self.logits, self.build(), self.table, None).to_host()

    def plain(self) -> None:
        """The same, row by row."""
        generator, history = torch.Generator(), torch.from_numpy(self.history).long()
        for row in self.logits:
            plain_row(row, history, self.params, generator)


def graph_us(call: Callable[[], object]) -> float:
    """Median microseconds on the GPU of what a call launches, recorded ten times over."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()  # compiles, and makes what stays
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(10):
            call()
    return launched_us(graph.replay) / 10


def launched_us(call: Callable[[], object], repeats: int = 30) -> float:
    """Median microseconds on the GPU between two events around a call."""
    times: list[float] = []
    for repeat in range(repeats + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        call()
        end.record()
        end.synchronize()
        if repeat >= 3:
            times.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(times)


def device_figures(
    device: torch.device, rows: tuple[int, ...] = DEVICE_ROWS, vocab_size: int = 128_256
) -> dict[str, float]:
    """Microseconds per step by case and rows: recorded kernels, PyTorch's operations, a recorded argmax."""
    figures: dict[str, float] = {}
    print(f"\n{vocab_size} tokens  rows  kernels us  PyTorch us  argmax us  ratio of kernels to argmax")
    for num_rows in rows:
        logits = language_like_logits(num_rows, vocab_size).to(device)
        argmax = graph_us(partial(logits.argmax, dim=-1))
        figures[f"argmax_{num_rows}_rows_us"] = round(argmax, 1)
        for case in DEVICE_CASES:
            step = Step(logits.clone(), CASES[case])
            settings = DeviceSampling.of(to_device(DeviceSampling.arrays(step.build()), device))
            penalties = CASES[case].has_penalties

            kernels = partial(choose_tokens, step.logits, settings, step.table, penalties=penalties)
            operations = partial(sample, step.logits, step.build(), step.table, None, fused=False)
            ours, plain = graph_us(kernels), launched_us(operations, 5)
            figures[f"{case}_{num_rows}_rows_us"] = round(ours, 1)
            figures[f"{case}_{num_rows}_rows_pytorch_us"] = round(plain, 1)
            ratio = ours / argmax
            print(f"{case:>14} {num_rows:>5} {ours:>11.1f} {plain:>11.1f} {argmax:>10.1f} {ratio:>27.1f}")
    return figures


def main() -> None:
    """Print a table, and the figures as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="the smaller vocabulary, up to 32 rows")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for the kernels")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.device != "cpu":
        device = torch.device(arguments.device)
        if not torch.cuda.is_available():
            parser.error(f"--device {arguments.device}: PyTorch finds no CUDA device")
        rows = DEVICE_ROWS[:1] if arguments.quick else DEVICE_ROWS
        print(json.dumps(device_figures(device, rows)))
        return
    figures: dict[str, float] = {"threads": arguments.threads}
    for vocab_size in VOCABULARIES[: 1 if arguments.quick else None]:
        print(f"\n{vocab_size} tokens  rows  sample ms  plain ms  plain / sample  build us")
        for num_rows in ROWS[: 3 if arguments.quick else None]:
            logits = language_like_logits(num_rows, vocab_size)
            for case, params in CASES.items():
                step = Step(logits.clone(), params)
                name = f"{case}_{num_rows}_rows_{vocab_size // 1000}k"
                ours = median_ms(step.sample, 0.2)
                # The plain one costs the same for every row.
                few = Step(logits[: min(num_rows, 8)].clone(), params)
                plain = median_ms(few.plain, 0.1) * num_rows / min(num_rows, 8)
                build = median_ms(step.build, 0.02) * 1e3
                figures[f"{name}_ms"] = round(ours, 3)
                figures[f"{name}_plain_over_ours_ratio"] = round(plain / ours, 2)
                figures[f"{name}_build_us"] = round(build, 1)
                print(
                    f"{case:>14} {num_rows:>5} {ours:>10.3f} {plain:>9.3f} {plain / ours:>15.1f}"
                    f" {build:>9.1f}"
                )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
