"""A completion as OpenAI's API shows it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import orjson

from rhizome_gateway.generation.summary import Answer, Summary
from rhizome_gateway.openai.completions.logprobs import logprobs_object
from rhizome_gateway.openai.completions.request import CompletionRequest
from rhizome_gateway.openai.completions.shown import ShownChoice
from rhizome_gateway.openai.completions.stream import CompletionStream
from rhizome_gateway.openai.objects import usage_object
from rhizome_gateway.served_model import ServedModel


class CompletionRendering:
    """Shows one completion; see `generation.writer.Rendering`.

    Args:
        completion_id: names it.
        request: what was asked.
        served: the model.
        shown: the candidates, which have collected what they show unless it is streamed.
    """

    def __init__(
        self,
        completion_id: str,
        request: CompletionRequest,
        served: ServedModel,
        shown: Sequence[ShownChoice],
    ) -> None:
        self._request = request
        self._shown = shown
        self._head: dict[str, Any] = {
            "id": completion_id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": request.model,
            "system_fingerprint": served.fingerprint,
        }

    def stream(self, summary: Summary) -> CompletionStream:
        """Begin a stream."""
        head, include_usage = orjson.dumps(self._head), self._request.include_usage
        return CompletionStream(head, summary, self._shown, include_usage=include_usage)

    def whole(self, answers: Sequence[Answer], summary: Summary) -> bytes:
        """The whole completion."""
        step = self._request.num_candidates
        best = [self._best(start) for start in range(0, len(answers), step)]
        chosen = [place for places in best for place in places]
        scored = self._request.logprobs is not None
        choices = [
            _choice(index, self._shown[place], answers[place].finish_reason, scored)
            for index, place in enumerate(chosen)
        ]
        cost = orjson.dumps({"usage": usage_object(summary), "performance": summary.performance})
        return b"".join((orjson.dumps(self._head)[:-1], b',"choices":[', b",".join(choices), b"],", cost[1:]))

    def _best(self, start: int) -> Sequence[int]:
        """Of one prompt's candidates those to return; if there are more, the likeliest, best first."""
        request = self._request
        places = range(start, start + request.num_candidates)
        if request.num_candidates == request.num_choices:
            return places
        ranked = sorted(places, key=lambda place: self._shown[place].mean_logprob, reverse=True)
        return ranked[: request.num_choices]


def _choice(index: int, shown: ShownChoice, finish_reason: str, scored: bool) -> bytes:
    logprobs = b"null"
    if scored:
        logprobs = logprobs_object([p.logprobs for p in shown.pieces if p.logprobs is not None])
    return b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b}' % (
        index,
        orjson.dumps("".join([piece.text for piece in shown.pieces])),
        logprobs,
        orjson.dumps(finish_reason),
    )
