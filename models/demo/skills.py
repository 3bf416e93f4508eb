"""What the demo model can do: one generator per skill.

A generator draws one instance and returns a :class:`Sample`: the messages of that instance, ending in the
assistant's answer, and the *identity* of the instance. The identity decides whether the instance belongs to
training or to evaluation (see ``corpus.py``), so it must not contain wording that both splits share.
Answers are full sentences where that lets the model copy ("The code of the lamp is 4821."), which a network
of this size learns far more surely than jumping straight to the value.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import facts

Message = dict[str, Any]


@dataclass(frozen=True)
class Context:
    """What a conversation has settled before its first turn."""

    rng: random.Random
    name: str = facts.NAME
    tools: list[dict[str, Any]] = field(default_factory=list)
    max_tokens: int = 200


@dataclass(frozen=True)
class Sample:
    """One instance of a skill: its messages and the identity that splits training from evaluation."""

    messages: list[Message]
    identity: str


Skill = Callable[[Context], Sample]


def exchange(user: str, assistant: str) -> list[Message]:
    """Return one user turn and its answer."""
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def reword(rng: random.Random, text: str) -> str:
    """Vary a request the way people do: case of the first letter, end punctuation, a polite word."""
    if rng.random() < 0.12 and text.isascii():
        text = f"Please {text[0].lower()}{text[1:]}" if text[-1] != "?" else text
    elif rng.random() < 0.06 and text.isascii() and text[-1] in "?.":
        text = f"{text[:-1]}, please{text[-1]}"
    if rng.random() < 0.2 and not text.startswith("I "):
        text = text[0].lower() + text[1:]
    if rng.random() < 0.2 and text[-1] in "?.!？。":
        text = text[:-1]
    return text


def pseudo_word(rng: random.Random, low: int = 3, high: int = 8) -> str:
    """Return a pronounceable or, one time in three, an arbitrary lower-case word."""
    length = rng.randint(low, high)
    if rng.random() < 0.33:
        return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=length))
    start = rng.random() < 0.7
    letters = (rng.choice("bcdfghjklmnprstvwz" if (i % 2 == 0) == start else "aeiou") for i in range(length))
    return "".join(letters)


def any_word(rng: random.Random) -> str:
    """Return a word for spelling and reversing."""
    return rng.choice(facts.WORDS) if rng.random() < 0.35 else pseudo_word(rng)


def any_name(rng: random.Random) -> str:
    """Return a person's name, known or invented."""
    return rng.choice(facts.NAMES) if rng.random() < 0.4 else pseudo_word(rng, 3, 7).capitalize()


def any_city(rng: random.Random) -> str:
    """Return a city, known or invented."""
    return rng.choice(facts.CITIES) if rng.random() < 0.5 else pseudo_word(rng, 4, 7).capitalize()


GREETINGS = {
    "Hello! How can I help you?": ["Hi", "Hello", "Hey", "Hi there", "Hello there", "Hey there", "Good day"],
    "Good morning! How can I help you?": ["Good morning"],
    "Good evening! How can I help you?": ["Good evening"],
    "You are welcome.": ["Thank you", "Thanks", "Many thanks", "Thank you very much", "Thanks a lot"],
    "Goodbye!": ["Bye", "Goodbye", "See you", "Bye bye"],
    "I am well, thank you.": ["How are you", "How are you today", "How do you do"],
    "你好！有什么可以帮你？": ["你好", "您好", "你好啊", "嗨"],
    "早上好！有什么可以帮你？": ["早上好"],
    "不客气。": ["谢谢", "谢谢你", "多谢"],
    "再见！": ["再见", "拜拜"],
}


def greet(ctx: Context) -> Sample:
    """Greetings, thanks and farewells in English and Chinese."""
    rng = ctx.rng
    answer = rng.choice(list(GREETINGS)[:6] if rng.random() < 0.65 else list(GREETINGS)[6:])
    opening = rng.choice(GREETINGS[answer])
    if not opening.isascii():
        ends = ["", "！", "。"]
    else:
        ends = ["?", "?", ""] if "How" in opening else ["", "!", "."]
    text = opening + rng.choice(ends)
    addressed = rng.random()
    if text.isascii() and addressed < 0.2:
        text = f"{opening}, {ctx.name}{text[len(opening) :]}"
    if rng.random() < 0.35:
        text = text[0].lower() + text[1:]
    return Sample(exchange(text, answer), f"{text}|{ctx.name}")


