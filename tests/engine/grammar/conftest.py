"""Compilers over real tokenizers, and a model without preferences: it draws from what a mask allows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from rhizome_engine.grammar.compiler import GrammarCompiler
from rhizome_engine.grammar.masks import fill_masks
from rhizome_engine.grammar.matcher import GrammarMatcher
from rhizome_engine.grammar.spec import Grammar
from rhizome_testing.byte_tokenizer import byte_tokenizer_json
from rhizome_text.tokenizer import Tokenizer

DEMO = Path(__file__).parents[3] / "models" / "demo"
BYTE_VOCAB = 333  # not a multiple of 32, and more than the tokenizer's 320
DEMO_VOCAB = 1152  # the model's; the tokenizer has 1106


@dataclass(frozen=True)
class Speaker:
    """A tokenizer, its compiler, and a way to speak at random within a grammar."""

    compiler: GrammarCompiler
    vocab_size: int
    eos: tuple[int, ...]
    token_bytes: Callable[[int], bytes]
    encode: Callable[[str], list[int]]

    def matcher(self, grammar: Grammar) -> GrammarMatcher:
        return self.compiler.compile(grammar).result(30).matcher()

    def allowed(self, matcher: GrammarMatcher) -> list[int]:
        bits = fill_masks([(0, matcher)], self.vocab_size).bits[0]
        return np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little")).tolist()

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

    def text(self, token_ids: list[int]) -> str:
        return b"".join(map(self.token_bytes, token_ids)).decode()


def _spelling(token_id: int) -> bytes:
    return bytes([token_id]) if token_id < 256 else f"<{token_id}>".encode()


def _bytes(text: str) -> list[int]:
    return list(text.encode())


@pytest.fixture(scope="session")
def byte_speaker() -> Speaker:
    compiler = GrammarCompiler(json.dumps(byte_tokenizer_json(320)), BYTE_VOCAB, [257, 260])
    return Speaker(compiler, BYTE_VOCAB, (257, 260), _spelling, _bytes)


@pytest.fixture(scope="session")
def demo_speaker() -> Speaker:
    compiler = GrammarCompiler((DEMO / "tokenizer.json").read_bytes(), DEMO_VOCAB, [4, 1])
    tokenizer = Tokenizer.from_directory(DEMO)
    return Speaker(compiler, DEMO_VOCAB, (4, 1), tokenizer.token_bytes, tokenizer.encode)


@pytest.fixture(params=["byte", "demo"])
def speaker(request: pytest.FixtureRequest) -> Speaker:
    """Each tokenizer in turn."""
    return request.getfixturevalue(f"{request.param}_speaker")
