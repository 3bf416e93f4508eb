"""Compiles grammars aside from the engine's loop, and remembers them."""

from __future__ import annotations

import random
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from rhizome_grammar.errors import CompilerBusyError, GrammarError, refusal
from rhizome_grammar.matcher import CompiledGrammar
from rhizome_grammar.spec import Grammar, lark_string
from rhizome_grammar.timed_pool import TimedPool
from rhizome_grammar.vocabulary import build_vocabulary, check_special

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

__all__ = ["CompiledGrammar", "CompilerBusyError", "GrammarCompiler", "GrammarError"]

PROBED_STEPS = 12
STEP_LIMIT_S = 0.05
"""CPU seconds that one step of following a grammar may take while it is tried out."""
MAX_LEXER_STATES = 100_000


class GrammarCompiler:
    """Compiles grammars for one model, in threads of its own; safe to share between threads.

    Nothing is imported or built before the first grammar, or `warm_up`.

    Args:
        tokenizer_json: contents of the checkpoint's tokenizer.json.
        vocab_size: of the model, which may have more logits than the tokenizer has tokens.
        eos_token_ids: each ends an output; at least one.
        workers: grammars that are compiled at once.
        limit_s: wall-clock seconds after which compiling a grammar fails.
        cache_size: compiled grammars, and failures, that are remembered.

    Attributes:
        hits: requests whose grammar was compiled or being compiled already.
        misses: the others.
    """

    def __init__(
        self,
        tokenizer_json: bytes | str,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        *,
        workers: int = 2,
        limit_s: float = 10.0,
        cache_size: int = 128,
    ) -> None:
        if not eos_token_ids:
            raise ValueError("eos_token_ids must not be empty: without one a grammar's output could not end")
        if workers < 1 or cache_size < 1 or limit_s <= 0:
            raise ValueError("workers and cache_size must be at least 1, and limit_s positive")
        self._tokenizer_json = tokenizer_json
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(eos_token_ids)
        self._pool = TimedPool(workers, limit_s)
        self._cache_size = cache_size
        self._cache: OrderedDict[Grammar, Future[CompiledGrammar]] = OrderedDict()
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | GrammarError | None = None
        self._vocabulary_lock = threading.Lock()
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        """Grammars that are remembered."""
        return len(self._cache)

    @property
    def num_overdue(self) -> int:
        """Compilations that overran their limit and still use a thread."""
        return self._pool.num_overdue

    def warm_up(self) -> Future[None]:
        """Build what the first grammar needs; it holds the interpreter's lock for up to a second."""

        def build() -> None:
            self._get_vocabulary()

        return self._pool.submit(build)

    def element(self, text: str) -> str:
        """A text as an element of a Lark rule: by id where it is a special token; blocks as `warm_up` does.

        What the library does not spell is more than what a tokenizer calls special: `<think>`, too, is one
        token to it, whatever its flag says.

        Raises:
            GrammarError: grammars cannot be used with this model.
        """
        vocabulary = self._get_vocabulary()
        token_ids = vocabulary.tokenize_str(text, parse_special=True)
        if len(token_ids) == 1 and vocabulary.is_special_token(token_ids[0]):
            return f"<[{token_ids[0]}]>"
        return lark_string(text)

    def compile(self, grammar: Grammar) -> Future[CompiledGrammar]:
        """Have a grammar compiled; never blocks.

        Returns:
            A future, shared by all who ask for the same grammar. It cannot be cancelled, and fails with
            GrammarError alone.
        """
        with self._lock:
            future = self._cache.get(grammar)
            if future is not None and not _is_stale(future):
                self._cache.move_to_end(grammar)
                self.hits += 1
                return future
            self.misses += 1
            future = self._cache[grammar] = self._pool.submit(partial(self._compile_safely, grammar))
            self._cache.move_to_end(grammar)
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
            return future

    def _compile_safely(self, grammar: Grammar) -> CompiledGrammar:
        """In a thread of the pool, raising GrammarError alone."""
        try:
            return self._compile(grammar)
        except GrammarError:
            raise
        except BaseException as error:  # a panic of native code is no Exception
            raise refusal(grammar.kind, f"{type(error).__name__}: {error}") from error

    def _compile(self, grammar: Grammar) -> CompiledGrammar:
        from llguidance import LLMatcher

        vocabulary = self._get_vocabulary()
        try:
            text = grammar.to_llguidance()
        except ValueError as error:
            raise refusal(grammar.kind, str(error)) from None
        for one in (grammar, *(part for _, part in grammar.parts)):
            check_special(vocabulary, one.token_ids)
        build = partial(LLMatcher, vocabulary, text, log_level=0, limits=_limits())
        start = time.perf_counter()
        template = build()
        compile_s = time.perf_counter() - start
        _try_out(template, grammar, self._vocab_size)
        return CompiledGrammar(
            build,
            template,
            eos_token_ids=frozenset(self._eos_token_ids),
            vocab_size=self._vocab_size,
            compile_s=compile_s,
        )

    def _get_vocabulary(self) -> LLTokenizer:
        with self._vocabulary_lock:
            if self._vocabulary is None:
                text = self._tokenizer_json
                try:
                    self._vocabulary = build_vocabulary(
                        text.decode() if isinstance(text, bytes) else text,
                        self._vocab_size,
                        self._eos_token_ids,
                    )
                except GrammarError as error:
                    self._vocabulary = error
                self._tokenizer_json = ""
            if isinstance(self._vocabulary, GrammarError):
                raise GrammarError(str(self._vocabulary))
            return self._vocabulary


def _limits() -> LLParserLimits:
    from llguidance import LLParserLimits

    return LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)


def _is_stale(future: Future[CompiledGrammar]) -> bool:
    """Whether the same grammar should be compiled anew."""
    if not future.done():
        return False
    error = future.exception()
    if error is not None:
        return isinstance(error, CompilerBusyError)
    return future.result().is_worn_out


def _try_out(template: LLMatcher, grammar: Grammar, vocab_size: int) -> None:
    """Follow a random text for some steps, so that a grammar fails here and not in the engine's loop.

    The steps share their lexer's states with all later matchers, which therefore start warm.

    Raises:
        GrammarError: the grammar is wrong, no text matches it, or following it is too slow.
    """
    if template.is_error():
        raise refusal(grammar.kind, template.get_error())
    template.compute_bitmask()
    draw = random.Random(0)  # noqa: S311 - any walk will do
    walk = template if template.is_error() else template.deep_copy()
    for _ in range(PROBED_STEPS):
        start = time.thread_time()
        bits = np.frombuffer(walk.compute_bitmask(), np.uint8)
        allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little")[:vocab_size])
        if walk.is_error():
            raise refusal(grammar.kind, walk.get_error())
        if walk.is_stopped():
            return
        if not len(allowed):
            raise GrammarError(f"{grammar.kind}: no text matches this grammar")
        walk.consume_token(int(allowed[draw.randrange(len(allowed))]))
        walk.compute_ff_tokens()
        if (took := time.thread_time() - start) > STEP_LIMIT_S:
            raise GrammarError(
                f"{grammar.kind}: following it takes {took * 1e3:.0f} ms per token; simplify its patterns"
            )
