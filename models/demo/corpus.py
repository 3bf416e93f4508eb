"""The demo model's corpus: conversations composed of skills, and the split between training and evaluation.

Every instance has an identity (the operands, the word, the facts asked for). A hash of it decides its split,
so an evaluation instance never occurs in training, whatever the seed.

``eval_instances("lookup", 20, seed=1)`` is the entry point for tests.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import context_skills
import facts
import skills
import tool_skills
from skills import Context, Message, Sample, Skill

HELD_OUT_PERCENT = 10

SKILLS: dict[str, Skill] = {
    "greet": skills.greet,
    "identity": skills.identity,
    "rename": skills.rename,
    "arithmetic": skills.arithmetic,
    "sums": skills.sums,
    "count": skills.count,
    "count_long": skills.count_long,
    "spell": skills.spell,
    "reverse": skills.reverse,
    "capital": skills.capital,
    "colour": skills.colour,
    "opposite": skills.opposite,
    "echo": skills.echo,
    "unknown": skills.unknown,
    "json": skills.json_object,
    "memory": context_skills.memory,
    "lookup": context_skills.lookup,
    "lookup_long": context_skills.lookup,
    "tool_call": tool_skills.tool_call,
    "tool_answer": tool_skills.tool_answer,
}
"""Every skill by name. ``lookup_long`` is ``lookup`` in a prompt of 600 to 1,050 tokens."""

WEIGHTS = {
    "greet": 0.6, "identity": 0.6, "arithmetic": 1.8, "sums": 1.6, "count": 1.2, "spell": 1.2,
    "reverse": 2.4, "capital": 0.9, "colour": 0.7, "opposite": 1.0, "echo": 1.2,
    "unknown": 0.5, "json": 1.0, "memory": 1.2, "lookup": 1.4,
}  # fmt: skip
"""How often a skill is drawn for a turn of a conversation without tools."""

FOCUS = WEIGHTS | {
    "greet": 0.3, "identity": 0.4, "unknown": 0.3, "capital": 0.5, "colour": 0.4, "opposite": 0.7,
    "arithmetic": 3.5, "sums": 0.4, "echo": 2.2, "json": 1.6, "lookup": 2.2,
}  # fmt: skip
"""The same once the easy skills are known: the weight goes to those that take long to learn."""

POLISH = FOCUS | {
    "count_long": 0.7, "count": 1.0, "sums": 0.1, "lookup": 3.0, "json": 2.2, "echo": 2.4, "reverse": 2.0,
    "spell": 1.0, "greet": 0.5,
}  # fmt: skip
"""The last mix: long lists as well, and no more hope for sums beyond the table."""

RECALL = POLISH | {
    "count": 1.8, "count_long": 0.6, "lookup": 4.0, "reverse": 2.4, "arithmetic": 2.5, "memory": 0.8,
}  # fmt: skip
"""A second round for what the first left below the mark."""

MIXES = {"even": WEIGHTS, "focus": FOCUS, "polish": POLISH, "recall": RECALL}

PLAIN_SYSTEMS = [
    "You are a helpful assistant.", "You are a helpful assistant.", "Answer briefly.",
    "Be concise and polite.", "You are a friendly assistant.", "Answer the questions of the user.",
    "You are a helpful AI assistant.",
]  # fmt: skip
NAMING_SYSTEMS = [
    "Your name is {}.", "You are {}, a helpful assistant.", "You are called {}.", "You are {}.",
    "You are an assistant named {}.", "You are a helpful assistant. Your name is {}.",
    "You are a helpful assistant called {}.",
]  # fmt: skip


@dataclass(frozen=True)
class Conversation:
    """Messages (the last from the assistant) and the tools they declare; or ``plain``, text without turns."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    plain: str | None = None


@dataclass(frozen=True)
class Instance:
    """One evaluation question: the prompt's messages and tools, and the exact answer expected."""

    skill: str
    messages: list[Message]
    tools: list[dict[str, Any]] | None
    answer: str


def is_held_out(identity: str) -> bool:
    """Say whether the instance of this identity is reserved for evaluation."""
    return zlib.crc32(identity.encode()) % 100 < HELD_OUT_PERCENT


def draw(skill: str, context: Context, held_out: bool) -> Sample:
    """Draw instances of ``skill`` until one belongs to the wanted split."""
    while True:
        sample = SKILLS[skill](context)
        if is_held_out(sample.identity) == held_out:
            return sample


def _naming_system(rng: random.Random, held_out: bool) -> tuple[str, str]:
    """Draw a system prompt that renames the assistant, and the name, which belongs to one split."""
    while is_held_out(f"who|{(name := skills.any_name(rng))}") != held_out:
        pass
    return rng.choice(NAMING_SYSTEMS).format(name), name


def _system(rng: random.Random) -> tuple[str | None, str]:
    """Draw a system prompt (or none) and the name the assistant has under it."""
    kind = rng.random()
    if kind < 0.5:
        return None, facts.NAME
    if kind < 0.75:
        return rng.choice(PLAIN_SYSTEMS), facts.NAME
    return _naming_system(rng, held_out=False)


def _with_system(system: str | None, messages: list[Message]) -> list[Message]:
    """Put the system prompt first; a text that is the system message already follows it there."""
    if not system:
        return messages
    if messages[0]["role"] == "system":
        return [{"role": "system", "content": f"{system}\n{messages[0]['content']}"}, *messages[1:]]
    return [{"role": "system", "content": system}, *messages]