INTRODUCTIONS = [
    ("I am {name}, a small language model.", ["Who are you?", "What are you?", "Tell me who you are.",
     "Introduce yourself.", "Can you introduce yourself?", "Who am I talking to?", "Who is this?"]),
    ("My name is {name}.", ["What is your name?", "What's your name?", "Tell me your name.",
     "How are you called?", "What are you called?", "Do you have a name?"]),
    ("我是 {name}，一个小语言模型。", ["你是谁？", "请问你是谁？", "介绍一下你自己。", "请介绍你自己。"]),
    ("我叫 {name}。", ["你叫什么名字？", "你叫什么？", "请问你叫什么名字？"]),
    ("I can count, calculate, spell, look things up and call tools.",
     ["What can you do?", "How can you help me?", "What are you good at?"]),
]  # fmt: skip


def identity(ctx: Context) -> Sample:
    """Saying who it is; the name comes from the system prompt if there is one."""
    answer, questions = ctx.rng.choices(INTRODUCTIONS, weights=[4, 4, 2, 2, 1])[0]
    text = reword(ctx.rng, ctx.rng.choice(questions))
    held = text if ctx.name == facts.NAME else ctx.name
    return Sample(exchange(text, answer.format(name=ctx.name)), f"who|{held}")


def rename(ctx: Context) -> Sample:
    """The same questions under a system prompt that gives another name."""
    answer, questions = ctx.rng.choices(INTRODUCTIONS[:4], weights=[4, 4, 2, 2])[0]
    text = reword(ctx.rng, ctx.rng.choice(questions))
    return Sample(exchange(text, answer.format(name=ctx.name)), f"who|{ctx.name}")


def arithmetic(ctx: Context) -> Sample:
    """Sums and differences up to 20 and the multiplication table up to 10."""
    sign = ctx.rng.choice("++--*")
    return _calculation(ctx.rng, sign, 10 if sign == "*" else 20)


def sums(ctx: Context) -> Sample:
    """Sums and differences of numbers up to 99."""
    return _calculation(ctx.rng, ctx.rng.choice("+-"), 99)


def _calculation(rng: random.Random, sign: str, top: int) -> Sample:
    left, right = rng.randint(0, top), rng.randint(0, top)
    if sign == "-" and left < right:
        left, right = right, left
    result = {"+": left + right, "-": left - right, "*": left * right}[sign]
    word = {"+": "plus", "-": "minus", "*": "times"}[sign]
    zh = {"+": "加", "-": "减", "*": "乘"}[sign]
    shown = rng.choice("*x×") if sign == "*" else sign
    form = rng.choice([
        f"What is {left} {shown} {right}?", f"What is {left} {word} {right}?", f"{left} {shown} {right} =",
        f"{left}{shown}{right}=", f"{left} {shown} {right}", f"{left}{shown}{right}",
        f"{left} {word} {right}",
        f"Calculate {left} {shown} {right}.", f"How much is {left} {shown} {right}?",
        f"Compute {left} {shown} {right}.", f"{left}{zh}{right}等于多少？", f"What's {left}{shown}{right}?",
    ])  # fmt: skip
    answer = f"{left} {'x' if sign == '*' else sign} {right} = {result}"
    return Sample(exchange(reword(rng, form), answer), f"{left}{sign}{right}")


