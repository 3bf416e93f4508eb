"""How fast the engine generates on a CPU, beside transformers on the same checkpoint in the same minutes.

The model has the shape of a 135M-parameter Llama (SmolLM-135M) and random weights, stored in bfloat16 as
real checkpoints are; speed does not depend on their values. Prompts of 128 tokens, 33 tokens out, through
the whole engine core (scheduler, cache, sampling), without transport. Every engine is a process of its own,
and they take turns, round after round; of each figure the best round counts, since noise only ever slows.

    prefill tok/s   prompt tokens / time until all requests have their first token
    decode tok/s    tokens after the last first token / time after it (`Wave`, as in `rhizome bench engine`)

    python benchmarks/engine_cpu.py [--engines transformers,auto,bfloat16,int8,int4] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rhizome_engine.evaluation.speed import Wave

STREAMS = (1, 8, 32)
PROMPT_TOKENS = 128
OUTPUT_TOKENS = 33
VOCAB_SIZE = 49152
ENGINES = {
    "transformers": {},
    "auto": {},
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "torch": {"kernels": "torch"},
    "int8": {"quantization": "int8"},
    "int4": {"quantization": "int4"},
}


def make_checkpoint(directory: Path) -> Path:
    """Write the random model."""
    import torch

    from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint

    shape = LlamaShape(
        vocab_size=VOCAB_SIZE,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
    )
    return write_llama_checkpoint(directory, shape, dtype=torch.bfloat16)


def prompts(streams: int, run: int) -> list[list[int]]:
    """Different tokens for every request and run, so that no prefix is cached."""
    return [
        [(7919 * (run * 1000 + row) + 31 * place) % VOCAB_SIZE for place in range(PROMPT_TOKENS)]
        for row in range(streams)
    ]


def measure_rhizome(model: Path, options: dict[str, str], threads: int) -> dict[str, float]:
    """Run in the engine's process."""
    from rhizome_engine.core.engine_core import EngineCore
    from rhizome_engine.core.events import TokensEvent
    from rhizome_engine.runner import ModelRunner
    from rhizome_engine.sampling.params import SamplingParams
    from rhizome_engine.scheduler.config import SchedulerConfig
    from rhizome_engine.scheduler.request import Request

    started = time.perf_counter()
    # All prompts in one step, as others do it: then all requests decode together from the first token on.
    config = SchedulerConfig(max_step_tokens=STREAMS[-1] * PROMPT_TOKENS)
    runner = ModelRunner(
        model,
        device="cpu",
        num_pages=1024,
        max_num_tokens=config.max_step_tokens,
        max_num_rows=config.max_batch_size,
        num_threads=threads,
        **options,
    )
    core = EngineCore(runner, config, runner.checkpoint.eos_token_ids)
    figures = {"load_s": time.perf_counter() - started}

    def generate(streams: int, run: int) -> Wave:
        tokens_s: dict[str, list[float]] = {}
        for row, prompt in enumerate(prompts(streams, run)):
            name = f"{streams}.{run}.{row}"
            tokens_s[name] = []
            sampling = SamplingParams(temperature=0.0)
            core.add(Request(name, prompt, sampling, max_tokens=OUTPUT_TOKENS, ignore_eos=True))
        start = time.perf_counter()
        while core.has_work:
            for event in core.step():
                if isinstance(event, TokensEvent):
                    times = [time.perf_counter() - start] * len(event.token_ids)
                    tokens_s[event.request.request_id] += times
        return Wave(streams * PROMPT_TOKENS, list(tokens_s.values()))

    return figures | _figures(generate)


def measure_transformers(model: Path, threads: int) -> dict[str, float]:
    """Run in a process of its own."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    started = time.perf_counter()
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    figures = {"load_s": time.perf_counter() - started}

    def generate(streams: int, run: int) -> Wave:
        ids = torch.tensor(prompts(streams, run))
        times: list[float] = []
        cache = None
        with torch.inference_mode():
            start = time.perf_counter()
            for _ in range(OUTPUT_TOKENS):
                output = network(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache, ids = output.past_key_values, output.logits[:, -1].argmax(dim=-1, keepdim=True)
                times.append(time.perf_counter() - start)
        return Wave(streams * PROMPT_TOKENS, [times] * streams)

    return figures | _figures(generate)


def _figures(generate: Callable[[int, int], Wave]) -> dict[str, float]:
    """Run every number of streams a few times; of each figure the best run counts."""
    figures = {}
    generate(2, 99)
    for streams in STREAMS:
        waves = [generate(streams, run) for run in range(3 if streams < 32 else 2)]
        figures[f"decode_tok_s_{streams}"] = max(wave.decode_tok_s or 0.0 for wave in waves)
        figures[f"prefill_tok_s_{streams}"] = max(wave.prefill_tok_s for wave in waves)
        figures[f"total_tok_s_{streams}"] = max(wave.output_tok_s for wave in waves)
    return figures


def run_engine(name: str, model: Path, threads: int) -> dict[str, float]:
    """Measure one engine in a process of its own."""
    command = [sys.executable, __file__, "--child", name, "--model", str(model), "--threads", str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    if name != "transformers":
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def cpu_name() -> str:
    """Name of the processor and whether it has the instructions that int8 wants."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    flags = next((line for line in lines if line.startswith("flags")), "")
    return f"{name}, {'with' if 'avx512_vnni' in flags else 'without'} avx512_vnni"


def main() -> None:
    """Take turns, print a table and one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engines", default="transformers,auto,bfloat16,int8,int4")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--model", type=Path, help="a checkpoint to use instead of a random one")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        if arguments.child == "transformers":
            print(json.dumps(measure_transformers(arguments.model, arguments.threads)))
        else:
            options = ENGINES[arguments.child]
            print(json.dumps(measure_rhizome(arguments.model, options, arguments.threads)))
        return
    names = arguments.engines.split(",")
    with tempfile.TemporaryDirectory() as directory:
        model = arguments.model or make_checkpoint(Path(directory))
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for _ in range(arguments.rounds):
            for name in names:
                rounds[name].append(run_engine(name, model, arguments.threads))
    best = {
        name: {key: (min if key == "load_s" else max)(each[key] for each in results) for key in results[0]}
        for name, results in rounds.items()
    }
    keys = [f"decode_tok_s_{streams}" for streams in STREAMS]
    keys += ["prefill_tok_s_1", "prefill_tok_s_8", "load_s"]
    print(f"{cpu_name()}; {arguments.threads} threads; best of {arguments.rounds} rounds")
    print(f"{'':<14}" + "".join(f"{key:>17}" for key in keys))
    reference = best.get("transformers")
    for name, figures in best.items():
        print(f"{name:<14}" + "".join(f"{figures[key]:>17.1f}" for key in keys))
        if reference is not None and name != "transformers":
            ratios = "".join(f"{figures[key] / reference[key]:>16.2f}x" for key in keys)
            print(f"{'  /transformers':<14}{ratios}")
    flat = {
        f"{name}_{key}": round(value, 3) for name, figures in best.items() for key, value in figures.items()
    }
    print(json.dumps({"threads": arguments.threads, "cpu": cpu_name(), **flat}))


if __name__ == "__main__":
    main()
