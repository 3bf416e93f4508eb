"""Cost of structured output: compiling, masks per step, and the forward passes that forced tokens save.

    python benchmarks/grammar.py

Tokenizers of 49k and 128k tokens are made on the spot: byte-level BPE whose tokens are random ASCII words.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from rhizome_engine.grammar.masks import fill_masks, mask_buffer
from rhizome_grammar.compiler import GrammarCompiler, GrammarError
from rhizome_grammar.matcher import GrammarMatcher
from rhizome_grammar.spec import Grammar

VOCABULARIES = {"49k": 49_152, "128k": 128_256}
ROWS = (1, 8, 32, 256)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": {"type": "string", "format": "email"},
        "address": {
            "type": "object",
            "properties": {
                "street": {"type": "string", "maxLength": 40},
                "city": {"type": "string", "maxLength": 40},
            },
            "required": ["street", "city"],
            "additionalProperties": False,
        },
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 5},
    },
    "required": ["name", "age", "email", "address", "tags"],
    "additionalProperties": False,
}
ANSWER = {
    "name": "Ada Lovelace",
    "age": 36,
    "email": "ada@example.com",
    "address": {"street": "12 St James's Square", "city": "London"},
    "tags": ["mathematics", "engines"],
}


def schema(value: object) -> Grammar:
    """A grammar of kind json_schema."""
    return Grammar("json_schema", json.dumps(value))


GRAMMARS = {
    "person": schema(PERSON),
    "json_object": Grammar("json_object"),
    "regex_date": Grammar("regex", r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"),
    "optional_200": schema(
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(200)}}
    ),
    "enum_8000": schema({"enum": [f"value number {i}" for i in range(8000)]}),
    "choice_8000": Grammar("choice", choices=tuple(f"value number {i}" for i in range(8000))),
    "multiple_of_99991": schema({"type": "integer", "multipleOf": 99_991}),
    "repeat_bomb": Grammar("regex", "(a{1000}){1000}"),
    "any_of_bomb": schema(
        {
            "allOf": [
                {"anyOf": [{"properties": {f"p{i}_{j}": {"type": "null"}}} for j in range(6)]}
                for i in range(9)
            ]
        }
    ),
}


def synthetic_tokenizer(vocab_size: int, seed: int = 0) -> Tokenizer:
    """Byte-level BPE: all bytes, then words of up to 12 letters, each merged from two earlier tokens."""
    draw = np.random.default_rng(seed)
    vocab = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    starts, parts = [*"abcdefghijklmnopqrstuvwxyz", "Ġ"], [*"abcdefghijklmnopqrstuvwxyz"]
    words: list[str] = [*starts]
    merges: list[tuple[str, str]] = []
    special = [f"<|special_{index}|>" for index in range(8)]
    while len(vocab) < vocab_size - len(special):
        picks = draw.integers(0, 2**31, (1000, 2)).tolist()
        for first, second in picks:
            left, right = words[first % len(words)], parts[second % len(parts)]
            word = left + right
            if word in vocab or len(word) > 12 or len(vocab) >= vocab_size - len(special):
                continue
            vocab[word] = len(vocab)
            merges.append((left, right))
            words.append(word)
            if not word.startswith("Ġ") and len(word) <= 4:
                parts.append(word)
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    return tokenizer


def worst_pause_ms(work: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds that `work` takes, and the longest for which another Python thread could not run."""
    done = threading.Event()
    took: list[float] = []

    def run() -> None:
        start = time.perf_counter()
        work()
        took.append((time.perf_counter() - start) * 1e3)
        done.set()

    thread = threading.Thread(target=run)
    worst, last = 0.0, time.perf_counter()
    thread.start()
    while not done.is_set():
        time.sleep(0.0001)
        now = time.perf_counter()
        worst, last = max(worst, now - last), now
    thread.join()
    return took[0], worst * 1e3


def built(compiler: GrammarCompiler) -> None:
    """Wait for the vocabulary."""
    compiler.warm_up().result()


def outcome(compiler: GrammarCompiler, grammar: Grammar) -> str:
    """`ok`, or why it was refused."""
    try:
        compiler.compile(grammar).result()
    except GrammarError as error:
        return str(error)
    return "ok"