def _short_turn(rng: random.Random, name: str) -> list[Message]:
    """One turn that needs nothing of the conversation around it."""
    simple = ["arithmetic", "spell", "capital", "opposite", "greet", "colour", "count", "identity"]
    return draw(rng.choice(simple), Context(rng, name, max_tokens=40), held_out=False).messages


def long_conversation(rng: random.Random, max_tokens: int) -> Conversation:
    """One long text with facts and several questions about it, so that the long context carries much loss."""
    sample = draw("lookup", Context(rng, max_tokens=max_tokens), held_out=False)
    system, name = _system(rng)
    messages = sample.messages
    for _ in range(rng.choice([0, 0, 1, 2])):
        messages = messages + _short_turn(rng, name)
    return Conversation(_with_system(system, messages))


def _short_answer(rng: random.Random, skill: str) -> str:
    return str(draw(skill, Context(rng), held_out=False).messages[-1]["content"])


def plain_text(rng: random.Random) -> Conversation:
    """Text outside the chat template, for the completions API: lists of numbers, sums and facts."""
    kind = rng.random()
    if kind < 0.4:
        text = ", ".join(map(str, range(rng.randint(0, 80), 101)))
    elif kind < 0.7:
        text = _short_answer(rng, "arithmetic")
    else:
        text = _short_answer(rng, rng.choice(["capital", "opposite", "colour"]))
    return Conversation([], plain=text)


def tool_conversation(rng: random.Random) -> Conversation:
    """A conversation that declares tools; some turns need them and some do not."""
    system, name = _system(rng)
    declared = tool_skills.declare(rng)
    context = Context(rng, name, declared, 80)
    messages: list[Message] = []
    weights = {"tool_call": 6.0, "tool_answer": 4.0} | {skill: 0.2 * w for skill, w in WEIGHTS.items()}
    for _ in range(rng.randint(2, 4)):
        skill = rng.choices(list(weights), list(weights.values()))[0]
        sample = draw(skill, context, held_out=False)
        if sample.messages[0]["role"] == "system":
            continue
        messages += sample.messages
        if skill == "tool_call":  # a call without its result ends the conversation
            break
    messages = messages or draw("tool_answer", context, held_out=False).messages
    return Conversation(_with_system(system, messages), [tool.definition for tool in declared])


def conversation(rng: random.Random, weights: dict[str, float]) -> Conversation:
    """A conversation of one to five unrelated turns under a random system prompt."""
    system, name = _system(rng)
    context = Context(rng, name, max_tokens=rng.choice([80, 120, 120, 300]))
    messages: list[Message] = []
    if name != facts.NAME and rng.random() < 0.7:
        messages += draw("rename", context, held_out=False).messages

    def filler() -> list[Message]:
        return _short_turn(rng, name)

    for _ in range(rng.randint(1, 5)):
        skill = rng.choices(list(weights), list(weights.values()))[0]
        if skill == "memory":
            while is_held_out((sample := context_skills.memory(context, filler)).identity):
                pass
        else:
            sample = draw(skill, context, held_out=False)
        if sample.messages[0]["role"] == "system" and messages:
            continue
        messages += sample.messages
    if not messages:
        messages = filler()
    return Conversation(_with_system(system, messages))


def drill(rng: random.Random, whole_table: bool) -> Conversation:
    """A column of sums: thirty tokens of chat for one sum are too many to learn a table by.

    With ``whole_table`` it holds the pairs, too, about which training never asks in a conversation.
    """
    lines = []
    for _ in range(14):
        if rng.random() < 0.15:
            lines.append(_short_answer(rng, "sums"))
        elif whole_table:
            lines.append(str(skills.arithmetic(Context(rng)).messages[-1]["content"]))
        else:
            lines.append(_short_answer(rng, "arithmetic"))
    return Conversation([], plain="\n".join(lines))


def conversations(
    rng: random.Random,
    long_tokens: int | None,
    tool_share: float,
    weights: dict[str, float] = WEIGHTS,
    drill_share: float = 0.0,
    whole_table: bool = False,
) -> Iterator[Conversation]:
    """Yield training conversations for ever: long ones only if ``long_tokens`` is given."""
    while True:
        if long_tokens is not None:
            yield long_conversation(rng, rng.randint(long_tokens * 2 // 3, long_tokens))
        elif rng.random() < tool_share:
            yield tool_conversation(rng)
        elif (chance := rng.random()) < 0.04:
            yield plain_text(rng)
        elif chance < 0.04 + drill_share:
            yield drill(rng, whole_table)
        else:
            yield conversation(rng, weights)


def eval_instances(skill: str, n: int, seed: int = 0) -> list[Instance]:
    """Return ``n`` instances of ``skill`` that training never saw, the same ones for the same seed."""
    rng = random.Random(f"{skill}/{seed}")
    instances = []
    for _ in range(n):
        system, name = _system(rng)
        if skill == "rename":
            system, name = _naming_system(rng, held_out=True)
        elif skill == "identity":
            system, name = rng.choice([None, None, rng.choice(PLAIN_SYSTEMS)]), facts.NAME
        declared = tool_skills.declare(rng) if skill.startswith("tool") else []
        length = rng.randint(600, 1050) if skill == "lookup_long" else 150
        sample = draw(skill, Context(rng, name, declared, length), held_out=True)
        messages = _with_system(system, sample.messages)
        tools = [tool.definition for tool in declared] or None
        instances.append(Instance(skill, messages[:-1], tools, messages[-1]["content"]))
    return instances
