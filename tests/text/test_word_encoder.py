"""Tokenising by known words, held to what the tokenizers package makes of the same text."""

import random
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.text.chat_tokenizers import DEMO
from tests.text.chat_tokenizers import TOKENIZERS as OTHERS
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from rhizome_text import word_encoder
from rhizome_text.word_encoder import WordEncoder
from rhizome_text.word_pattern import (
    GPT2_PATTERN,
    UnknownPatternError,
    ascii_pattern,
    begins_words_at_spaces,
)

PATTERNS = {
    "gpt-2": GPT2_PATTERN,
    "llama-3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen-2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "escaped": r"[!\"\#\$%\&'\(\)\*\+,\-\./:;<=>\?@\[\]\^_`\{\|\}\~][A-Za-z]+|[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s+|\p{N}|[^\s\p{L}\p{N}\p{P}\p{S}]",
    "demo": r"\n\n| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s",
}
CORPUS = [
    "The traveller asks which road leads to the old harbour; it's 123 steps, they'LL!\n\n\tfoo(bar) == []",
    "def f(x):\n    return {'a': x ** 2}\r\n<|user|> hi <|end|> https://example.org/a_b-c?d=1&e=%20",
] * 3
SPECIAL = ["<|user|>", "<|end|>", "<|end|>>", "<think>"]


def _byte_level(pattern: str, **flags: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, **flags) for text in SPECIAL])
    return tokenizer


TOKENIZERS = {name: _byte_level(pattern) for name, pattern in PATTERNS.items()}
TOKENIZERS["the demo itself"] = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
TOKENIZERS["normalized to NFC"] = _byte_level(PATTERNS["qwen-2"])
TOKENIZERS["normalized to NFC"].normalizer = normalizers.NFC()
ENCODERS = {name: WordEncoder(tokenizer) for name, tokenizer in TOKENIZERS.items()}

PIECES = st.sampled_from(
    [
        *SPECIAL,
        *CORPUS,
        "<|",
        "|>",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\x1c",
        "\x85",
        "'s",
        "'LL",
        "12",
        "é",
        "ſ",
    ]
)
TEXTS = st.lists(st.one_of(PIECES, st.text(st.characters(max_codepoint=127), max_size=6)), max_size=12)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=300, deadline=None)
@given(pieces=TEXTS)
@example(pieces=["a!!<|end|>>"])
@example(pieces=[" \x1c\x1f\x0b\x0c \t x"])
def test_the_ids_are_those_of_the_tokenizer(name: str, pieces: list[str]) -> None:
    text = "".join(pieces)
    found = ENCODERS[name].encode(text)
    if found is None:  # or a word is too long to be kept
        assert not text.isascii() or re.search(r"[^\s]{33}|\s{33}", text)
    else:
        assert found == TOKENIZERS[name].encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", PATTERNS)
@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(max_codepoint=127), max_size=40))
def test_a_translated_pattern_cuts_as_the_package_does(name: str, text: str) -> None:
    split = pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated")
    assert ascii_pattern(PATTERNS[name]).findall(text) == [piece for piece, _ in split.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    "pattern",
    [
        *(r"(a)|.", r"^a", r"a$", r"\p{Greek}", r"\P{L}", r"\w+", r"\d", r"[a[bc]]", r"[a-z&&b]", r"a{2}+"),
        *(r"(?<=a)b", r"(?<n>a)", r"\bx", r"[[:alpha:]]", "a.b", "é", r"\h", "(", r"(?m:a)", "a#b", "a\\"),
    ],
)
def test_patterns_that_may_mean_something_else_are_refused(pattern: str) -> None:
    with pytest.raises(UnknownPatternError):
        ascii_pattern(pattern)


def _changed(**parts: object) -> Tokenizer:
    tokenizer = _byte_level(PATTERNS["gpt-2"])
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


def _merged_with_dropout() -> Tokenizer:
    tokenizer = _byte_level(PATTERNS["gpt-2"])
    tokenizer.model.dropout = 0.1
    return tokenizer


def _truncating() -> Tokenizer:
    tokenizer = _byte_level(PATTERNS["gpt-2"])
    tokenizer.enable_truncation(4)
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer",
    [
        *(OTHERS[name] for name in ("metaspace, first", "prepended", "stripping", "unigram", "normalized")),
        _byte_level(PATTERNS["gpt-2"], lstrip=True),
        _byte_level(PATTERNS["gpt-2"], single_word=True),
        _changed(normalizer=normalizers.Lowercase()),
        _changed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
        _changed(pre_tokenizer=pre_tokenizers.Whitespace()),
        _changed(pre_tokenizer=pre_tokenizers.Split(" ", "isolated")),
        _changed(pre_tokenizer=pre_tokenizers.Split(Regex(GPT2_PATTERN), "removed")),
        _merged_with_dropout(),
        _truncating(),
    ],
)
def test_other_kinds_of_tokenizers_are_left_to_the_package(tokenizer: Tokenizer) -> None:
    with pytest.raises(UnknownPatternError):
        WordEncoder(tokenizer)
    assert word_encoder.word_encoder(tokenizer) is None