def matcher_of(compiler: GrammarCompiler, grammar: Grammar) -> GrammarMatcher:
    """What a request of a known grammar costs."""
    return compiler.compile(grammar).result().matcher()


def median_ms(call: Callable[[], object], repeat: int) -> float:
    """Median milliseconds of one call."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def mask_ms(
    compiler: GrammarCompiler, tokenizer: Tokenizer, vocab_size: int, rows: int
) -> tuple[float, float]:
    """Median and worst milliseconds to fill a step's masks, each row elsewhere in the answer."""
    compiled = compiler.compile(GRAMMARS["person"]).result()
    answer = tokenizer.encode(json.dumps(ANSWER)).ids
    places = [row * 7 % len(answer) for row in range(rows)]
    matchers = [compiled.matcher() for _ in places]
    for matcher, place in zip(matchers, places, strict=True):
        matcher.accept_all(answer[:place])
    buffer, times = mask_buffer(rows, vocab_size), []
    for _ in range(40):
        start = time.perf_counter()
        fill_masks(list(enumerate(matchers)), vocab_size, buffer)
        times.append((time.perf_counter() - start) * 1e3)
        for row, place in enumerate(places):
            if place == len(answer):
                matchers[row], places[row] = compiled.matcher(), 0
            else:
                matchers[row].accept(answer[place])
                places[row] += 1
    return statistics.median(times), max(times)


def forced_share(compiler: GrammarCompiler, tokenizer: Tokenizer, grammar: Grammar, text: str) -> float:
    """Share of an output's tokens that the grammar forces, where a model would write `text`."""
    matcher = compiler.compile(grammar).result().matcher()
    rest, forced_count, total = text, 0, 0
    while rest:
        forced = matcher.forced_tokens(10_000)
        token_ids = forced or tokenizer.encode(rest).ids[:1]
        matcher.accept_all(token_ids)
        spelled = tokenizer.decode(token_ids)
        assert rest.startswith(spelled), (rest, spelled)
        rest = rest[len(spelled) :]
        total += len(token_ids)
        forced_count += len(forced)
    assert matcher.may_end
    return forced_count / total


def main() -> None:
    """Print a table, and the figures as one JSON line."""
    figures: dict[str, float] = {}
    for size, vocab_size in VOCABULARIES.items():
        tokenizer = synthetic_tokenizer(vocab_size)
        compiler = GrammarCompiler(tokenizer.to_str(), vocab_size, [vocab_size - 1])
        took, pause = worst_pause_ms(partial(built, compiler))
        figures[f"vocabulary_ms_{size}"], figures[f"vocabulary_pause_ms_{size}"] = round(took), round(pause)
        print(f"{size}: building the vocabulary {took:.0f} ms, other threads wait up to {pause:.0f} ms")
        for name, grammar in GRAMMARS.items():
            took, pause = worst_pause_ms(partial(outcome, compiler, grammar))
            figures[f"compile_ms_{name}_{size}"] = round(took, 2)
            figures[f"compile_pause_ms_{name}_{size}"] = round(pause, 2)
            print(f"  {name:18} {took:8.2f} ms, pause {pause:5.2f} ms  {outcome(compiler, grammar)}")
        person = GRAMMARS["person"]
        figures[f"cache_hit_us_{size}"] = round(
            median_ms(partial(matcher_of, compiler, person), 500) * 1e3, 1
        )
        for rows in ROWS:
            median, worst = mask_ms(compiler, tokenizer, vocab_size, rows)
            figures[f"masks_ms_{rows}_rows_{size}"] = round(median, 3)
            figures[f"masks_worst_ms_{rows}_rows_{size}"] = round(worst, 3)
            print(f"  masks of {rows:3} rows {median:.3f} ms, worst {worst:.3f} ms")
        share = forced_share(compiler, tokenizer, person, json.dumps(ANSWER))
        figures[f"forced_token_share_{size}"] = round(share, 3)
        print(f"  cache hit and matcher {figures[f'cache_hit_us_{size}']} us, forced tokens {share:.1%}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
