r"""Which text of a rendered prompt is a control token, and which somebody typed.

A conversation is data; a control token in it (`<|im_end|>`) would end its turn and begin another in somebody
else's name. So the texts of control tokens in a conversation are marked before the template sees them, and
what is marked after rendering is text:

    content     "say <|im_end|>"        ->  "say S<|im_end|>E"
    rendered    "<|im_start|>user\nsay S<|im_end|>E<|im_end|>"
                 control                   text      control

Marks stay beside the text, so that templates find, split and trim as before. A mark may be where none is
needed: only a token's text with a mark inside, or with a mark on both sides, counts as typed. That is why
texts are marked in any case (templates may change it), and why a text that ends like the beginning of a token
is marked at its end (templates may put another text behind it).
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers

DELIMITERS = frozenset(
    (
        *("<think>", "</think>", "[THINK]", "[/THINK]", "<tool_call>", "</tool_call>", "<tool_response>"),
        *("</tool_response>", "[TOOL_CALLS]", "[ARGS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
    )
)
"""What output is parsed by: control tokens where the vocabulary has them as added tokens."""

_MARKS = "".join(map(chr, range(0xFDD0, 0xFDEE)))
"""Noncharacters of Unicode: for use inside a program, never for interchange."""


@dataclass(frozen=True, slots=True)
class MarkedInput:
    """What a template gets in place of what people wrote.

    Attributes:
        value: the same, with marks.
        begin: the mark before a token's text.
        end: the mark behind it.
    """

    value: Any
    begin: str
    end: str


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A rendered conversation.

    Attributes:
        text: without marks.
        controls: where the template wrote control tokens, in order: begin and end.
    """

    text: str
    controls: list[tuple[int, int]]


class ControlTokens:
    """The control tokens of a tokenizer and a template.

    These are all special tokens, and those other added tokens that the template writes itself or that output
    is parsed by. Added tokens beyond that (tags, runs of spaces) are ordinary vocabulary, whoever writes it.

    Attributes:
        texts: of the control tokens.
    """

    def __init__(self, backend: tokenizers.Tokenizer, template_literals: Iterable[str]) -> None:
        literals = [text for text in template_literals if text]
        added = list(backend.get_added_tokens_decoder().values())
        controls = [token for token in added if token.content and _is_control(token, literals)]
        self.texts = frozenset(token.content for token in controls)
        longest_first = sorted(self.texts, key=len, reverse=True)
        self._anywhere = re.compile("|".join(map(re.escape, longest_first)) or "(?!)", re.IGNORECASE)
        self._folded = re.compile(_any_of({text.lower() for text in self.texts}) or "(?!)")
        self._beginnings = frozenset(
            text[:length].lower() for text in self.texts for length in range(1, len(text))
        )
        self._tail_chars = max(map(len, self.texts), default=1) - 1
        self._first_chars = sorted(
            {char for text in self.texts for char in (text[0].lower(), text[0].upper())}
        )
        self._as_matched = re.compile(
            "|".join(map(_as_matched, sorted(added, key=lambda token: len(token.content), reverse=True)))
            or "(?!)"
        )
        self._normalize: Callable[[str], str] | None = None
        vocabulary = backend.get_vocab(with_added_tokens=False)
        if any(token.normalized or token.content in vocabulary for token in controls) and _rewrites(backend):
            self._normalize = backend.normalizer.normalize_str

    def occur_in(self, value: Any) -> bool:
        """Whether a nested value of dictionaries, lists and texts may hold a control token's text."""
        texts: list[str] = []
        _collect_texts(value, texts)
        joined = "\0".join(texts)
        if self._normalize is not None and self._folded.search(self._normalize(joined).lower()) is not None:
            return True
        if not any(map(joined.__contains__, self._first_chars)):
            return False
        return self._folded.search(joined.lower()) is not None or any(map(self._begins_at_the_end, texts))

    def mark(self, value: Any) -> MarkedInput:
        """Mark every control token's text in a nested value, in keys too."""
        texts: list[str] = []
        _collect_texts(value, texts)
        joined = "\0".join(texts)
        used = {mark for mark in _MARKS if mark in joined or f"\\u{ord(mark):04x}" in joined}
        unused = [mark for mark in _MARKS if mark not in used]
        if len(unused) < 2:  # then what is dropped is nobody's text
            unused = list(_MARKS)
        begin, end = unused[:2]
        dropped = {ord(begin): None, ord(end): None} if used.issuperset(_MARKS) else {}

        def marked(item: Any) -> Any:
            if isinstance(item, str):
                text = item.translate(dropped) if dropped else item
                text = self._anywhere.sub(lambda match: f"{begin}{match[0]}{end}", text)
                return text + begin if self._begins_at_the_end(item) else text
            if isinstance(item, Mapping):
                return {marked(key): marked(inner) for key, inner in item.items()}
            if isinstance(item, (list, tuple)):
                return [marked(inner) for inner in item]
            return item

        return MarkedInput(marked(value), begin, end)

    def read(self, rendered: str, begin: str, end: str) -> RenderedPrompt:
        """Take the marks out of a rendered prompt and tell its control tokens from text."""
        for mark in (begin, end):  # `tojson(ensure_ascii=true)` has written them as escapes
            rendered = rendered.replace(f"\\u{ord(mark):04x}", mark)
        pieces = re.split(f"([{begin}{end}])", rendered)
        text = "".join(pieces[::2])
        places: list[int] = []
        begins, ends = set[int](), set[int]()
        place = 0
        for index, piece in enumerate(pieces):
            if index % 2:
                places.append(place)
                (begins if piece == begin else ends).add(place)
            else:
                place += len(piece)
        controls = []
        for match in self._as_matched.finditer(text):
            first, last = match.span()
            inside = bisect_right(places, first)
            typed = (inside < len(places) and places[inside] < last) or (first in begins and last in ends)
            if match[0] in self.texts and not typed:
                controls.append((first, last))
        return RenderedPrompt(text, controls)

    def _begins_at_the_end(self, text: str) -> bool:
        tail = text[-self._tail_chars :].lower() if self._tail_chars else ""
        for char in self._first_chars:
            place = tail.find(char)
            while place >= 0:
                if tail[place:] in self._beginnings:
                    return True
                place = tail.find(char, place + 1)
        return False


