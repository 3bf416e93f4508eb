"""A day in miniature: many short requests, and nothing may have moved at the end.

    python benchmarks/soak.py [--requests 20000] [--overlap]

Requests of several namespaces and tenants come in random order with random settings; some are cancelled, some
expire, some have a grammar or want log probabilities. The KV pool holds half of the prefixes that they share.
After a warm-up of a tenth of the requests, free pages, memory and step time must be where they began: the
script fails where pages are missing, or memory or step time moved by more than their limits.

The model is random and tiny, so that the scheduler, the cache and the sampler do most of the work.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.core.events import FailedEvent, FinishedEvent
from rhizome_engine.runner import ModelRunner
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.request import Request
from rhizome_grammar.compiler import GrammarCompiler
from rhizome_grammar.spec import Grammar
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint
from rhizome_text.tokenizer_files import read_tokenizer_files

PAGE_SIZE = 16
NUM_PAGES = 128
NAMESPACES = ("", "blue", "green", "adapter-7")
PREFIX_TOKENS = 64
# Prefixes of all namespaces together take twice the pool.
PREFIXES_PER_NAMESPACE = 2 * NUM_PAGES * PAGE_SIZE // PREFIX_TOKENS // len(NAMESPACES)
OPEN_REQUESTS = 48
CHOICES = Grammar("choice", choices=("yes", "no", "not at all"))
MAX_RSS_CHANGE = 0.05
MAX_STEP_CHANGE = 0.25


@dataclass
class Period:
    """What was seen while some of the requests were served."""

    step_s: list[float] = field(default_factory=list)
    rss_bytes: list[int] = field(default_factory=list)

    def median_step_ms(self) -> float:
        """Median milliseconds of a step."""
        return statistics.median(self.step_s) * 1e3

    def median_rss_mib(self) -> float:
        """Median resident memory."""
        return statistics.median(self.rss_bytes) / 2**20


def make_request(number: int, chance: random.Random, vocab_size: int, now: float) -> Request:
    """A random short request."""
    namespace = chance.choice(NAMESPACES)
    prefix = random.Random(f"{namespace}/{chance.randrange(PREFIXES_PER_NAMESPACE)}")
    prompt = [prefix.randrange(vocab_size) for _ in range(PREFIX_TOKENS)]
    prompt += [chance.randrange(vocab_size) for _ in range(chance.randrange(1, 24))]
    params = SamplingParams(
        temperature=chance.choice([0.0, 0.7, 1.0]),
        top_p=chance.choice([1.0, 0.9]),
        top_k=chance.choice([0, 40]),
        frequency_penalty=chance.choice([0.0, 0.0, 0.5]),
        logit_bias=chance.choice([{}, {}, {3: 5.0}]),
        bad_words=chance.choice([(), (), ((7, 8), (9,))]),
        top_logprobs=chance.choice([None, None, None, 5]),
    )
    return Request(
        str(number),
        prompt,
        params,
        namespace=namespace,
        tenant=chance.choice(["", "alice", "bob"]),
        priority=chance.choice([0, 0, 1]),
        grammar=CHOICES if chance.random() < 0.03 else None,
        max_tokens=chance.randrange(1, 12),
        ignore_eos=True,
        prompt_logprobs=2 if chance.random() < 0.02 else None,
        deadline=now + chance.uniform(0.0, 0.2) if chance.random() < 0.05 else None,
    )


def soak(core: EngineCore, vocab_size: int, num_requests: int) -> tuple[Period, Period]:
    """Serve the requests; what the second and the last tenth of them saw."""
    chance = random.Random(0)
    process = psutil.Process()
    early, late = Period(), Period()
    sent = ended = 0
    open_ids: list[str] = []
    while ended < num_requests:
        while sent < num_requests and len(open_ids) < OPEN_REQUESTS:
            core.add(make_request(sent, chance, vocab_size, time.monotonic()))
            open_ids.append(str(sent))
            sent += 1
        if open_ids and chance.random() < 0.2:
            core.cancel(chance.choice(open_ids))
        started = time.perf_counter()
        events = core.step()
        elapsed = time.perf_counter() - started
        for event in events:
            if isinstance(event, FinishedEvent | FailedEvent):
                open_ids.remove(event.request.request_id)
                ended += 1
        tenth = 10 * ended // num_requests
        period = {1: early, 9: late}.get(tenth)
        if period is not None and len(open_ids) >= OPEN_REQUESTS // 2:
            period.step_s.append(elapsed)
            period.rss_bytes.append(process.memory_info().rss)
    return early, late


def main() -> int:
    """Print what moved, and the figures as one JSON line; status 1 where too much did."""
    parser = argparse.ArgumentParser(description="Serve many short requests and see whether anything leaks.")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--overlap", action="store_true", help="compute in a thread, a step ahead")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        shape = LlamaShape()
        path = write_llama_checkpoint(Path(directory), shape)
        runner = ModelRunner(
            path, device="cpu", page_size=PAGE_SIZE, num_pages=NUM_PAGES, overlap=arguments.overlap
        )
        tokenizer = read_tokenizer_files(path)["tokenizer.json"]
    eos = runner.checkpoint.eos_token_ids
    grammars = GrammarCompiler(tokenizer, shape.vocab_size, eos)
    config = SchedulerConfig(max_batch_size=32, policy="priority", overlap=arguments.overlap)
    core = EngineCore(runner, config, eos, grammars=grammars)
    started = time.perf_counter()
    early, late = soak(core, shape.vocab_size, arguments.requests)
    seconds = time.perf_counter() - started
    core.check_conservation()
    load = core.load()
    core.flush_cache()
    rss_change = late.median_rss_mib() / early.median_rss_mib() - 1
    step_change = late.median_step_ms() / early.median_step_ms() - 1
    after = core.load()
    lost = after.kv_pages_in_use + after.kv_pages_cached
    figures = {
        "requests": arguments.requests,
        "seconds": round(seconds, 1),
        "steps": load.totals.steps,
        "preemptions": load.totals.preemptions,
        "cache_hit_share": round(
            load.totals.cache_hit_tokens / (load.totals.cache_hit_tokens + load.totals.cache_miss_tokens), 3
        ),
        "lost_pages": lost,
        "rss_begin_mib": round(early.median_rss_mib(), 1),
        "rss_end_mib": round(late.median_rss_mib(), 1),
        "rss_change_percent": round(100 * rss_change, 2),
        "step_begin_ms": round(early.median_step_ms(), 3),
        "step_end_ms": round(late.median_step_ms(), 3),
        "step_change_percent": round(100 * step_change, 2),
    }
    for name, value in figures.items():
        print(f"  {name:<24}{value:>12}")
    print(json.dumps(figures))
    steady = lost == 0 and abs(rss_change) <= MAX_RSS_CHANGE and abs(step_change) <= MAX_STEP_CHANGE
    if not steady:
        print("something moved", file=sys.stderr)
    return 0 if steady else 1


if __name__ == "__main__":
    sys.exit(main())
