"""The bundled model's skills through the whole stack, many at once: a scheduling bug is a wrong answer."""

from __future__ import annotations

import importlib
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import OpenAI

from rhizome_testing.running_stack import DEMO_MODEL

INSTANCES_PER_SKILL = 20
CONCURRENCY = 12


def claimed_skills() -> dict[str, float]:
    """Skill and accuracy from the last JSON line of the model card."""
    found = re.findall(r"^\| `(\w+)` \|.*\| ([\d.]+) ?% \|$", (DEMO_MODEL / "README.md").read_text(), re.M)
    return {skill: float(percent) / 100 for skill, percent in found}


def eval_instances(skill: str) -> list[Any]:
    sys.path.insert(0, str(DEMO_MODEL))
    try:
        return list(importlib.import_module("corpus").eval_instances(skill, INSTANCES_PER_SKILL, 2))
    finally:
        sys.path.remove(str(DEMO_MODEL))


def same_call(content: str, calls: Any) -> bool:
    """Whether the tool call is the one that the corpus expects."""
    expected = json.loads(content)
    if len(calls) != 1 or calls[0].function.name != expected["name"]:
        return False
    return bool(json.loads(calls[0].function.arguments) == expected["parameters"])


def correct(client: OpenAI, instance: Any) -> bool:
    options = {"tools": instance.tools} if instance.tools else {}
    answer = client.chat.completions.create(
        model="rhizome-demo", messages=instance.messages, temperature=0, max_tokens=400, **options
    )
    message = answer.choices[0].message
    if message.tool_calls:
        return same_call(instance.answer, message.tool_calls)
    return message.content == instance.answer


def test_the_card_claims_at_least_eight_skills() -> None:
    claims = claimed_skills()
    assert len(claims) >= 8
    assert all(accuracy >= 0.9 for accuracy in claims.values())


@pytest.mark.parametrize("skill", claimed_skills())
def test_answers_as_the_card_claims(client: OpenAI, skill: str) -> None:
    """Four of twenty below the claim would be chance once in a thousand runs; more is a bug."""
    instances = eval_instances(skill)
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        right = sum(pool.map(lambda instance: correct(client, instance), instances))
    assert right >= round(claimed_skills()[skill] * len(instances)) - 3, f"{right} of {len(instances)}"
