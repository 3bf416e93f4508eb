"""`python -m rhizome_engine.evaluation`: one measurement, one JSON object on standard output.

Progress goes to standard error. Ctrl-C ends a measurement early with the figures so far and `interrupted`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rhizome_engine.checkpoint.errors import CheckpointError
from rhizome_engine.evaluation.llm_options import make_llm, parse_options
from rhizome_engine.evaluation.perplexity import PerplexityRun
from rhizome_engine.evaluation.skills import read_questions, score_skills
from rhizome_engine.evaluation.speed import measure_speed
from rhizome_transport.errors import EngineError

Report = dict[str, Any]
_CLEAR_LINE = "\r\x1b[K"


def main() -> int:
    """Measure what the arguments say; 1 with the reason on standard error where that is impossible."""
    arguments = _parser().parse_args()
    measure: Callable[[argparse.Namespace, dict[str, Any]], Iterator[Report]] = arguments.measure
    report: Report | None = None
    interrupted = False
    try:
        for partial in measure(arguments, parse_options(arguments.engine_option)):
            report = partial
    except (ValueError, OSError, EngineError, CheckpointError) as error:
        _progress("")
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        interrupted = True
    _progress("")
    if report is None:
        print("error: interrupted before there was a figure", file=sys.stderr)  # noqa: T201
        return 1
    print(json.dumps(_finite({**report, "interrupted": interrupted})))  # noqa: T201
    return 0


def speed(arguments: argparse.Namespace, options: dict[str, Any]) -> Iterator[Report]:
    """Prefill and decode at several numbers of streams."""
    return measure_speed(
        arguments.model,
        options,
        streams=[int(number) for number in arguments.rows.split(",")],
        input_tokens=arguments.input_tokens,
        output_tokens=arguments.output_tokens,
        repeat=arguments.repeat,
        progress=_progress,
    )


def perplexity(arguments: argparse.Namespace, options: dict[str, Any]) -> Iterator[Report]:
    """How well a text is predicted."""
    text = (sys.stdin.buffer.read() if arguments.text == "-" else Path(arguments.text).read_bytes()).decode()
    _progress(f"loading {arguments.model}")
    run = PerplexityRun(make_llm(arguments.model, options), text, arguments.context, arguments.stride)
    report = {
        "evaluation": "perplexity",
        "model": arguments.model,
        "engine_options": options,
        "text": arguments.text,
        "context": run.context,
        "stride": run.stride,
        "windows": len(run.windows),
    }
    started = time.perf_counter()
    for done in run.run():
        _progress(f"window {done} of {len(run.windows)}, {run.score.tokens} tokens scored")
        yield {**report, **run.score.to_json(), "duration_s": time.perf_counter() - started}


def skills(arguments: argparse.Namespace, options: dict[str, Any]) -> Iterator[Report]:
    """How many answers are right to the letter."""
    questions = read_questions(Path(arguments.corpus), arguments.n, arguments.seed)
    _progress(f"loading {arguments.model}")
    llm = make_llm(arguments.model, options)
    report = {"evaluation": "skills", "model": arguments.model, "engine_options": options}
    report |= {"corpus": arguments.corpus, "n": arguments.n, "seed": arguments.seed}
    scores: dict[str, dict[str, Any]] = {}
    started = time.perf_counter()
    for skill, score in score_skills(llm, questions, _progress):
        scores[skill] = score
        share = statistics.fmean(score["share"] for score in scores.values())
        yield {
            **report,
            "skills": dict(scores),
            "mean_share": share,
            "duration_s": time.perf_counter() - started,
        }


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--model", required=True, help="checkpoint directory")
    common.add_argument(
        "--engine-option", action="append", default=[], metavar="NAME=VALUE", help="a setting of LLM"
    )
    parser = argparse.ArgumentParser(prog="python -m rhizome_engine.evaluation", description=__doc__)
    commands = parser.add_subparsers(required=True)

    command = commands.add_parser("speed", parents=[common], help=speed.__doc__)
    command.set_defaults(measure=speed)
    command.add_argument("--rows", default="1,8,32", help="numbers of streams")
    command.add_argument("--input-tokens", type=int, default=128)
    command.add_argument("--output-tokens", type=int, default=33)
    command.add_argument("--repeat", type=int, default=3)

    command = commands.add_parser("perplexity", parents=[common], help=perplexity.__doc__)
    command.set_defaults(measure=perplexity)
    command.add_argument("--text", required=True, help="UTF-8 file, - for standard input")
    command.add_argument("--context", type=int)
    command.add_argument("--stride", type=int)

    command = commands.add_parser("skills", parents=[common], help=skills.__doc__)
    command.set_defaults(measure=skills)
    command.add_argument("--corpus", required=True, help="corpus.py of the demo model, or a JSONL file")
    command.add_argument("--n", type=int, default=50)
    command.add_argument("--seed", type=int, default=0)
    return parser


def _progress(text: str) -> None:
    """Replace the line of progress, where somebody watches."""
    if sys.stderr.isatty():
        print(_CLEAR_LINE + text, end="", file=sys.stderr, flush=True)  # noqa: T201


def _finite(value: Any) -> Any:
    """JSON has no infinity: a perplexity too large for a float becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())
