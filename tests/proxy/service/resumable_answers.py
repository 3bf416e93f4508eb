"""Engines that are lost in the middle of an answer, and what the whole one is."""

from __future__ import annotations

import asyncio

import grpc

from rhizome.engine.v1.frames_pb2 import RequestEvent
from rhizome.engine.v1.generate_pb2 import (
    FINISH_REASON_LENGTH,
    Finished,
    GenerateRequest,
    GenerateResponse,
    PromptLogprobs,
    Started,
    TokenDelta,
    TokenIds,
    TokenLogprob,
)
from rhizome_testing.hash_runner import expected_tokens
from rhizome_transport.errors import EngineError

PROMPT = [3, 1, 4, 1, 5, 9]
SEED, CACHED = 77, 2
LOST = EngineError(grpc.StatusCode.ABORTED, "the core ended", reason="ENGINE_LOST")
LOST_EARLY = EngineError(grpc.StatusCode.UNAVAILABLE, "the core ended", reason="ENGINE_LOST")


def whole_answer(request: GenerateRequest, group: int = 1) -> list[GenerateResponse]:
    """What an engine says to a request; token, score and log probability follow from what came before."""
    ids, resumed = list(request.token_ids.ids), request.resumed_tokens
    seed = request.sampling.seed if request.sampling.HasField("seed") else SEED
    prompt = ids[: len(ids) - resumed]
    events = [GenerateResponse(started=Started(prompt_tokens=len(prompt), cached_tokens=len(ids), seed=seed))]
    if not resumed:
        events[0].started.cached_tokens = CACHED
    if request.HasField("prompt_logprobs"):
        scores = [TokenLogprob(logprob=-token) for token in prompt[1:]]
        events += [
            GenerateResponse(prompt_logprobs=PromptLogprobs(logprobs=scores[at : at + 2]))
            for at in range(0, len(scores), 2)
        ]
    tokens = expected_tokens(ids, request.stop.max_tokens - resumed)
    for at in range(0, len(tokens), group):
        delta = TokenDelta(token_ids=tokens[at : at + group])
        if request.sampling.HasField("top_logprobs"):
            delta.logprobs.extend(TokenLogprob(logprob=-token) for token in delta.token_ids)
        events.append(GenerateResponse(delta=delta))
    finished = Finished(reason=FINISH_REASON_LENGTH)
    finished.usage.prompt_tokens = len(prompt)
    finished.usage.completion_tokens = resumed + len(tokens)
    finished.usage.cached_tokens = len(ids)
    finished.timings.decode_time.FromMilliseconds(1)
    events.append(GenerateResponse(finished=finished))
    return events


def losing(breaks: list[int], *, kill: bool = False, group: int = 1):
    """A script for all engines: the n-th attempt is lost after breaks[n] events, later ones are not."""

    killers: list[asyncio.Task[None]] = []

    async def script(peer, submit):
        request = submit.request
        events = whole_answer(request, group)
        sent = min(breaks.pop(0), len(events) - 1) if breaks else len(events)
        for event in events[:sent]:
            final = event.HasField("finished")
            await peer.send(RequestEvent(request_id=request.request_id, response=event, final=final))
        if sent < len(events):
            if kill:
                killers.append(asyncio.create_task(peer.engine.kill()))  # the script ends with its engine
                return
            error = LOST if sent else LOST_EARLY
            await peer.send(RequestEvent(request_id=request.request_id, status=error.to_status(), final=True))

    return script


def ask(max_tokens: int = 8, **fields) -> GenerateRequest:
    request = GenerateRequest(request_id="r1", token_ids=TokenIds(ids=PROMPT), **fields)
    request.stop.max_tokens = max_tokens
    return request


async def submit(peer, request, **fields) -> None:
    await peer.send(submit={"request": request, **fields})


def check_whole(events: list[RequestEvent], request: GenerateRequest) -> None:
    """The caller sees one answer that one engine could have given."""
    kinds = [event.response.WhichOneof("event") for event in events]
    assert kinds[0] == "started" and kinds.count("started") == 1
    assert kinds[-1] == "finished" and kinds.count("finished") == 1 and None not in kinds
    assert [event.final for event in events] == [False] * (len(events) - 1) + [True]
    started = events[0].response.started
    assert (started.prompt_tokens, started.cached_tokens, started.seed) == (len(PROMPT), CACHED, SEED)
    tokens = [i for event in events for i in event.response.delta.token_ids]
    assert tokens == expected_tokens(PROMPT, request.stop.max_tokens)
    logprobs = [-int(one.logprob) for event in events for one in event.response.delta.logprobs]
    assert logprobs == (tokens if request.sampling.HasField("top_logprobs") else [])
    scores = [-int(one.logprob) for event in events for one in event.response.prompt_logprobs.logprobs]
    assert scores == (PROMPT[1:] if request.HasField("prompt_logprobs") else [])
    finished = events[-1].response.finished
    usage = finished.usage
    assert finished.reason == FINISH_REASON_LENGTH
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(PROMPT), request.stop.max_tokens)
