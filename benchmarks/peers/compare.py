"""Compare this engine with other CPU engines on one model, in the same minutes on the same machine.

Every engine is a process of its own with its own interpreter; they take turns, round after round, and of each
figure the best round counts: whatever else the machine does can only slow one down. What the figures mean is
said in `workload.py`, how the other engines are installed in README.md; absent ones are left out.

    python benchmarks/peers/compare.py --cache DIR --environments DIR [--engines rhizome-int8,openvino-int8]
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from engines import ENGINES, MODELS, Engine

from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint

HERE = Path(__file__).parent
SHAPE_135M = LlamaShape(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
)
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
FIGURES = ("decode_tok_s", "prefill_tok_s", "total_tok_s")

Figures = dict[str, dict[str, float]]  # by stream count, then by name


def machine(threads: int) -> dict[str, Any]:
    """Describe the CPU as its own operating system does."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    facts = dict(
        (part.strip() for part in line.split(":", 1)) for line in text.splitlines() if line.count(":") >= 1
    )
    flags = set(facts.get("flags", "").split())
    return {
        "cpu": facts.get("model name", "unknown"),
        "cpus": os.cpu_count(),
        "flags": [flag for flag in CPU_FLAGS if flag in flags],
        "threads": threads,
        "load": round(os.getloadavg()[0], 1),
    }


def model_of(engine: Engine, cache: Path, environments: Path) -> Path:
    """Return what an engine loads, made first if it is not in the cache yet."""
    checkpoint = cache / "checkpoint"
    if not checkpoint.exists():
        print(f"making {checkpoint}", flush=True)
        write_llama_checkpoint(checkpoint, SHAPE_135M, dtype=torch.bfloat16)
    if not engine.model:
        return checkpoint
    output = cache / engine.model
    if not output.exists():
        print(f"making {output}", flush=True)
        model = MODELS[engine.model]
        words = [word.format(checkpoint=checkpoint, output=output) for word in model.command]
        words[0] = str(environments / model.environment / "bin" / words[0])
        subprocess.run(words, cwd=HERE, check=True, capture_output=True, text=True)
    return output


def interpreter_of(engine: Engine, environments: Path) -> Path:
    """Return the interpreter that runs an engine's script."""
    if not engine.environment:
        return Path(sys.executable)
    return environments / engine.environment / "bin" / "python"


def run(engine: Engine, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one engine once; what its script printed last.

    Raises:
        SystemExit: it failed; its last words are printed.
    """
    words = [
        *shlex.split(arguments.prefix),
        str(interpreter_of(engine, arguments.environments)),
        str(HERE / engine.script),
        str(model_of(engine, arguments.cache, arguments.environments)),
        *("--name", name, "--threads", str(arguments.threads), "--seconds", str(arguments.seconds)),
        *("--streams", *(str(streams) for streams in arguments.streams)),
        *engine.options,
    ]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise SystemExit(f"{name} failed:\n{result.stderr[-2000:]}")
    line: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return line


def better(known: Figures, new: Figures) -> Figures:
    """Keep the larger of each figure."""
    return {
        streams: {name: max(value, known.get(streams, {}).get(name, 0.0)) for name, value in figures.items()}
        for streams, figures in new.items()
    }


def ratios(best: Mapping[str, Figures]) -> dict[str, Figures]:
    """Divide our figures by those of every engine that has a counterpart among ours."""
    return {
        name: {
            streams: {
                figure: round(best[ENGINES[name].ours][streams][figure] / value, 2)
                for figure, value in figures.items()
            }
            for streams, figures in results.items()
        }
        for name, results in best.items()
        if ENGINES[name].ours in best
    }


def print_table(title: str, rows: Mapping[str, Figures], streams: Sequence[int], form: str) -> None:
    """Print decode, prefill and total columns, one for each stream count."""
    print(f"\n{title}")
    heads = [f"{figure.removesuffix('_tok_s')} {count}" for figure in FIGURES for count in streams]
    print(f"  {'':<27}" + "".join(f"{head:>12}" for head in heads))
    for name, results in rows.items():
        cells = [results[str(count)][figure] for figure in FIGURES for count in streams]
        print(f"  {name:<27}" + "".join(f"{format(cell, form):>12}" for cell in cells))


def main() -> None:
    """Take turns, print two tables and one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, required=True, help="where the models are, or are made")
    parser.add_argument("--environments", type=Path, required=True, help="holds the virtual environments")
    parser.add_argument("--engines", default=",".join(ENGINES), help="separated by commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each stream count in each round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prefix", default="", help="a command before each run, such as 'flock FILE'")
    arguments = parser.parse_args()
    arguments.cache = arguments.cache.resolve()
    arguments.environments = arguments.environments.absolute()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    for name in arguments.engines.split(","):
        if name not in ENGINES:
            parser.error(f"no engine {name!r}; there are {', '.join(ENGINES)}")
        if interpreter_of(ENGINES[name], arguments.environments).exists():
            names.append(name)
        else:
            print(f"{name} left out: no environment {ENGINES[name].environment!r}", flush=True)
    about = machine(arguments.threads)
    print(json.dumps(about), flush=True)
    for name in names:
        model_of(ENGINES[name], arguments.cache, arguments.environments)
    best: dict[str, Figures] = {}
    versions: dict[str, str] = {}
    for turn in range(arguments.rounds):
        for name in names:
            line = run(ENGINES[name], name, arguments)
            best[name] = better(best.get(name, {}), line["streams"])
            versions |= line["versions"]
            print(f"round {turn + 1}: {name} {json.dumps(line['streams'])}", flush=True)
    print_table("tokens per second, the best round", best, arguments.streams, ".1f")
    compared = ratios(best)
    print_table("ours divided by theirs", compared, arguments.streams, ".2f")
    print(json.dumps({"machine": about, "versions": versions, "best": best, "ratios": compared}))


if __name__ == "__main__":
    main()
