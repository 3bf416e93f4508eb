"""Skills whose answer lies far back: earlier in the conversation or in a long prompt.

These are the ones that make a cache or scheduling bug visible, since the answer depends on exact tokens that
may be a thousand positions away.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import facts
from skills import Context, Message, Sample, any_city, any_name, exchange, pseudo_word, reword

_PERSONAL: list[tuple[list[str], str, list[str], str, Callable[[random.Random], str]]] = [
    (["My name is {}.", "I am {}.", "Hi, my name is {}.", "Hello, I am {}.", "Call me {}."],
     "Nice to meet you, {}.", ["What is my name?", "Who am I?", "Tell me my name.", "What's my name?",
     "Do you remember my name?"], "Your name is {}.", any_name),
    (["I live in {}.", "My home is in {}.", "I am from {}."], "I hear {} is nice.",
     ["Where do I live?", "In which city do I live?", "What is my city?"], "You live in {}.", any_city),
    (["My favourite colour is {}.", "I like the colour {}.", "My favorite color is {}."],
     "{} is a nice colour.",
     ["What is my favourite colour?", "Which colour do I like?", "What is my favorite color?"],
     "Your favourite colour is {}.", lambda rng: rng.choice(facts.COLOUR_NAMES)),
    (["I am {} years old.", "My age is {}.", "I'm {} years old."], "You are {} years old.",
     ["How old am I?", "What is my age?", "Tell me my age."], "You are {} years old.",
     lambda rng: str(rng.randint(5, 99))),
    (["My lucky number is {}.", "My number is {}."], "I will remember {}.",
     ["What is my lucky number?", "Which number is mine?", "What is my number?"], "Your number is {}.",
     lambda rng: str(rng.randint(10, 9999))),
    (["My dog is called {}.", "I have a dog called {}.", "My dog's name is {}."], "{} is a nice name.",
     ["What is my dog called?", "What is the name of my dog?", "What is my dog's name?"],
     "Your dog is called {}.", any_name),
    (["我叫{}。", "我的名字是{}。", "你好，我叫{}。"], "很高兴认识你，{}。",
     ["我叫什么名字？", "我叫什么？", "你记得我的名字吗？"], "你叫{}。",
     lambda rng: rng.choice(facts.CHINESE_NAMES)),
]  # fmt: skip

Filler = Callable[[], list[Message]]


def memory(ctx: Context, filler: Filler | None = None) -> Sample:
    """One to three personal facts, perhaps unrelated turns, then questions about them."""
    rng = ctx.rng
    picked = rng.sample(_PERSONAL, rng.randint(1, 3))
    values = [entry[4](rng) for entry in picked]
    messages: list[Message] = []
    for (statements, reply, *_), value in zip(picked, values, strict=True):
        text = reply.format(value)
        messages += exchange(rng.choice(statements).format(value), text[0].upper() + text[1:])
        if filler is not None and rng.random() < 0.35:
            messages += filler()
    order = list(range(len(picked)))
    rng.shuffle(order)
    for index in order:
        _, _, questions, answer, _ = picked[index]
        messages += exchange(reword(rng, rng.choice(questions)), answer.format(values[index]))
    return Sample(messages, "|".join(values))


def _sentence(rng: random.Random) -> str:
    """One sentence of scenery between the facts of a long prompt."""
    adjective, other = rng.sample(facts.ADJECTIVES, 2)
    noun, place = rng.sample(facts.NOUNS, 2)
    return rng.choice([
        f"The {adjective} {noun} {rng.choice(facts.VERBS)} {rng.choice(facts.PLACES)} the {place}.",
        f"There is a {adjective} {noun} {rng.choice(facts.PLACES)} the {other} {place}.",
        f"We saw a {noun} and a {place}.",
        f"Nobody saw the {adjective} {noun}.",
    ])  # fmt: skip


ATTRIBUTES = ["code", "code", "number", "price", "password"]


def _fact_list(rng: random.Random, tokens: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Return sentences of about ``tokens`` tokens in all, and the (subject, value) facts among them."""
    lines: list[str] = []
    known: list[tuple[str, str]] = []
    subjects = [f"the {noun}" for noun in facts.NOUNS]
    rng.shuffle(subjects)
    taken: set[str] = set()
    attribute = rng.choice(ATTRIBUTES)
    used, share = 0, rng.choice([0.3, 0.5, 0.8])
    while used < tokens or not known:
        if rng.random() < share and subjects:
            subject = subjects.pop() if rng.random() < 0.8 else any_name(rng)
            if subject in taken:
                continue
            taken.add(subject)
            value = str(rng.randint(1000, 9999)) if rng.random() < 0.8 else pseudo_word(rng, 4, 6)
            known.append((f"{attribute} of {subject}", value))
            lines.append(f"The {attribute} of {subject} is {value}.")
            used += 12
        else:
            lines.append(_sentence(rng))
            used += 9
    return lines, known


_PREFACES = [
    "Remember these facts.", "Here is a list.", "Read this text.", "Here are some facts.", "Note this:", "",
]  # fmt: skip


_LOOKUP_QUESTIONS = [
    "What is the {}?", "What is the {}?", "What's the {}?", "Tell me the {}.", "The {}?",
]  # fmt: skip


def lookup(ctx: Context) -> Sample:
    """A text with facts of the form "The code of the lamp is 4821.", then questions about some of them."""
    rng = ctx.rng
    budget = max(30, ctx.max_tokens - 70) if ctx.max_tokens > 400 else rng.randint(25, ctx.max_tokens - 40)
    lines, known = _fact_list(rng, budget)
    separator = rng.choice([" ", " ", " ", "\n"])
    text = separator.join(([preface] if (preface := rng.choice(_PREFACES)) else []) + lines)
    asked = rng.sample(known, min(len(known), 8 if ctx.max_tokens > 400 else rng.randint(1, 3)))
    messages: list[Message] = []
    placed = rng.choices(["system", "before", "with"], [2, 2, 6])[0]
    if placed == "system":
        messages.append({"role": "system", "content": text})
    elif placed == "before":
        messages += exchange(text, "I will remember that.")
    for index, (subject, value) in enumerate(asked):
        form = rng.choice(_LOOKUP_QUESTIONS)
        question = reword(rng, form.format(subject))
        if index == 0 and placed == "with":
            question = f"{text}{rng.choice([' ', separator])}{question[0].upper()}{question[1:]}"
        messages += exchange(question, f"The {subject} is {value}.")
    return Sample(messages, "|".join(f"{subject}={value}" for subject, value in asked))
