"""How fast an engine is: all streams of a level start together and run to their last token.

    0 ──── prompts ────▶ all_started ── every stream decodes ──▶ first_ended ── the rest ──▶ end
    |<---- prefill ---->|<---------------------- decode ---------------------->|
                        |<----------- full decode ------------>|

Streams that had their first token early decode beside the prompts of others; those tokens count neither as
prefill nor as decode.
"""

from __future__ import annotations

import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.core.events import FailedEvent, TokensEvent
from rhizome_engine.evaluation.llm_options import make_llm
from rhizome_engine.llm import LLM
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.scheduler.request import Request

_WARM_UP_OUTPUT_TOKENS = 4
_GREEDY = SamplingParams(temperature=0.0)


@dataclass(frozen=True, slots=True)
class Wave:
    """When the tokens of streams came that were submitted together, in seconds from then.

    Attributes:
        prompt_tokens: of all streams.
        tokens_s: [streams][tokens], when each output token was handed out.
    """

    prompt_tokens: int
    tokens_s: Sequence[Sequence[float]]

    @property
    def all_started_s(self) -> float:
        """When the last stream had its first token."""
        return max(times[0] for times in self.tokens_s)

    @property
    def first_ended_s(self) -> float:
        """When the first stream had its last token."""
        return min(times[-1] for times in self.tokens_s)

    @property
    def end_s(self) -> float:
        """When the last stream had its last token."""
        return max(times[-1] for times in self.tokens_s)

    @property
    def prefill_tok_s(self) -> float:
        """Prompt tokens over the time until every stream has its first token."""
        return self.prompt_tokens / self.all_started_s

    @property
    def decode_tok_s(self) -> float | None:
        """Tokens per second after every stream has its first token; None for answers of one token."""
        return self._tok_s(self.all_started_s, self.end_s)

    @property
    def full_decode_tok_s(self) -> float | None:
        """Tokens per second while every stream decodes; None where the first ends before the last starts."""
        return self._tok_s(self.all_started_s, self.first_ended_s)

    @property
    def output_tok_s(self) -> float:
        """All output tokens over all the time."""
        return sum(map(len, self.tokens_s)) / self.end_s

    @property
    def ttft_s(self) -> float:
        """Mean time to the first token."""
        return statistics.fmean(times[0] for times in self.tokens_s)

    def _tok_s(self, start: float, end: float) -> float | None:
        if end <= start:
            return None
        return sum(start < time_s <= end for times in self.tokens_s for time_s in times) / (end - start)


def measure_speed(
    model: str,
    options: dict[str, Any],
    *,
    streams: Sequence[int],
    input_tokens: int,
    output_tokens: int,
    repeat: int,
    progress: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Load a checkpoint and measure each number of streams.

    Args:
        model: checkpoint directory.
        options: of the engine, see `llm_options`.
        streams: numbers of streams, one level after the other.
        input_tokens: random tokens of each prompt; no two prompts share a prefix.
        output_tokens: of each answer.
        repeat: runs of each level; medians are reported.
        progress: told what is measured.

    Yields:
        the whole report, again after each level.

    Raises:
        ValueError: the checkpoint or an option is unusable, or the prompts do not fit.
    """
    process = psutil.Process()
    report: dict[str, Any] = {
        "benchmark": "engine",
        "model": model,
        "engine_options": options,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "repeat": repeat,
        "threads": torch.get_num_threads(),
        "rss_before_bytes": process.memory_info().rss,
    }
    progress(f"loading {model}")
    started = time.perf_counter()
    llm = make_llm(model, options, min_rows=max(streams))
    report["load_s"] = time.perf_counter() - started
    report["threads"] = torch.get_num_threads()
    report["rss_loaded_bytes"] = process.memory_info().rss
    load = llm.core.load()
    report["kv_tokens"] = load.kv_pages_total * load.page_size
    report["levels"] = []
    prompts = _RandomPrompts(llm, input_tokens)
    for number in streams:
        progress(f"{number} streams: warming up")
        run_wave(llm.core, prompts.take(number), min(output_tokens, _WARM_UP_OUTPUT_TOKENS))
        waves = []
        for run in range(repeat):
            progress(f"{number} streams: run {run + 1} of {repeat}")
            waves.append(run_wave(llm.core, prompts.take(number), output_tokens))
        report["levels"].append(level_figures(waves))
        report["rss_peak_bytes"] = _peak_rss_bytes()
        report["cuda_peak_bytes"] = _cuda_peak_bytes()
        yield report


def run_wave(core: EngineCore, prompts: Sequence[Sequence[int]], output_tokens: int) -> Wave:
    """Submit prompts together and run them to `output_tokens` tokens each.

    Raises:
        EngineError: the engine refused or failed a request.
    """
    tokens_s: list[list[float]] = [[] for _ in prompts]
    start = time.perf_counter()
    for index, prompt in enumerate(prompts):
        core.add(Request(str(index), prompt, _GREEDY, max_tokens=output_tokens, ignore_eos=True))
    while core.has_work:
        events = core.step()
        now = time.perf_counter() - start
        for event in events:
            if isinstance(event, TokensEvent):
                tokens_s[int(event.request.request_id)] += [now] * len(event.token_ids)
            elif isinstance(event, FailedEvent):
                raise event.error
    return Wave(sum(map(len, prompts)), tokens_s)


def level_figures(waves: Sequence[Wave]) -> dict[str, Any]:
    """Medians over the runs of one level; with the slowest and fastest decode, to judge the noise by."""
    streams = len(waves[0].tokens_s)
    decodes = [speed for wave in waves if (speed := wave.decode_tok_s) is not None]
    full = [speed for wave in waves if (speed := wave.full_decode_tok_s) is not None]
    return {
        "streams": streams,
        "prefill_tok_s": statistics.median(wave.prefill_tok_s for wave in waves),
        "decode_tok_s": statistics.median(decodes) if decodes else None,
        "decode_tok_s_min": min(decodes, default=None),
        "decode_tok_s_max": max(decodes, default=None),
        "full_decode_tok_s": statistics.median(full) if full else None,
        "step_ms": 1e3 * streams / statistics.median(full) if full else None,
        "output_tok_s": statistics.median(wave.output_tok_s for wave in waves),
        "ttft_ms": 1e3 * statistics.median(wave.ttft_s for wave in waves),
        "e2e_ms": 1e3 * statistics.median(wave.end_s for wave in waves),
    }


class _RandomPrompts:
    """Prompts of random ordinary tokens, other ones each time: the prefix cache must not help."""

    def __init__(self, llm: LLM, num_tokens: int) -> None:
        tokenizer = llm.tokenizer
        self._ids = [id_ for id_ in range(tokenizer.vocab_size) if tokenizer.is_text(id_)]
        self._num_tokens = num_tokens
        self._chance = random.Random(0)  # noqa: S311

    def take(self, count: int) -> list[list[int]]:
        return [self._chance.choices(self._ids, k=self._num_tokens) for _ in range(count)]


def _peak_rss_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _cuda_peak_bytes() -> int | None:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