def test_a_pattern_that_leaves_something_out_is_left_to_the_package() -> None:
    tokenizer = Tokenizer(TOKENIZERS["demo"].model)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\p{L}+"), "isolated")
    assert word_encoder.word_encoder(tokenizer) is None


def test_many_new_words_are_left_to_the_package_until_they_are_known() -> None:
    numbers = random.Random(0)
    tokenizer = TOKENIZERS["llama-3"]
    encoder = WordEncoder(tokenizer)
    words = [" " + "".join(numbers.choices("abcdefgh", k=8)) for _ in range(200)]
    text = "".join(words)
    tries = 0
    while (found := encoder.encode(text)) is None:
        tries += 1
        assert tries < 10
    assert tries == 200 // 64 and found == tokenizer.encode(text).ids


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_encoder, "_MOST_KNOWN", 50)
    tokenizer = TOKENIZERS["qwen-2"]
    encoder = WordEncoder(tokenizer)
    for number in range(100):
        text = f"word{'x' * number} {chr(97 + number % 26) * 5} a{number % 7}b"
        # Words that are too long to be kept are for the package.
        is_kept = len("word") + number <= 32
        assert encoder.encode(text) == (tokenizer.encode(text).ids if is_kept else None)
        for known in (encoder._words, encoder._first_pieces, encoder._pieces):
            assert len(known) <= 50
            assert all(len(text) <= 32 for text in known)
    assert encoder.encode("a " * 5000) is None  # long texts are for a thread, which the package leaves free


def test_a_category_without_ascii_leaves_its_class_whole() -> None:
    assert ascii_pattern(r"[\p{M}]+| ?[A-Za-z]").findall("u[ a]") == ["u", " a"]


def test_a_pattern_that_finds_nothing_is_refused() -> None:
    with pytest.raises(UnknownPatternError):
        ascii_pattern(r"\s*|[a-z]+")


def test_escaped_brackets_do_not_end_a_class() -> None:
    assert ascii_pattern(r"[\]a]+|\s").findall("a]a ]") == ["a]a", " ", "]"]
    assert isinstance(ascii_pattern(r"[^\]\\]"), re.Pattern)


@pytest.mark.parametrize("name", PATTERNS)
def test_known_patterns_begin_a_word_at_spaces(name: str) -> None:
    assert begins_words_at_spaces(ascii_pattern(PATTERNS[name]))


@pytest.mark.parametrize(
    "pattern",
    [
        *(r"a b|\S| ", r"[a-z ]+|\S", r"[a-z]+(?= )|\s|\S", r"(?:a| )+|\s|\S", r"a ?|\s|\S", r"x\s*|\S|\s"),
        *(
            r" ?(?i:x y)|\s",
            r"x[^y]|\s|\S",
            r"(?:x| )y(?:a|[^b]+)|\s",
            r"[a-z]+(?!x)|\S|\s",
            r"(?:a{2} )+|\s|\S",
        ),
    ],
)
def test_patterns_whose_words_may_have_spaces_inside_do_not(pattern: str) -> None:
    assert not begins_words_at_spaces(ascii_pattern(pattern))


_PARTS = st.sampled_from(
    ["[a-z]", " ?", r"\s", r"[^\sx]+", r"\S", "x*", "(?:b |c)", r"(?!\S)", "[^y]", " {1,2}"]
)


@settings(max_examples=500, deadline=None)
@given(
    branches=st.lists(st.lists(_PARTS, min_size=1, max_size=3).map("".join), min_size=1, max_size=3),
    text=st.text(st.sampled_from("abxy \n."), max_size=20),
)
def test_where_words_begin_at_spaces_the_parts_have_the_words_of_the_whole(
    branches: list[str], text: str
) -> None:
    try:
        pattern = ascii_pattern("|".join([*branches, r"\s", r"\S"]))
    except UnknownPatternError:
        return
    if begins_words_at_spaces(pattern):
        places = [match.start() for match in re.finditer(r"(?<=\S) ", text)]
        parts = [text[begin:end] for begin, end in zip([0, *places], [*places, len(text)], strict=True)]
        assert [word for part in parts for word in pattern.findall(part)] == pattern.findall(text)


def test_pieces_with_words_in_them_are_known_together() -> None:
    tokenizer = TOKENIZERS["llama-3"]
    encoder = WordEncoder(tokenizer)
    text = (
        "So, (it's) over-- or not?\nWell... f(x)=12345, 'tis <|end|> 9 a.m. x "
        + "y" * 40
        + "/"
        + "z" * 20
        + ". "
    )
    for _ in range(3):
        found = encoder.encode(text.replace("y" * 40, "y" * 20))
        assert found == tokenizer.encode(text.replace("y" * 40, "y" * 20)).ids
    assert {"over--", "(it's)", "not?\nWell..."} <= encoder._pieces.keys()
    assert encoder.encode(text) is None  # a word too long to be kept
