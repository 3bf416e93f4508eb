"""Tokenise short ASCII texts by the words that were seen before.

Byte-level BPE cuts a text into words by a regular expression and tokenises each by itself, so a word has the
same ids wherever it stands. The tokenizers package looks each one up as well, but makes a token of text,
offsets and id out of every id, which is most of its time. Here a text of known words costs an eighth.

    "<|user|>What now?" ─ added tokens ▶ <|user|> "What now?" ─ spaces ▶ "What" " now?" ─ pattern ▶ " now" "?"

Most patterns begin a word at every space behind a letter, digit or mark. Then texts are cut there first, at a
tenth of the pattern's cost, and what lies between two spaces is looked up as a whole. What is found are the
bytes that go to the engine, not numbers: joining those costs less than to list, copy and write numbers.

Only ASCII: what is a letter beyond it is a question of Unicode's version, which the two patterns could
answer differently. Any other text, tokenizer or pattern is left to the package, and so are texts with many
new words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tokenizers

from rhizome_text.packed_ids import PackedIds, pack
from rhizome_text.word_pattern import (
    GPT2_PATTERN,
    UnknownPatternError,
    ascii_pattern,
    begins_words_at_spaces,
)

_MOST_CHARS = 8192
_MOST_NEW = 64
"""New words in one text; each costs as much as ten of the package's tokens."""
_MOST_KNOWN = 16_384
_LONGEST_KNOWN = 32

_HARMLESS_NORMALIZERS = frozenset({"NFC", "NFD", "NFKC", "NFKD"})
"""Those that change nothing in ASCII."""

_PROBE = "".join(map(chr, range(128))) + (
    "Don't we'LL they'Re IT'S a1b22c333d4444 12345 x==y  z\t\tq \n\n r\r\n\r\n  s   \n  t!!! ?\n--\n "
    "fooBarBAZ 'tis  ''d  (a)(b)[c]{d}<e> _f_ g'h'i \n"
)


class _ForThePackageError(Exception):
    """Too much of a text is new, so that the package is faster; or the pattern leaves something of it out."""


class _OtherCutsError(Exception):
    """A word does not begin at every space of a text."""


class _Known(dict[str, bytes]):
    """Packed ids by text; those of a text that is new are made, and kept unless it is long.

    Args:
        ids_of: makes them.
    """

    def __init__(self, ids_of: Callable[[str], bytes]) -> None:
        super().__init__()
        self._ids_of = ids_of

    def __missing__(self, text: str) -> bytes:
        ids = self._ids_of(text)
        if len(text) <= _LONGEST_KNOWN:
            if len(self) >= _MOST_KNOWN:
                self.clear()
            self[text] = ids
        return ids


