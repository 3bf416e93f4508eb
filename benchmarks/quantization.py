"""What quantisation costs in quality: the demo model's skills and perplexity, and the error of random logits.

    skills       share of exact greedy answers to unseen questions, mean over all skills and of those at 90 %
    perplexity   of the right answers' tokens, given the questions
    logit error  |logits - logits of float32| / |logits of float32| over a prompt of 256 tokens, on random
                 checkpoints, and how often the likeliest token is another one; all tokens in one step, and
                 8 in each: on a GPU small steps leave activations as they are

Everything is computed with the kernels that `auto` chooses here; fp8 on a CPU with those of PyTorch, since
its own have none. On a GPU what is not quantised is bfloat16. The last line is one JSON object; the exit
status is 1 where int8 loses more than one point on the skills.

    python benchmarks/quantization.py [--n 100] [--formats float32,int8,fp8,int4] [--device cuda]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rhizome_engine.batch import Batch
from rhizome_engine.evaluation.skills import Question, read_questions, score_skills
from rhizome_engine.llm import LLM
from rhizome_engine.runner import ModelRunner
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint
from rhizome_testing.sampling_batch import sampling_batch

DEMO = Path(__file__).resolve().parents[1] / "models" / "demo"
FORMATS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantization": "int8"},
    "fp8": {"quantization": "fp8"},
    "int4": {"quantization": "int4"},
}
USUAL = {"cpu": ["float32", "int8", "fp8", "int4"], "cuda": [*FORMATS]}
STEPS = {"one step": 256, "8 tokens a step": 8}
"""Tokens of a step; a prompt has a whole number of steps."""
SHAPES = {
    "2 layers of 256": LlamaShape(hidden_size=256, intermediate_size=704),
    "4 layers of 512": LlamaShape(
        hidden_size=512, intermediate_size=1408, num_hidden_layers=4, num_attention_heads=8
    ),
    "8 layers of 576": LlamaShape(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=False,
    ),
}
GOOD_SKILL = 0.9
MOST_POINTS_LOST = 1.0
PROMPT_TOKENS = 256


def options_of(name: str, device: str) -> dict[str, Any]:
    """Return what makes a runner compute in a format on a device."""
    options = {"device": device, **FORMATS[name]}
    if device == "cpu" and name == "fp8":
        options["kernels"] = "torch"
    if device != "cpu" and "quantization" in options:
        options["dtype"] = "bfloat16"
    return options


def quality_of_demo(options: dict[str, Any], questions: list[Question]) -> dict[str, Any]:
    """Ask the demo model and let it predict the right answers."""
    llm = LLM(DEMO, num_pages=2048, **options)
    skills = {name: result["share"] for name, result in score_skills(llm, questions, lambda _: None)}
    return {"skills": skills, "perplexity": perplexity_of_answers(llm, questions)}


def perplexity_of_answers(llm: LLM, questions: list[Question]) -> float:
    """Let a model predict the answers that are right."""
    prompts, lengths = [], []
    for question in questions:
        template = llm.tokenizer.chat_template(tools=bool(question.tools))
        assert template is not None, "the demo model has one"
        answer = llm.tokenizer.encode(question.answer)
        prompts.append(llm.tokenizer.encode(template.render(question.messages, question.tools)) + answer)
        lengths.append(len(answer))
    logprobs: list[float] = []
    for completion, length in zip(
        llm.generate(prompts, max_tokens=0, prompt_logprobs=0), lengths, strict=True
    ):
        assert completion.prompt_logprobs is not None
        logprobs += [token.logprob for token in completion.prompt_logprobs[-length:] if token is not None]
    return math.exp(-math.fsum(logprobs) / len(logprobs))


def logits(checkpoint: Path, options: dict[str, Any], step: int = PROMPT_TOKENS) -> torch.Tensor:
    """Compute the logits of every token of a prompt, so many tokens in each step."""
    runner = ModelRunner(checkpoint, num_pages=PROMPT_TOKENS // 16, **options)
    ids = np.random.default_rng(5).integers(0, runner.config.vocab_size, PROMPT_TOKENS)
    found = [_step_logits(runner, ids, start, step) for start in range(0, PROMPT_TOKENS, step)]
    return torch.cat(found)


def _step_logits(runner: ModelRunner, ids: Any, start: int, step: int) -> torch.Tensor:
    positions = np.arange(start, start + step)
    batch = Batch(
        token_ids=ids[positions],
        positions=positions,
        slot_mapping=positions,
        query_start=np.array([0, step], np.int32),
        context_len=np.array([start + step], np.int32),
        page_table=np.arange(runner.num_pages, dtype=np.int32)[None],
        slots=np.zeros(1, np.int64),
        sampling=sampling_batch([], [], runner.config.vocab_size, rows=[]),
    )
    return runner.logits(batch).cpu()


def logit_errors(
    formats: list[str], device: str = "cpu"
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Compare random models with themselves in float32: shape → format → steps → figures."""
    errors: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as directory:
            checkpoint = write_llama_checkpoint(Path(directory), shape)
            exact = logits(checkpoint, options_of("float32", device))
            errors[name] = {each: {} for each in formats}
            for each in formats:
                for steps, tokens in STEPS.items():
                    found = logits(checkpoint, options_of(each, device), tokens)
                    errors[name][each][steps] = {
                        "relative_error": float((found - exact).norm() / exact.norm()),
                        "other_argmax": float((found.argmax(-1) != exact.argmax(-1)).float().mean()),
                    }
    return errors