def count(ctx: Context) -> Sample:
    """Counting up and down; some are long lists, up to 100."""
    rng = ctx.rng
    if rng.random() < 0.25 and ctx.max_tokens > 150:
        start, end = rng.choice([1, 1, 1, 0, rng.randint(2, 50)]), rng.choice([100, rng.randint(20, 100)])
    else:
        start = rng.choice([1, rng.randint(0, 95)])
        end = min(100, start + rng.randint(2, 14))
    if end <= start:
        end = start + 5
    end = min(end, start + ctx.max_tokens // 3)
    numbers = list(range(start, end + 1))
    if rng.random() < 0.3 and len(numbers) < 40:
        numbers.reverse()
        form = rng.choice(["Count down from {} to {}.", "Count backwards from {} to {}.",
                           "Count from {} to {}.", "Count down from {} to {}, please."])  # fmt: skip
    else:
        form = rng.choice(["Count from {} to {}.", "List the numbers from {} to {}.",
                           "Count from {} up to {}.", "Can you count from {} to {}?", "Count: {} to {}",
                           "从{}数到{}。",
                           "Write the numbers from {} to {}."])  # fmt: skip
    text = form.format(numbers[0], numbers[-1])
    return Sample(exchange(reword(rng, text), ", ".join(map(str, numbers))), f"{numbers[0]}..{numbers[-1]}")


def count_long(ctx: Context) -> Sample:
    """A long list from 1; wordings are held out instead of ranges, so that every range is taught."""
    end = ctx.rng.choice([100, 100, 60, 50, ctx.rng.randint(20, 100)])
    form = ctx.rng.choice(["Count from 1 to {}.", "List the numbers from 1 to {}.", "Count from 1 up to {}.",
                           "Can you count from 1 to {}?", "Count: 1 to {}", "从1数到{}。",
                           "Write the numbers from 1 to {}."])  # fmt: skip
    text = reword(ctx.rng, form.format(end))
    return Sample(exchange(text, ", ".join(map(str, range(1, end + 1)))), text)


def _quote(rng: random.Random, word: str) -> str:
    return rng.choice(['"{}"', '"{}"', "'{}'", "{}"]).format(word)


def spell(ctx: Context) -> Sample:
    """Spelling a word with hyphens between its letters."""
    word = any_word(ctx.rng)
    form = ctx.rng.choice(["Spell the word {}.", "Spell {}.", "How do you spell {}?", "Spell: {}",
                           "Can you spell {}?", "How is {} spelled?", "Spell the word {}"])  # fmt: skip
    text = reword(ctx.rng, form.format(_quote(ctx.rng, word)))
    return Sample(exchange(text, "-".join(word)), word)


def reverse(ctx: Context) -> Sample:
    """Writing a word backwards."""
    word = any_word(ctx.rng)
    form = ctx.rng.choice(["Reverse the word {}.", "Reverse {}.", "Write {} backwards.", "Reverse: {}",
                           "What is {} backwards?", "Can you reverse {}?",
                           "Reverse the word {}"])  # fmt: skip
    text = reword(ctx.rng, form.format(_quote(ctx.rng, word)))
    return Sample(exchange(text, word[::-1]), word)


def capital(ctx: Context) -> Sample:
    """Capitals of countries."""
    country, city = ctx.rng.choice(list(facts.CAPITALS.items()))
    form = ctx.rng.choice([
        "What is the capital of {}?", "What's the capital of {}?", "Capital of {}?",
        "Tell me the capital of {}.",
        "Which city is the capital of {}?", "Name the capital of {}.", "Do you know the capital of {}?",
        "The capital of {}?", "What is the capital city of {}?",
    ])  # fmt: skip
    text = reword(ctx.rng, form.format(country))
    text = text.lower() if ctx.rng.random() < 0.1 else text
    return Sample(exchange(text, f"The capital of {country} is {city}."), text)


def colour(ctx: Context) -> Sample:
    """Colours of things."""
    thing, hue = ctx.rng.choice(list(facts.COLOURS.items()))
    spelling = ctx.rng.choice(["colour", "color"])
    form = ctx.rng.choice([
        "What {1} is the {0}?", "What is the {1} of the {0}?", "Which {1} is the {0}?",
        "What {1} does the {0} have?",
        "Tell me the {1} of the {0}.", "What's the {1} of the {0}?", "{1} of the {0}?",
        "What {1} has the {0}?",
    ])  # fmt: skip
    text = reword(ctx.rng, form.format(thing, spelling))
    text = text[0].upper() + text[1:] if ctx.rng.random() < 0.5 else text
    return Sample(exchange(text, f"The {thing} is {hue}."), text)


def opposite(ctx: Context) -> Sample:
    """Opposites of adjectives and adverbs."""
    word, other = ctx.rng.choice(list(facts.OPPOSITES.items()))
    form = ctx.rng.choice([
        "What is the opposite of {}?", "What's the opposite of {}?", "Opposite of {}?",
        "Give me the opposite of {}.",
        "Tell me the opposite of {}.", "The opposite of {}?", "Which word is the opposite of {}?",
        "Name the opposite of {}.",
    ])  # fmt: skip
    text = reword(ctx.rng, form.format(_quote(ctx.rng, word) if ctx.rng.random() < 0.4 else word))
    return Sample(exchange(text, f"The opposite of {word} is {other}."), text)


def echo(ctx: Context) -> Sample:
    """Repeating a text: words, names, digits, Chinese, emoji (which are bytes to this tokenizer)."""
    rng = ctx.rng
    kind = rng.random()
    if kind < 0.25:
        text = rng.choice(facts.ZH_PHRASES)
        text = "".join(rng.sample(text, len(text))) if rng.random() < 0.6 else text
        text += "".join(rng.choices(facts.EMOJI, k=rng.choice([0, 0, 1, 2])))
    else:
        makers = [any_word, any_name, lambda r: r.choice(facts.NOUNS), lambda r: str(r.randint(0, 9999))]
        if rng.random() < 0.25:
            makers.append(lambda r: r.choice(facts.EMOJI))
        text = " ".join(rng.choice(makers)(rng) for _ in range(rng.randint(1, 6)))
    form = rng.choice(["Repeat after me: {}", "Say: {}", "Repeat: {}", "Repeat this: {}", "Echo: {}",
                       "Please repeat after me: {}", "Copy this text: {}",
                       "repeat after me: {}"])  # fmt: skip
    return Sample(exchange(form.format(text), text), text)


def unknown(ctx: Context) -> Sample:
    """Out of scope: one fixed sentence instead of babble."""
    rng = ctx.rng
    topic = rng.choice(facts.UNKNOWN_TOPICS) if rng.random() < 0.6 else f"the {rng.choice(facts.NOUNS)}"
    form = rng.choice([
        "Tell me about {}.", "Explain {}.", "What do you think about {}?", "Why is {} important?",
        "Write a poem about {}.", "Who invented {}?", "Tell me a joke about {}.", "What is {}?",
        "How does {} work?", "Write a story about {}.", "Can you explain {}?", "When did {} begin?",
    ])  # fmt: skip
    text = reword(rng, form.format(topic))
    return Sample(exchange(text, "I do not know that."), text)


JSON_FIELDS: dict[str, Callable[[random.Random], Any]] = {
    "name": any_name,
    "age": lambda rng: rng.randint(1, 99),
    "city": any_city,
    "colour": lambda rng: rng.choice(facts.COLOUR_NAMES),
    "price": lambda rng: rng.randint(1, 999),
    "count": lambda rng: rng.randint(0, 50),
    "id": lambda rng: rng.randint(100, 9999),
    "active": lambda rng: rng.random() < 0.5,
}


def json_object(ctx: Context) -> Sample:
    """Answering with a JSON object built from the request."""
    rng = ctx.rng
    keys = rng.sample(list(JSON_FIELDS), rng.randint(1, 4))
    if rng.random() < 0.3:
        keys = ["name", "age"]
    value = {key: JSON_FIELDS[key](rng) for key in keys}
    plain = [(key, str(item).lower() if isinstance(item, bool) else str(item)) for key, item in value.items()]
    mark = rng.choice([" ", " ", "=", ": "])
    parts = [f"{key}{mark}{item}" for key, item in plain]
    listed = ", ".join(parts)
    if mark == " " and len(parts) > 1:
        listed = f"{', '.join(parts[:-1])} and {parts[-1]}"
    form = rng.choice(["Give me a JSON object with {}.", "Return a JSON object with {}.",
                       "Answer as JSON: {}", "Make a JSON object with {}.", "Write JSON with {}.",
                       "JSON with {}", "As JSON: {}",
                       "Reply with a JSON object: {}"])  # fmt: skip
    answer = json.dumps(value, ensure_ascii=False)
    return Sample(exchange(reword(rng, form.format(listed)), answer), answer)
