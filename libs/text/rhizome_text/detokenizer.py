"""Token ids to text while they arrive.

A token may end in the middle of a character, so the text of the tokens so far may end in a broken one. What
is pushed out here never does, and is never taken back: all pushed pieces together are what `Tokenizer.decode`
makes of all ids, up to an incomplete character at the end. The cost per token does not depend on how many
came before.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from rhizome_text.token_bytes import DecodingRule
from rhizome_text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"


class _Decoder(Protocol):
    between: bool
    """Nothing is held back: until it is pushed the next time, each token's text is always the same."""

    def push(self, token_ids: Sequence[int]) -> str: ...
    def finish(self) -> str: ...


class IncrementalDetokenizer:
    """Turns the tokens of one answer into text.

    Args:
        tokenizer: shared by all answers of a model.
        skip_special_tokens: leave tokens such as `<|eot_id|>` out of the text.
        visible_ids: special tokens that are text all the same.
    """

    __slots__ = ("_between", "_decoder", "_hidden_ids", "_texts")

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_special_tokens: bool = True,
        visible_ids: frozenset[int] = frozenset(),
    ) -> None:
        hidden = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self._hidden_ids = hidden - visible_ids if visible_ids else hidden
        self._decoder: _Decoder
        if tokenizer.rule is None:
            self._decoder = _WindowDecoder(tokenizer)
        else:
            self._decoder = _ByteDecoder(tokenizer, tokenizer.rule)
        self._texts = tokenizer.text_by_id
        self._between = False

    def push(self, token_ids: Sequence[int]) -> str:
        """Take new tokens, return the whole characters that they completed, possibly none."""
        hidden = self._hidden_ids
        if len(token_ids) == 1:  # one step of the engine
            token_id = token_ids[0]
            if token_id in hidden:
                return ""
            if self._between and (text := self._texts[token_id]) is not None:
                return text
        text = self._decoder.push([i for i in token_ids if i not in hidden])
        self._between = self._decoder.between
        return text

    def finish(self) -> str:
        """Return what was held back but is whole; an incomplete character is dropped."""
        return self._decoder.finish()


class _ByteDecoder:
    """For decoders that map tokens to bytes: an incremental UTF-8 decoder does it all."""

    __slots__ = (
        "_at_start",
        "_bytes",
        "_rule",
        "_strip_character",
        "_strip_left",
        "_tokenizer",
        "_utf8",
        "between",
    )

    def __init__(self, tokenizer: Tokenizer, rule: DecodingRule) -> None:
        self._tokenizer = tokenizer
        self._rule = rule
        self._bytes = tokenizer.bytes_by_id
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip_character, self._strip_left = rule.strip_start
        self._at_start = True
        self.between = False

    def push(self, token_ids: Sequence[int]) -> str:
        if self._at_start or self._strip_left:
            text = self._push_first(token_ids)
            started = not (self._at_start or self._strip_left)
        else:
            known = self._bytes
            text = self._utf8.decode(b"".join([known[i] for i in token_ids]))
            started = True
        self.between = started and not self._utf8.getstate()[0]
        return text

    def _push_first(self, token_ids: Sequence[int]) -> str:
        """Some decoders treat the start of a text in a way of its own."""
        tokenizer = self._tokenizer
        kept = [i for i in token_ids if tokenizer.is_text(i, False)]
        if not kept:
            return ""
        pieces = [self._bytes[i] for i in kept]
        if self._at_start:
            self._at_start = False
            pieces[0] = self._rule.token_bytes(tokenizer.token_text(kept[0]), first=True)
        text = self._utf8.decode(b"".join(pieces))
        while text and self._strip_left:
            if not text.startswith(self._strip_character):
                self._strip_left = 0
                break
            text = text.removeprefix(self._strip_character)
            self._strip_left -= 1
        return text

    def finish(self) -> str:
        return ""


class _WindowDecoder:
    """For any other decoder: decode a short window twice, without and with the new tokens, and compare.

    The window holds the tokens of the last piece of text, as context for the decoder's rules on spaces, and
    the tokens since then: those whose text still ends in a broken character.

        [ context: text is out | pending: text is not out ]
    """

    _MOST_PENDING = 16
    """No character has more tokens than that; beyond it, a broken one will stay broken."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._pending: list[int] = []
        self.between = False  # what a token adds depends on those before it

    def push(self, token_ids: Sequence[int]) -> str:
        known = [i for i in token_ids if self._tokenizer.is_text(i, False)]
        if not known:
            return ""
        self._pending.extend(known)
        text = self._new_text()
        if not text or (text.endswith(_REPLACEMENT) and len(self._pending) <= self._MOST_PENDING):
            return ""
        # One push may bring a whole answer; its last tokens are context enough.
        self._context, self._pending = self._pending[-self._MOST_PENDING :], []
        return text

    def finish(self) -> str:
        text = self._new_text()
        self._context, self._pending = [], []
        return text.rstrip(_REPLACEMENT)

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._context, skip_special_tokens=False)
        after = self._tokenizer.decode(self._context + self._pending, skip_special_tokens=False)
        return after[len(before) :]
