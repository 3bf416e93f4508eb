"""The workload every engine is given, and what is computed from its token times.

`streams` requests arrive at once, each with its own prompt of `prompt_tokens` random token ids, and each asks
for exactly `output_tokens` tokens, greedily. An engine reports, for every round, when each token came out;
all figures follow from those times:

    |<----------- ttft_s ----------->|<----------- decode ----------->|
    arrival      first tokens ...    all streams have one             last token

    prefill_tok_s  prompt tokens / ttft_s
    decode_tok_s   tokens that came after ttft_s / time after ttft_s
    total_tok_s    all output tokens / all time

Standard library only: this module is run by each engine's own interpreter.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Generate = Callable[[Sequence[Sequence[int]], int], "TokenTimes"]


@dataclass(frozen=True)
class TokenTimes:
    """When tokens came out, in seconds of `time.perf_counter`.

    Attributes:
        arrival: when the prompts were handed over.
        streams: for each stream, the time of each of its tokens.
    """

    arrival: float
    streams: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Workload:
    """What a peer's command line asks for."""

    checkpoint: Path
    streams: Sequence[int]
    threads: int
    prompt_tokens: int
    output_tokens: int
    vocab_size: int
    seconds: float

    def prompts(self, streams: int, seed: int) -> list[list[int]]:
        """Draw prompts of different ids, so that no engine finds a prefix in its cache."""
        draw = random.Random(seed)
        return [
            [draw.randrange(self.vocab_size // 2, self.vocab_size) for _ in range(self.prompt_tokens)]
            for _ in range(streams)
        ]


def workload_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the arguments that all peers share; a peer adds its own."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="what this engine loads (see README.md)")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=33)
    parser.add_argument("--vocab-size", type=int, default=49152)
    parser.add_argument("--seconds", type=float, default=4.0, help="how long to repeat each stream count")
    return parser


def workload_of(arguments: argparse.Namespace) -> Workload:
    """Return the shared part of the parsed arguments."""
    return Workload(
        checkpoint=arguments.checkpoint,
        streams=arguments.streams,
        threads=arguments.threads,
        prompt_tokens=arguments.prompt_tokens,
        output_tokens=arguments.output_tokens,
        vocab_size=arguments.vocab_size,
        seconds=arguments.seconds,
    )


def figures_of(times: TokenTimes, prompt_tokens: int) -> dict[str, float]:
    """Compute one round's figures."""
    all_started = max(stream[0] for stream in times.streams)
    end = max(stream[-1] for stream in times.streams)
    tokens = sum(len(stream) for stream in times.streams)
    after = sum(moment > all_started for stream in times.streams for moment in stream)
    return {
        "prefill_tok_s": len(times.streams) * prompt_tokens / (all_started - times.arrival),
        "decode_tok_s": after / (end - all_started),
        "total_tok_s": tokens / (end - times.arrival),
    }


def measure(workload: Workload, generate: Generate) -> dict[str, dict[str, float]]:
    """Run each stream count for about `workload.seconds` after a warm-up; the best round of each figure.

    The best, not the median: on a machine that others use too, disturbance only ever slows a round down.

    Raises:
        ValueError: the engine gave another number of tokens than it was asked for.
    """
    results: dict[str, dict[str, float]] = {}
    for streams in workload.streams:
        best: dict[str, float] = {}
        generate(workload.prompts(streams, seed=0), workload.output_tokens)
        end = time.perf_counter() + workload.seconds
        rounds = 0
        while rounds < 1 or time.perf_counter() < end:
            rounds += 1
            gc.collect()
            times = generate(workload.prompts(streams, seed=rounds), workload.output_tokens)
            lengths = [len(stream) for stream in times.streams]
            if lengths != [workload.output_tokens] * streams:
                raise ValueError(f"{streams} streams of {workload.output_tokens} tokens asked, got {lengths}")
            for name, value in figures_of(times, workload.prompt_tokens).items():
                best[name] = max(best.get(name, 0.0), value)
        results[str(streams)] = {name: round(value, 1) for name, value in best.items()}
    return results


def report(engine: str, versions: Mapping[str, str], workload: Workload, generate: Generate) -> None:
    """Measure and print one JSON line on stdout."""
    results = measure(workload, generate)
    line = {"engine": engine, "versions": dict(versions), "threads": workload.threads, "streams": results}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
