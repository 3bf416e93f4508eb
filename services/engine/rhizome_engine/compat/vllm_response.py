"""One choice of an answer in vLLM's form: chunks with new tokens, and one message that completes it.

The token that ends an answer (end of sequence, or one of `stop_token_ids`) is among the tokens here, though
our own events tell it apart: routers count tokens by looking at these, and know what not to show.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from smg_grpc_proto import vllm_engine_pb2 as vllm

from rhizome.engine.v1.generate_pb2 import (
    FINISH_REASON_CANCELLED,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    Finished,
    GenerateResponse,
    TokenDelta,
    TokenLogprob,
)

_REASONS = {
    FINISH_REASON_STOP: "stop",
    FINISH_REASON_LENGTH: "length",
    FINISH_REASON_CANCELLED: "abort",
}


class Choice:
    """Translates the events of one request.

    Args:
        index: which choice it is.
        stream: tokens are told as they come; otherwise all in the last message.
        prompt: token ids, for their log probabilities.
        stop_token_ids: those of the request; an end-of-sequence token is not named as a match.
    """

    def __init__(
        self, index: int, *, stream: bool, prompt: Sequence[int], stop_token_ids: Collection[int]
    ) -> None:
        self._index = index
        self._stream = stream
        self._prompt = prompt
        self._stop_token_ids = stop_token_ids
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._sent = 0
        self._output_ids: list[int] = []
        self._logprobs = vllm.OutputLogProbs()
        self._prompt_logprobs: list[TokenLogprob] | None = None

    def translate(self, event: GenerateResponse) -> list[vllm.GenerateResponse]:
        """What the caller sees of one event."""
        kind = event.WhichOneof("event")
        if kind == "started":
            self._prompt_tokens = event.started.prompt_tokens
            self._cached_tokens = event.started.cached_tokens
        elif kind == "prompt_logprobs":
            self._prompt_logprobs = [*(self._prompt_logprobs or ()), *event.prompt_logprobs.logprobs]
        elif kind == "delta":
            return self._delta(event.delta)
        elif kind == "finished":
            return self._finished(event.finished)
        return []

    def _delta(self, delta: TokenDelta) -> list[vllm.GenerateResponse]:
        self._sent += len(delta.token_ids)
        logprobs = output_logprobs(delta)
        if self._stream:
            return [self._chunk(delta.token_ids, logprobs)]
        self._output_ids.extend(delta.token_ids)
        self._logprobs.MergeFrom(logprobs)
        return []

    def _chunk(self, token_ids: Sequence[int], logprobs: vllm.OutputLogProbs) -> vllm.GenerateResponse:
        chunk = vllm.GenerateStreamChunk(
            token_ids=token_ids,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=len(token_ids),
            cached_tokens=self._cached_tokens,
            index=self._index,
        )
        if logprobs.token_ids:
            chunk.output_logprobs.CopyFrom(logprobs)
        if self._prompt_logprobs is not None:
            chunk.input_logprobs.CopyFrom(input_logprobs(self._prompt, self._prompt_logprobs))
            self._prompt_logprobs = None
        return vllm.GenerateResponse(chunk=chunk)

    def _finished(self, finished: Finished) -> list[vllm.GenerateResponse]:
        last = [finished.stop_token_id] if finished.HasField("stop_token_id") else []
        self._sent += len(last)
        complete = vllm.GenerateComplete(
            finish_reason=_REASONS[finished.reason],
            prompt_tokens=self._prompt_tokens or finished.usage.prompt_tokens,
            # Tokens after a stop string were generated, but nobody gets them.
            completion_tokens=self._sent,
            cached_tokens=self._cached_tokens,
            index=self._index,
        )
        if finished.HasField("stop_string"):
            complete.matched_stop_str = finished.stop_string
        elif last and last[0] in self._stop_token_ids:
            complete.matched_token_id = last[0]
        if self._stream:
            pending = last or self._prompt_logprobs is not None
            chunks = [self._chunk(last, vllm.OutputLogProbs())] if pending else []
            return [*chunks, vllm.GenerateResponse(complete=complete)]
        complete.output_ids.extend([*self._output_ids, *last])
        if self._logprobs.token_ids:
            complete.output_logprobs.CopyFrom(self._logprobs)
        if self._prompt_logprobs is not None:
            complete.input_logprobs.CopyFrom(input_logprobs(self._prompt, self._prompt_logprobs))
        return [vllm.GenerateResponse(complete=complete)]


def output_logprobs(delta: TokenDelta) -> vllm.OutputLogProbs:
    """Log probabilities of new tokens; empty where none were asked for.

    What a grammar dictates has none, and only the first tokens of a delta do then.
    """
    logprobs = vllm.OutputLogProbs()
    for token_id, logprob in zip(delta.token_ids, delta.logprobs, strict=False):
        logprobs.token_ids.append(token_id)
        logprobs.token_logprobs.append(logprob.logprob)
        if logprob.top:
            logprobs.top_logprobs.append(_top(logprob))
    return logprobs


def input_logprobs(prompt: Sequence[int], known: Sequence[TokenLogprob]) -> vllm.InputLogProbs:
    """Log probabilities of a prompt, whose first token has none."""
    logprobs = vllm.InputLogProbs(token_ids=prompt)
    logprobs.token_logprobs.add()
    logprobs.top_logprobs.add()
    for logprob in known:
        logprobs.token_logprobs.add(value=logprob.logprob)
        logprobs.top_logprobs.append(_top(logprob))
    return logprobs


def _top(logprob: TokenLogprob) -> vllm.TopLogProbs:
    return vllm.TopLogProbs(
        values=[one.logprob for one in logprob.top], token_ids=[one.token_id for one in logprob.top]
    )
