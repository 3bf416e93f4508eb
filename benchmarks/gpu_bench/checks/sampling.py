"""Choosing tokens on the device gives what PyTorch gives for the same logits, settings and seeds."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from gpu_bench.bench import Bench
from gpu_bench.checks.compare import Comparison, check

LEAST_EQUAL = 0.97
"""Of random rows: sums that differ in the last bit may move the border of a top-p between two tokens."""


def run(bench: Bench) -> None:
    """Check greedy and random rows, alone and mixed."""
    sizes = ((3, 512),) if bench.smoke else ((1, 128256), (32, 128256), (256, 128256), (7, 32003))
    for rows, vocab_size in sizes:
        for kind in ("greedy", "temperature", "mixed"):
            name = f"sampling {kind}, [{rows}, {vocab_size}]"
            check(bench, name, partial(_same_tokens, bench, rows, vocab_size, kind))


def _same_tokens(bench: Bench, rows: int, vocab_size: int, kind: str) -> Comparison:
    from rhizome_engine.sampling.static_choice import choose_tokens

    generator = torch.Generator().manual_seed(rows + vocab_size)
    logits = torch.randn(rows, vocab_size, generator=generator) * 3
    settings = _settings(rows, kind, generator)
    histories = torch.randint(0, vocab_size, (rows, 64), generator=generator, dtype=torch.int32)
    expected = _chosen(_in_torch, logits, settings, histories, torch.device("cpu"))
    chosen = _chosen(choose_tokens, logits, settings, histories, bench.device)
    equal = float((expected == chosen).float().mean())
    least = 1.0 if kind == "greedy" else LEAST_EQUAL if rows > 1 else 1.0
    return Comparison(
        equal >= least, f"{100 * equal:.1f} % of the tokens are the same (at least {100 * least:.0f})"
    )


def _chosen(
    choose: Any, logits: torch.Tensor, settings: Any, histories: torch.Tensor, device: torch.device
) -> torch.Tensor:
    """Choose on a device; the tokens, on the CPU.

    Raises:
        AssertionError: the table holds others.
    """
    from rhizome_engine.sampling.token_table import TokenTable

    rows, length = histories.shape
    table = TokenTable(rows, length + 1, device)
    table.tokens[:, :length] = histories.to(device)
    moved = type(settings)(*(tensor.to(device) for tensor in settings))
    tokens: torch.Tensor = choose(logits.clone().to(device), moved, table).cpu()
    kept = table.tokens[:, length].cpu().long()
    assert torch.equal(kept, tokens.clamp(min=0)), "the table holds other tokens than were chosen"
    return tokens


def _in_torch(logits: torch.Tensor, settings: Any, table: Any) -> torch.Tensor:
    """What the kernels are held to."""
    from rhizome_engine.sampling import static_choice

    chosen: torch.Tensor = static_choice._choose_in_torch(logits, settings, table, None, penalties=True)
    return chosen


def _settings(rows: int, kind: str, generator: torch.Generator) -> Any:
    from rhizome_engine.sampling.device_sampling import DeviceSampling

    def column(value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((rows,), value, dtype=dtype)

    def some(values: list[float], dtype: torch.dtype) -> torch.Tensor:
        picked = torch.randint(0, len(values), (rows,), generator=generator)
        return torch.tensor(values, dtype=dtype)[picked]

    mixed = kind == "mixed"
    floats, integers = torch.float32, torch.int64
    values = {
        "slots": torch.arange(rows),
        "positions": column(64, integers),
        "num_prompt": column(40, integers),
        "seeds": torch.randint(0, 2**62, (rows,), generator=generator),
        "temperature": some([0.0, 0.6, 1.0, 1.5], floats) if mixed else column(kind == "temperature", floats),
        "top_p": some([1.0, 0.9, 0.3], floats) if mixed else column(1, floats),
        "min_p": some([0.0, 0.0, 0.05], floats) if mixed else column(0, floats),
        "top_k": some([0, 0, 1, 40], integers) if mixed else column(0, integers),
        "repetition_penalty": some([1.0, 1.3], floats) if mixed else column(1, floats),
        "frequency_penalty": some([0.0, 0.5], floats) if mixed else column(0, floats),
        "presence_penalty": some([0.0, 0.5], floats) if mixed else column(0, floats),
    }
    return DeviceSampling(**{name: values[name] for name in DeviceSampling._fields})