def mean(values: list[float]) -> float:
    """Return the mean in percent."""
    return 100 * sum(values) / len(values)


def measure(
    formats: list[str],
    *,
    device: str = "cpu",
    questions_per_skill: int = 100,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure formats beside float32, and tell the figures as they come.

    Args:
        formats: of `FORMATS`.
        device: "cpu" or "cuda".
        questions_per_skill: that the demo model is asked.
        seed: which questions.
        say: takes a line of the tables.

    Returns:
        what the last line of the script's output holds
    """
    formats = list(dict.fromkeys(["float32", *formats]))
    questions = read_questions(DEMO / "corpus.py", questions_per_skill, seed)
    demo: dict[str, dict[str, Any]] = {}
    say(f"{'models/demo':<16}{'skills':>9}{'those >= 90 %':>15}{'perplexity':>12}")
    for name in formats:
        demo[name] = found = quality_of_demo(options_of(name, device), questions)
        good = [skill for skill, share in demo["float32"]["skills"].items() if share >= GOOD_SKILL]
        found["mean"] = mean(list(found["skills"].values()))
        found["mean_of_good"] = mean([found["skills"][skill] for skill in good])
        say(f"{name:<16}{found['mean']:>9.2f}{found['mean_of_good']:>15.2f}{found['perplexity']:>12.4f}")
    errors = logit_errors([name for name in formats if name != "float32"], device)
    say(f"\n{'random model':<20}{'format':<10}{'steps':<18}{'logit error':>12}{'other argmax':>14}")
    for shape, by_format in errors.items():
        for name, by_steps in by_format.items():
            for steps, figures in by_steps.items():
                error, other = figures["relative_error"], figures["other_argmax"]
                say(f"{shape:<20}{name:<10}{steps:<18}{error:>12.2%}{other:>14.2%}")
    return {
        "benchmark": "quantization",
        "device": device,
        "questions_per_skill": questions_per_skill,
        "demo": demo,
        "int8_points_lost": demo["float32"]["mean"] - demo["int8"]["mean"] if "int8" in demo else 0.0,
        "logits": errors,
    }


def main() -> int:
    """Print the tables and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--n", type=int, default=100, help="questions of each skill")
    parser.add_argument("--seed", type=int, default=0, help="which questions")
    parser.add_argument("--device", default="cpu", choices=list(USUAL))
    parser.add_argument("--formats", help=f"beside float32; known: {', '.join(FORMATS)}")
    arguments = parser.parse_args()
    formats = arguments.formats.split(",") if arguments.formats else USUAL[arguments.device]
    if unknown := [name for name in formats if name not in FORMATS]:
        parser.error(f"unknown formats {', '.join(unknown)}; known: {', '.join(FORMATS)}")
    result = measure(
        formats,
        device=arguments.device,
        questions_per_skill=arguments.n,
        seed=arguments.seed,
        say=lambda line: print(line, flush=True),
    )
    print(json.dumps(result))
    return int(result["int8_points_lost"] > MOST_POINTS_LOST)


if __name__ == "__main__":
    sys.exit(main())
