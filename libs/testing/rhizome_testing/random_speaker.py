"""A model without preferences: it draws its tokens from what a grammar's mask allows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rhizome_engine.grammar.masks import fill_masks
from rhizome_grammar.compiler import GrammarCompiler
from rhizome_grammar.matcher import GrammarMatcher
from rhizome_grammar.spec import Grammar
from rhizome_testing.byte_tokenizer import byte_tokenizer_json
from rhizome_text.tokenizer import Tokenizer

_BYTE_VOCAB = 333  # not a multiple of 32, and more than the tokenizer's 320


@dataclass(frozen=True)
class Speaker:
    """A tokenizer, its compiler, and a way to speak at random within a grammar."""

    compiler: GrammarCompiler
    vocab_size: int
    eos: tuple[int, ...]
    token_bytes: Callable[[int], bytes]
    encode: Callable[[str], list[int]]

    def matcher(self, grammar: Grammar) -> GrammarMatcher:
        """A matcher at the start of a grammar."""
        return self.compiler.compile(grammar).result(30).matcher()

    def allowed(self, matcher: GrammarMatcher) -> list[int]:
        """The tokens that may come next."""
        bits = fill_masks([(0, matcher)], self.vocab_size).bits[0]
        return [int(i) for i in np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))]

    def say(self, matcher: GrammarMatcher, seed: int, *, force: bool = False, most: int = 400) -> list[int]:
        """Draw tokens until the end, or `most` of them; follow forced ones first where asked to."""
        draw = np.random.default_rng(seed)
        said: list[int] = []
        while not matcher.is_finished and len(said) < most:
            forced = matcher.forced_tokens(most - len(said)) if force else []
            if forced:
                for token_id in forced:
                    assert token_id in self.allowed(matcher)
                    matcher.accept(token_id)
                said += forced
                continue
            allowed = self.allowed(matcher)
            assert matcher.may_end == bool(set(self.eos) & set(allowed))
            if matcher.may_end and draw.random() < 1 / 3:
                break
            candidates = [token_id for token_id in allowed if token_id not in self.eos]
            closing = [t for t in candidates if self.token_bytes(t)[-1:] in (b'"', b"}", b"]")]
            # Strings and lists would hardly ever be closed by chance.
            token_id = int(draw.choice(closing if closing and draw.random() < 0.3 else candidates))
            matcher.accept(token_id)
            said.append(token_id)
        return said

    def text(self, token_ids: Sequence[int]) -> str:
        """What tokens spell."""
        return b"".join(map(self.token_bytes, token_ids)).decode()


def byte_speaker() -> Speaker:
    """Says bytes; 256 and above are special tokens, and 257 and 260 end an output."""
    compiler = GrammarCompiler(json.dumps(byte_tokenizer_json(320)), _BYTE_VOCAB, [257, 260])
    return Speaker(compiler, _BYTE_VOCAB, (257, 260), _spelling, lambda text: list(text.encode()))


def checkpoint_speaker(directory: Path, vocab_size: int, eos: tuple[int, ...]) -> Speaker:
    """Says tokens of a checkpoint's tokenizer; a model may have more of them than the tokenizer."""
    compiler = GrammarCompiler((directory / "tokenizer.json").read_bytes(), vocab_size, eos)
    tokenizer = Tokenizer.from_directory(directory)
    return Speaker(compiler, vocab_size, eos, tokenizer.token_bytes, tokenizer.encode)


def _spelling(token_id: int) -> bytes:
    return bytes([token_id]) if token_id < 256 else f"<{token_id}>".encode()