def _is_control(token: tokenizers.AddedToken, literals: list[str]) -> bool:
    if token.special or token.content in DELIMITERS:
        return True
    return not token.content.isspace() and any(token.content in literal for literal in literals)


def _rewrites(backend: tokenizers.Tokenizer) -> bool:
    """Whether normalising may turn other text into that of a control token."""
    if backend.normalizer is None:
        return False
    steps = [json.loads(backend.normalizer.__getstate__())]
    while steps:
        step = steps.pop()
        if step["type"] == "Sequence":
            steps += step["normalizers"]
        elif step["type"] != "Prepend" and (step["type"] != "Replace" or step["content"] != "▁"):
            return True
    return False


def _as_matched(token: tokenizers.AddedToken) -> str:
    """The pattern by which the tokenizer finds an added token."""
    text = re.escape(token.content)
    return rf"(?<!\w){text}(?!\w)" if token.single_word else text


def _any_of(texts: set[str]) -> str:
    """A pattern that matches where any of the texts begins; shared beginnings are compared only once."""
    if not texts or "" in texts:
        return ""
    branches = [
        re.escape(char) + _any_of({text[1:] for text in texts if text[0] == char})
        for char in sorted({text[0] for text in texts})
    ]
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


def _collect_texts(value: Any, texts: list[str]) -> None:
    """Append all texts of a nested value, keys too."""
    if type(value) is dict:
        for key, inner in value.items():
            texts.append(key)
            if type(inner) is str:
                texts.append(inner)
            elif inner is not None:
                _collect_texts(inner, texts)
    elif isinstance(value, str):
        texts.append(value)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _collect_texts(inner, texts)
    elif isinstance(value, Mapping):
        _collect_texts(dict(value), texts)
