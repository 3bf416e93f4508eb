"""Grammars of open requests: compiled aside, turned into token masks while the model runs.

    add ──> preparing (compiled in a pool) ──> waiting ──> running

A matcher follows the tokens that the host has read. With overlap the next step is on its way by then, but its
tokens are not chosen yet: masks are handed over between its forward pass and its sampling.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from concurrent.futures import Future

import numpy as np

from rhizome_engine.batch import TokenMasks
from rhizome_engine.grammar.masks import fill_masks
from rhizome_engine.scheduler.admission import InvalidRequestError
from rhizome_engine.scheduler.request import Request, RequestState
from rhizome_engine.scheduler.step_plan import StepPlan
from rhizome_grammar.compiler import CompiledGrammar, GrammarCompiler, GrammarError
from rhizome_grammar.matcher import GrammarMatcher


class Constraints:
    """What open requests may say.

    Args:
        compiler: compiles grammars; None refuses them.
        vocab_size: of the model.
    """

    def __init__(self, compiler: GrammarCompiler | None, vocab_size: int) -> None:
        self._compiler = compiler
        self._vocab_size = vocab_size
        self._preparing: dict[tuple[Hashable, str], tuple[Request, Future[CompiledGrammar]]] = {}

    @property
    def preparing(self) -> list[Request]:
        """Requests whose grammar is being compiled."""
        return [request for request, _ in self._preparing.values()]

    @property
    def num_preparing(self) -> int:
        """How many those are."""
        return len(self._preparing)

    def prepare(self, request: Request) -> None:
        """Have a request's grammar compiled.

        Raises:
            InvalidRequestError: there is no compiler.
        """
        assert request.grammar is not None
        if self._compiler is None:
            raise InvalidRequestError("this engine has no tokenizer and takes no grammars", "grammar")
        self._preparing[request.key] = (request, self._compiler.compile(request.grammar))

    def forget(self, request: Request) -> None:
        """The request ended while its grammar was being compiled."""
        self._preparing.pop(request.key, None)

    def take_ready(self) -> Iterator[tuple[Request, GrammarError | None]]:
        """Requests whose grammar was compiled, or could not be; each once."""
        done = [(request, future) for request, future in self._preparing.values() if future.done()]
        for request, future in done:
            del self._preparing[request.key]
            try:
                request.matcher = future.result().matcher()
                request.matcher.accept_all(request.output_ids)
            except GrammarError as error:
                yield request, error
            else:
                yield request, None

    def masks(self, plan: StepPlan) -> TokenMasks | None:
        """What the constrained rows of a step may choose; None where no row is constrained."""
        open_rows: list[tuple[int, GrammarMatcher]] = []
        forced: list[tuple[int, int]] = []
        for row, request in enumerate(plan.sampled):
            if request.matcher is None or request.state is RequestState.FINISHED:
                continue
            position = int(plan.sampled_positions[row])
            if request.num_tokens > position:
                forced.append((row, int(request.token_ids[position])))
            else:
                open_rows.append((row, request.matcher))
        if not open_rows and not forced:
            return None
        masks = fill_masks(open_rows, self._vocab_size)
        return _with_forced(masks, forced) if forced else masks

    @staticmethod
    def accept(request: Request, token_id: int) -> list[int]:
        """Follow a chosen token; returns the tokens that the grammar forces after it.

        None are looked for where each has to be seen: by a caller who wants log probabilities, or because
        some tokens must not be chosen whatever the grammar says.

        Raises:
            GrammarError: the token does not fit the grammar, or following it took too long.
        """
        matcher = request.matcher
        assert matcher is not None
        matcher.accept(token_id)
        room = request.max_total_tokens - request.num_tokens
        params = request.params
        excludes = params.allowed_token_ids is not None or bool(params.bad_words)
        if room <= 0 or excludes or params.top_logprobs is not None:
            return []
        tokens = matcher.forced_tokens(room)
        matcher.accept_all(tokens)
        return tokens


def _with_forced(masks: TokenMasks, forced: list[tuple[int, int]]) -> TokenMasks:
    """Add rows that may choose one token only."""
    rows = np.array([row for row, _ in forced], np.int64)
    bits = np.zeros((len(forced), masks.bits.shape[1]), np.uint32)
    tokens = np.array([token for _, token in forced], np.int64)
    bits[np.arange(len(forced)), tokens // 32] = np.uint32(1) << (tokens % 32).astype(np.uint32)
    all_rows = np.concatenate([masks.rows, rows])
    order = np.argsort(all_rows)
    return TokenMasks(all_rows[order], np.concatenate([masks.bits, bits.view(np.int32)])[order])