class WordEncoder:
    """Ids of short ASCII texts, where the tokenizer is of the kind described above.

    Safe to share between threads.

    Args:
        backend: the tokenizer.

    Raises:
        UnknownPatternError: it is of another kind.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._pattern, self._characters = _cutting(backend)
        _check_rest(backend)
        added = {text: token_id for text, token_id in _added(backend) if text.isascii()}
        longest_first = sorted(added, key=len, reverse=True)
        self._added = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if added else None
        self._cuts_at_spaces = begins_words_at_spaces(self._pattern)
        self._words = _Known(self._ids_of_word)
        self._first_pieces = _Known(self._ids_of_piece)
        self._pieces = _Known(lambda piece: self._ids_of_piece(f" {piece}"))
        self._model = backend.model
        self._added_ids = {text: pack([token_id]) for text, token_id in added.items()}
        probe = _PROBE.join(["", *longest_first[:8], ""])
        if self._ids(probe, most_new=len(probe)) != _ids_of(backend, probe):
            raise UnknownPatternError("it cuts its texts in another way")

    def encode(self, text: str) -> PackedIds | None:
        """The ids that the tokenizer gives, none of its own added; None where it has to be asked."""
        if len(text) > _MOST_CHARS or not text.isascii():
            return None
        return self._ids(text, _MOST_NEW)

    def _ids(self, text: str, most_new: int) -> PackedIds | None:
        self._allowance = most_new  # threads may use up each other's, and leave more to the package
        parts = [text] if self._added is None else self._added.split(text)
        try:
            return PackedIds(
                b"".join(
                    [
                        self._added_ids[part] if place % 2 else self._ids_of_text(part)
                        for place, part in enumerate(parts)
                        if part
                    ]
                )
            )
        except _ForThePackageError:
            return None

    def _ids_of_text(self, text: str) -> bytes:
        """Those of a text without added tokens."""
        if self._cuts_at_spaces and "  " not in text:
            first, *pieces = text.split(" ")
            if pieces:
                last = pieces.pop()
                try:
                    known = [self._first_pieces[first], *map(self._pieces.__getitem__, pieces)]
                except _OtherCutsError:
                    pass
                else:
                    known += self._ids_of_words(f" {last}")  # which may end in white space
                    return b"".join(known)
        return b"".join(self._ids_of_words(text))

    def _ids_of_words(self, text: str) -> Iterator[bytes]:
        words = self._pattern.findall(text)
        if len("".join(words)) != len(text):  # a pattern that leaves something out
            raise _ForThePackageError
        return map(self._words.__getitem__, words)

    def _ids_of_piece(self, piece: str) -> bytes:
        if piece[-1:].isspace():  # the space that follows may belong to it
            raise _OtherCutsError
        return b"".join(self._ids_of_words(piece))

    def _ids_of_word(self, word: str) -> bytes:
        self._allowance -= 1
        if self._allowance < 0 or len(word) > _LONGEST_KNOWN:
            raise _ForThePackageError
        written = word if self._characters is None else word.translate(self._characters)
        return pack(token.id for token in self._model.tokenize(written))


def word_encoder(backend: tokenizers.Tokenizer) -> WordEncoder | None:
    """The encoder of a tokenizer; None where it is of a kind that needs the package."""
    try:
        return WordEncoder(backend)
    except UnknownPatternError:
        return None


def _cutting(backend: tokenizers.Tokenizer) -> tuple[re.Pattern[str], dict[int, int] | None]:
    """The pattern that cuts texts into words, and how the characters of words are written.

    Raises:
        UnknownPatternError: texts are cut in another way.
    """
    steps = list(_steps(backend.pre_tokenizer, "pretokenizers"))
    kinds = [step["type"] for step in steps]
    byte_level = steps.pop() if kinds and kinds[-1] == "ByteLevel" else None
    if byte_level is not None and byte_level.get("add_prefix_space"):
        raise UnknownPatternError("it puts a space before texts")
    characters = None if byte_level is None else _byte_characters()
    if not steps and byte_level is not None and byte_level.get("use_regex", True):
        return ascii_pattern(GPT2_PATTERN), characters
    if len(steps) != 1 or (byte_level is not None and byte_level.get("use_regex", True)):
        raise UnknownPatternError("it has several steps that cut texts, or none")
    split = steps[0]
    if split["type"] != "Split" or split["behavior"] != "Isolated" or split.get("invert"):
        raise UnknownPatternError("it does not cut texts into words")
    pattern = split["pattern"].get("Regex")
    if pattern is None:
        raise UnknownPatternError("it cuts at a text, not by a pattern")
    return ascii_pattern(pattern), characters


def _check_rest(backend: tokenizers.Tokenizer) -> None:
    """What else may change ids.

    Raises:
        UnknownPatternError: something does.
    """
    model = backend.model
    if not isinstance(model, tokenizers.models.BPE) or model.dropout:
        raise UnknownPatternError("words do not always have the same ids")
    if backend.truncation is not None or backend.padding is not None:
        raise UnknownPatternError("it cuts or fills texts to a length")
    for step in _steps(backend.normalizer, "normalizers"):
        if step["type"] not in _HARMLESS_NORMALIZERS:
            raise UnknownPatternError("it changes texts before it cuts them")


def _added(backend: tokenizers.Tokenizer) -> Iterator[tuple[str, int]]:
    """Text and id of added tokens.

    Raises:
        UnknownPatternError: where they are found is no matter of their text alone.
    """
    tokens = backend.get_added_tokens_decoder()
    if len({token.normalized for token in tokens.values()}) > 1:
        raise UnknownPatternError("some added tokens are looked for before others")
    for token_id, token in tokens.items():
        if token.lstrip or token.rstrip or token.single_word or not token.content:
            raise UnknownPatternError("an added token takes or looks at what is around it")
        if token.normalized and not token.content.isascii() and backend.normalizer is not None:
            raise UnknownPatternError("an added token may be another text once it is normalised")
        yield token.content, token_id


def _steps(component: Any, inside: str) -> Iterable[dict[str, Any]]:
    """The steps of a part of a tokenizer; its pickled state is its section of tokenizer.json."""
    steps = [] if component is None else [json.loads(component.__getstate__())]
    while steps:
        step = steps.pop(0)
        if step["type"] == "Sequence":
            steps = [*step[inside], *steps]
        else:
            yield step


def _byte_characters() -> dict[int, int]:
    """How byte-level vocabularies write ASCII: what is not printable by the characters from 256 on."""
    hidden = [byte for byte in range(128) if not 0x21 <= byte <= 0x7E]
    return {byte: 256 + place for place, byte in enumerate(hidden)}


def _ids_of(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    ids: list[int] = backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
    return ids
