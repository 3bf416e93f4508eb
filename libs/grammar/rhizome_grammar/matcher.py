"""Where one request stands in its grammar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rhizome_grammar.errors import GrammarError, explained

if TYPE_CHECKING:
    from llguidance import LLMatcher

REBUILD_LIMIT_S = 0.05
"""A grammar that took longer to compile is not compiled anew on the thread that follows it."""


class CompiledGrammar:
    """A grammar ready to be followed by any number of requests.

    The requests share the lexer's states, which are built as texts need them and are limited in number. When
    one request meets that limit, the grammar is *worn out*: the next request has it compiled anew, and those
    that follow it go on with states of their own.

    Args:
        build: makes a matcher at the start of the grammar that shares nothing.
        template: such a matcher.
        eos_token_ids: ids that end an output.
        vocab_size: of the model.
        compile_s: seconds that `build` took.
    """

    def __init__(
        self,
        build: Callable[[], LLMatcher],
        template: LLMatcher,
        *,
        eos_token_ids: frozenset[int],
        vocab_size: int,
        compile_s: float,
    ) -> None:
        self._build = build
        self._template = template
        self.eos_token_ids = eos_token_ids
        self.vocab_size = vocab_size
        self.compile_s = compile_s
        self.is_worn_out = False

    def matcher(self) -> GrammarMatcher:
        """A matcher at the start of the grammar; takes some 10 µs."""
        return GrammarMatcher(self, self._template.deep_copy())

    def rebuild(self) -> LLMatcher | None:
        """A matcher that shares nothing, None where making one would take too long."""
        self.is_worn_out = True
        return self._build() if self.compile_s <= REBUILD_LIMIT_S else None


class GrammarMatcher:
    """Follows one request's output. Made by `CompiledGrammar.matcher`; not for use by two threads at once.

    Once a method has raised, the matcher is of no further use: `error` says why, and its masks allow nothing.
    """

    __slots__ = ("_accepted", "_error", "_grammar", "_is_private", "native")

    def __init__(self, grammar: CompiledGrammar, native: LLMatcher) -> None:
        self._grammar = grammar
        self.native = native
        self._accepted: list[int] = []
        self._is_private = False
        self._error: str | None = None

    @property
    def error(self) -> str | None:
        """Why the matcher can go no further, None while it can."""
        return self._error

    @property
    def vocab_size(self) -> int:
        """Of the model."""
        return self._grammar.vocab_size

    @property
    def may_end(self) -> bool:
        """Whether end-of-sequence is allowed now."""
        return self._error is None and self.native.is_accepting()

    @property
    def is_finished(self) -> bool:
        """Whether nothing but end-of-sequence can follow, or it has come already."""
        return self._error is None and self.native.is_stopped()

    def accept(self, token_id: int) -> None:
        """Follow one chosen token.

        Raises:
            GrammarError: the token is not allowed here, or following it exceeded a limit.
        """
        self.accept_all((token_id,))

    def accept_all(self, token_ids: Sequence[int]) -> None:
        """Follow several tokens, such as the output of a request that is resumed.

        Raises:
            GrammarError: one of the tokens is not allowed in its place, or following it exceeded a limit.
        """
        if self._error is not None:
            raise GrammarError(self._error)
        ids = list(token_ids)
        vocab_size = self._grammar.vocab_size
        for token_id in ids:
            if not 0 <= token_id < vocab_size:
                raise self._fail(f"{token_id} is no token of this model")
        done = self.native.try_consume_tokens(ids)
        self._accepted += ids[:done]
        if done < len(ids):
            self._accept_or_explain(ids[done:])

    def forced_tokens(self, limit: int) -> list[int]:
        """Tokens that the grammar dictates next, at most `limit`; they are not accepted by this.

        They spell text that every continuation begins with, cut as the tokenizer itself would cut it;
        sampling could have cut the same text otherwise. Where the text behind it may change how its end is
        cut, the end is left out, and no end-of-sequence is ever among them.

        Raises:
            GrammarError: looking for them exceeded a limit.
        """
        if self._error is not None:
            raise GrammarError(self._error)
        if limit <= 0 or self.native.is_stopped():
            return []
        tokens = self.native.compute_ff_tokens()[:limit]
        if self.native.is_error() and not self.recover():
            raise GrammarError(self._error)
        eos = self._grammar.eos_token_ids
        return next((tokens[:i] for i, token_id in enumerate(tokens) if token_id in eos), tokens)

    def recover(self) -> bool:
        """Go on after the native matcher failed, with a lexer that no other request has filled.

        Returns:
            Whether it can go on; if not, `error` says why.
        """
        if self._error is not None:
            return False
        reason = self.native.get_error()
        # Only masks meet the limit, so replaying what was accepted does not meet it again.
        if not self._is_private and "lexer error" in reason:
            rebuilt = self._grammar.rebuild()
            if rebuilt is not None and rebuilt.try_consume_tokens(self._accepted) == len(self._accepted):
                self.native, self._is_private = rebuilt, True
                return True
        self._fail(explained(reason) or "the grammar cannot be followed any further")
        return False

    def _accept_or_explain(self, ids: list[int]) -> None:
        """Find out why the first of `ids` was refused, and go on if that is another request's doing."""
        self.native.consume_token(ids[0])
        if self.recover():
            done = self.native.try_consume_tokens(ids)
            self._accepted += ids[:done]
            if done == len(ids):
                return
            ids = ids[done:]
            self.native.consume_token(ids[0])
        reason = self.native.get_error()
        if not reason or "satisfy the grammar" in reason or "parser stopped" in reason:
            place = len(self._accepted)
            raise self._fail(f"token {ids[0]} at output position {place} does not fit the grammar")
        raise self._fail(explained(reason))

    def _fail(self, reason: str) -> GrammarError:
        self._error = reason
        return GrammarError(reason)
