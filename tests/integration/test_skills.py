"""The bundled model's skills through the whole stack, many at once: a scheduling bug is a wrong answer.

The oracle is transformers on the same checkpoint, one question at a time, so that every skill counts here,
also those that the model has not mastered.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from openai import OpenAI

from rhizome_testing.running_stack import DEMO_MODEL

INSTANCES_PER_SKILL = 8
CONCURRENCY = 8
MAX_TOKENS = 320

Reference = Callable[[Any], str]


def demo_module(name: str) -> Any:
    """A module of `models/demo`, whose scripts import each other by their bare names."""
    sys.path.insert(0, str(DEMO_MODEL))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(DEMO_MODEL))


CORPUS = demo_module("corpus")


def claimed_skills() -> dict[str, float]:
    """Skill and accuracy from the table of the model card."""
    found = re.findall(r"^\| `(\w+)` \|.*\| ([\d.]+) ?% \|$", (DEMO_MODEL / "README.md").read_text(), re.M)
    return {skill: float(percent) / 100 for skill, percent in found}


@pytest.fixture(scope="module")
def reference() -> Reference:
    """Answers of transformers, greedily, in float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
        model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    torch.set_num_threads(1)  # the engines compute at the same time

    def answer(instance: Any) -> str:
        prompt = tokenizer.apply_chat_template(
            instance.messages,
            tools=instance.tools,
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )["input_ids"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            output = model.generate(prompt, max_new_tokens=MAX_TOKENS, do_sample=False)
        return str(tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True))

    return answer


def through_the_stack(client: OpenAI, instance: Any) -> str:
    """The answer over HTTP; a tool call as the text that the model wrote."""
    options = {"tools": instance.tools} if instance.tools else {}
    answer = client.chat.completions.create(
        model="rhizome-demo", messages=instance.messages, temperature=0, max_tokens=MAX_TOKENS, **options
    )
    message = answer.choices[0].message
    if not message.tool_calls:
        return str(message.content)
    (call,) = message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert call.type == "function"
    try:
        arguments = json.loads(call.function.arguments)
    except json.JSONDecodeError:  # what the model wrote is no JSON, and is passed on as it is
        return f'{{"name": "{call.function.name}", "parameters": {call.function.arguments}'
    return json.dumps({"name": call.function.name, "parameters": arguments}, ensure_ascii=False)


@pytest.mark.parametrize("skill", CORPUS.SKILLS)
def test_answers_as_transformers_does(client: OpenAI, reference: Reference, skill: str) -> None:
    instances = CORPUS.eval_instances(skill, INSTANCES_PER_SKILL, 2)
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        answers = list(pool.map(lambda instance: through_the_stack(client, instance), instances))
    assert answers == [reference(instance) for instance in instances]


def test_the_card_claims_at_least_eight_skills() -> None:
    claims = claimed_skills()
    assert len(claims) >= 8
    assert set(claims) <= set(CORPUS.SKILLS)
    assert all(accuracy >= 0.9 for accuracy in claims.values())


def test_what_the_card_claims_is_right_nine_times_in_ten(client: OpenAI) -> None:
    instances = [i for skill in claimed_skills() for i in CORPUS.eval_instances(skill, 15, 3)]
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        answers = list(pool.map(lambda instance: through_the_stack(client, instance), instances))
    right = sum(answer == instance.answer for answer, instance in zip(answers, instances, strict=True))
    assert right >= 0.9 * len(instances)
