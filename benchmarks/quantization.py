"""What quantisation costs in quality: the demo model's skills and perplexity, and the error of random logits.

    skills       share of exact greedy answers to unseen questions, mean over all skills and of those at 90 %
    perplexity   of the right answers' tokens, given the questions
    logit error  |logits - logits of float32| / |logits of float32| over a prompt of 256 tokens, on random
                 checkpoints, and how often the likeliest token is another one

Everything is computed with the kernels that `auto` chooses here. The last line is one JSON object; the exit
status is 1 where int8 loses more than one point on the skills.

    python benchmarks/quantization.py [--n 100] [--formats float32,int8,int4]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
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
    "int8": {"quantization": "int8"},
    "int4": {"quantization": "int4"},
}
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


def quality_of_demo(options: dict[str, Any], questions: list[Question]) -> dict[str, Any]:
    """Ask the demo model and let it predict the right answers."""
    llm = LLM(DEMO, device="cpu", num_pages=2048, **options)
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


def logits(checkpoint: Path, options: dict[str, Any]) -> torch.Tensor:
    """Compute the logits of every token of a prompt."""
    runner = ModelRunner(checkpoint, device="cpu", num_pages=PROMPT_TOKENS // 16, **options)
    ids = np.random.default_rng(5).integers(0, runner.config.vocab_size, PROMPT_TOKENS)
    return runner.logits(
        Batch(
            token_ids=ids,
            positions=np.arange(PROMPT_TOKENS),
            slot_mapping=np.arange(PROMPT_TOKENS),
            query_start=np.array([0, PROMPT_TOKENS], np.int32),
            context_len=np.array([PROMPT_TOKENS], np.int32),
            page_table=np.arange(runner.num_pages, dtype=np.int32)[None],
            sampling=sampling_batch([], [], runner.config.vocab_size, rows=[]),
        )
    )


def logit_errors(formats: list[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Compare random models with themselves in float32: shape → format → figures."""
    errors: dict[str, dict[str, dict[str, float]]] = {}
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as directory:
            checkpoint = write_llama_checkpoint(Path(directory), shape)
            exact = logits(checkpoint, FORMATS["float32"])
            errors[name] = {}
            for each in formats:
                found = logits(checkpoint, FORMATS[each])
                errors[name][each] = {
                    "relative_error": float((found - exact).norm() / exact.norm()),
                    "other_argmax": float((found.argmax(-1) != exact.argmax(-1)).float().mean()),
                }
    return errors


def mean(values: list[float]) -> float:
    """Return the mean in percent."""
    return 100 * sum(values) / len(values)


def main() -> int:
    """Print the tables and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--n", type=int, default=100, help="questions of each skill")
    parser.add_argument("--seed", type=int, default=0, help="which questions")
    parser.add_argument("--formats", default=",".join(FORMATS), help="beside float32")
    arguments = parser.parse_args()
    formats = list(dict.fromkeys(["float32", *arguments.formats.split(",")]))
    questions = read_questions(DEMO / "corpus.py", arguments.n, arguments.seed)
    demo = {}
    print(f"{'models/demo':<16}{'skills':>9}{'those >= 90 %':>15}{'perplexity':>12}")
    for name in formats:
        demo[name] = found = quality_of_demo(FORMATS[name], questions)
        good = [skill for skill, share in demo["float32"]["skills"].items() if share >= GOOD_SKILL]
        found["mean"] = mean(list(found["skills"].values()))
        found["mean_of_good"] = mean([found["skills"][skill] for skill in good])
        print(
            f"{name:<16}{found['mean']:>9.2f}{found['mean_of_good']:>15.2f}{found['perplexity']:>12.4f}",
            flush=True,
        )
    errors = logit_errors([name for name in formats if name != "float32"])
    print(f"\n{'random model':<20}{'format':<8}{'logit error':>12}{'other argmax':>14}")
    for shape, by_format in errors.items():
        for name, figures in by_format.items():
            print(f"{shape:<20}{name:<8}{figures['relative_error']:>12.2%}{figures['other_argmax']:>14.2%}")
    lost = demo["float32"]["mean"] - demo["int8"]["mean"] if "int8" in demo else 0.0
    result = {
        "benchmark": "quantization",
        "questions_per_skill": arguments.n,
        "demo": demo,
        "int8_points_lost": lost,
        "logits": errors,
    }
    print(json.dumps(result))
    return int(lost > MOST_POINTS_LOST)


if __name__ == "__main__":
    sys.exit(main())
