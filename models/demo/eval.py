"""Score every skill of the demo model on instances it never saw: ``python models/demo/eval.py [--n 100]``.

Decodes greedily with transformers, in batches, and counts an answer as right only if its whole text is exact.
The last line is one JSON object for machines. Exits with 1 if a skill is below ``--least``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import corpus
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).resolve().parent


@torch.inference_mode()
def generate(model: Any, tokenizer: Any, prompts: list[str], limit: int) -> list[str]:
    """Return the greedy answers to rendered prompts, each cut at its end mark."""
    encoded = tokenizer(
        prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
    )
    tokens = model.generate(**encoded, max_new_tokens=limit, do_sample=False)
    answers = tokenizer.batch_decode(tokens[:, encoded["input_ids"].shape[1] :])
    return [answer.split(tokenizer.eos_token)[0] for answer in answers]


def score(model: Any, tokenizer: Any, skill: str, n: int, seed: int, batch: int) -> tuple[float, list[str]]:
    """Return the share of exact answers of one skill, and a description of each wrong one."""
    items = corpus.eval_instances(skill, n, seed)
    options = {"tokenize": False, "add_generation_prompt": True}
    prompts = [tokenizer.apply_chat_template(item.messages, tools=item.tools, **options) for item in items]
    lengths = [len(tokenizer(item.answer, add_special_tokens=False)["input_ids"]) for item in items]
    order = sorted(range(n), key=lambda index: (lengths[index], len(prompts[index])))
    wrong = []
    for start in range(0, n, batch):
        part = order[start : start + batch]
        limit = max(lengths[index] for index in part) + 2
        answers = generate(model, tokenizer, [prompts[index] for index in part], limit)
        for index, answer in zip(part, answers, strict=True):
            if answer != items[index].answer:
                asked = str(items[index].messages[-1]["content"])[-70:]
                wrong.append(f"{asked!r}: wanted {items[index].answer!r}, got {answer!r}")
    return 1 - len(wrong) / n, wrong


def main() -> int:
    """Score the skills, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=HERE, help="checkpoint folder (default: this one)")
    parser.add_argument("--n", type=int, default=100, help="instances of each skill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--skills", nargs="*", default=list(corpus.SKILLS), choices=list(corpus.SKILLS))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--least", type=float, default=0.0, help="exit with 1 if a skill scores below this")
    parser.add_argument("--show", type=int, default=0, help="print so many wrong answers of each skill")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    dtype = getattr(torch, arguments.dtype)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype).eval()
    scores: dict[str, float] = {}
    print(f"{'skill':<14}{'exact':>8}{'seconds':>9}")
    for skill in arguments.skills:
        started = time.monotonic()
        scores[skill], wrong = score(model, tokenizer, skill, arguments.n, arguments.seed, arguments.batch)
        print(f"{skill:<14}{scores[skill]:>8.1%}{time.monotonic() - started:>9.1f}", flush=True)
        for line in wrong[: arguments.show]:
            print(f"    {line}", flush=True)
    print(json.dumps({"skill_accuracy": {skill: round(value, 4) for skill, value in scores.items()}}))
    return int(min(scores.values()) < arguments.least)


if __name__ == "__main__":
    sys.exit(main())
