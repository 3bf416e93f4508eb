"""What a computed step means for its requests: new tokens, log probabilities, ends."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import numpy as np

from rhizome_engine.batch import NO_TOKEN, StepOutput, TokenLogprobs
from rhizome_engine.core.constraints import Constraints
from rhizome_engine.core.events import EmbeddingEvent, Event, FailedEvent, PromptLogprobsEvent, TokensEvent
from rhizome_engine.core.histogram import TokenGaps
from rhizome_engine.core.open_requests import OpenRequests
from rhizome_engine.scheduler.load import LoadMeter
from rhizome_engine.scheduler.request import FinishReason, Request, RequestState
from rhizome_engine.scheduler.scheduler import Scheduler
from rhizome_engine.scheduler.step_plan import StepPlan
from rhizome_grammar.compiler import GrammarError


class StepResults:
    """Turns outputs of the runner into events.

    A request may have ended, or given its pages back, since the step was launched: tokens of the former are
    dropped, those of the latter count, for they are the same that it would choose again.

    Args:
        open_requests: where requests end.
        scheduler: is told what was computed.
        constraints: follow chosen tokens.
        meter: counts tokens.
        clock: monotonic seconds.

    Attributes:
        token_gaps: time between a request's tokens; those that a grammar forces come together.
    """

    def __init__(
        self,
        open_requests: OpenRequests,
        scheduler: Scheduler,
        constraints: Constraints,
        meter: LoadMeter,
        clock: Callable[[], float],
    ) -> None:
        self.token_gaps = TokenGaps()
        self._open = open_requests
        self._scheduler = scheduler
        self._constraints = constraints
        self._meter = meter
        self._clock = clock

    def apply(self, plan: StepPlan, output: StepOutput, events: list[Event]) -> None:
        """Let computed tokens catch up with known ones and tell the new ones.

        Args:
            plan: the step.
            output: what the runner computed.
            events: where to tell it.
        """
        now = self._clock()
        still_there = self._scheduler.confirm(plan, np.array(output.token_ids, np.int64)).tolist()
        self._tell_scores(plan, output, events)
        self._tell_vectors(plan, output, events)
        generated = 0
        positions = plan.sampled_positions.tolist()
        results = zip(plan.sampled, positions, still_there, output.token_ids, output.logprobs, strict=True)
        for request, position, holds_pages, token_id, logprobs in results:
            # It may have ended meanwhile, or a grammar has forced this token already.
            if request.state is RequestState.FINISHED or request.num_tokens != position:
                continue
            if holds_pages:
                request.num_computed = position
            if token_id == NO_TOKEN:
                events.append(self._no_token(request))
                continue
            before = request.num_tokens
            self._take_token(request, token_id, logprobs, now, events)
            generated += request.num_tokens - before
        self._meter.generated(generated, now)
        for chunk in plan.chunks:
            request = chunk.request
            is_whole = request.num_computed == request.num_tokens
            if is_whole and request.max_output == 0 and request.embedding is None:
                events.append(self._open.finish(request, FinishReason.LENGTH))

    def _take_token(
        self,
        request: Request,
        token_id: int,
        logprobs: TokenLogprobs | None,
        now: float,
        events: list[Event],
    ) -> None:
        """Append a chosen token, and what a grammar forces after it, until the request ends."""
        tokens = [token_id]
        if request.last_token is not None:
            self.token_gaps.observe(now - request.last_token)
        request.append(token_id, now)
        stopped = token_id in request.stop_ids
        if request.matcher is not None and not stopped:
            try:
                forced = self._constraints.accept(request, token_id)
            except GrammarError as error:
                events.append(self._open.fail(request, grpc.StatusCode.INTERNAL, str(error)))
                return
            for token in forced:
                request.append(token, now)
                request.forced_tokens += 1
                self._meter.totals.forced_tokens += 1
                tokens.append(token)
                stopped = token in request.stop_ids
                if stopped:
                    break
            if forced and request.state is RequestState.RUNNING:
                self._scheduler.extend(request)
        said = tokens[:-1] if stopped else tokens
        if said:
            events.append(TokensEvent(request, said, None if logprobs is None else [logprobs]))
        if stopped:
            events.append(self._open.finish(request, FinishReason.STOP, tokens[-1]))
        elif request.matcher is not None and request.matcher.is_finished:
            events.append(self._open.finish(request, FinishReason.STOP))
        elif request.num_tokens >= request.max_total_tokens:
            events.append(self._open.finish(request, FinishReason.LENGTH))

    def _tell_scores(self, plan: StepPlan, output: StepOutput, events: list[Event]) -> None:
        """Hand out log probabilities of prompt tokens, each once even where a prompt was computed again."""
        chunks = [chunk for chunk in plan.chunks if chunk.score_end > chunk.start + 1]
        for chunk, logprobs in zip(chunks, output.prompt_logprobs, strict=True):
            request = chunk.request
            news = logprobs[max(request.scored - chunk.start - 1, 0) :]
            if request.state is not RequestState.FINISHED and news:
                request.scored += len(news)
                events.append(PromptLogprobsEvent(request, news))

    def _tell_vectors(self, plan: StepPlan, output: StepOutput, events: list[Event]) -> None:
        """Hand out the vectors of prompts that are complete, which ends their requests."""
        complete = [chunk.request for chunk in plan.chunks if chunk.gives_vector]
        for request, values in zip(complete, output.embeddings, strict=True):
            if request.state is RequestState.FINISHED:
                continue
            if np.isfinite(values).all():
                events.append(EmbeddingEvent(request, values))
                events.append(self._open.finish(request, FinishReason.STOP))
            else:
                text = "the model's hidden states are no numbers; the checkpoint or its dtype is damaged"
                events.append(self._open.fail(request, grpc.StatusCode.INTERNAL, text))

    def _no_token(self, request: Request) -> FailedEvent:
        """End a request for which no token could be chosen."""
        if request.matcher is not None and request.matcher.error is not None:
            code, text = grpc.StatusCode.INTERNAL, request.matcher.error
            return self._open.fail(request, code, text, "grammar")
        if request.matcher or request.params.allowed_token_ids is not None or request.params.bad_words:
            text = "no token may come next: grammar, allowed tokens, bad words and min_tokens exclude all"
            code = grpc.StatusCode.INVALID_ARGUMENT
            return self._open.fail(request, code, text, "sampling", outcome="invalid")
        text = "the model's logits are no numbers; the checkpoint or its dtype is damaged"
        return self._open.fail(request, grpc.StatusCode.INTERNAL, text)
