"""What another engine needs to go on with a request, and how the two halves become one answer.

    first engine:    started  t0 t1 t2 ✗
    second engine:   (prompt + t0 t1 t2, resumed_tokens 3, seed as in `started`)  started  t3 t4 finished
    the caller sees: started  t0 t1 t2 t3 t4 finished

The second engine counts t0 to t2 as output, so penalties, limits, grammar and usage are those of the whole.
It chooses t3 as the first one would have: a choice depends on seed, position and tokens only.
"""

from __future__ import annotations

import contextlib
import time

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError

from rhizome.engine.v1.generate_pb2 import (
    FINISH_REASON_LENGTH,
    Finished,
    GenerateResponse,
    Started,
    TokenDelta,
)
from rhizome_transport.split_request import SplitRequest

_now = time.monotonic


class Continuation:
    """Remembers what a caller has got of one request, from when it was sent to its first engine.

    Args:
        request: as it was asked; `resume` turns it into what the next engine is asked.

    Attributes:
        log: serialised deltas since the last `resume`, joined. Joined messages parse as one message with all
            token ids, so the usual delta is kept by appending its bytes, undecoded.
        streaming: everything but the end is a delta without log probabilities from now on, which may be
            appended to `log` without a look at it.
    """

    __slots__ = (
        "_completed",
        "_first_token_at",
        "_plain",
        "_request",
        "_resumed",
        "_scores_known",
        "_scores_told",
        "_sent_at",
        "_started",
        "_started_at",
        "log",
        "streaming",
    )

    def __init__(self, request: SplitRequest) -> None:
        self.log = bytearray()
        self.streaming = False
        self._request = request
        self._resumed = False
        self._plain = not request.head.sampling.HasField("top_logprobs")
        self._started: Started | None = None
        self._sent_at = _now()
        self._started_at: float | None = None
        self._first_token_at: float | None = None
        self._scores_told = 0
        self._scores_known = 0
        self._completed: int | None = None

    @property
    def tokens(self) -> int:
        """How many the caller has got, by the engine's own words once it has finished."""
        if self._completed is not None:
            return self._completed
        said = 0
        with contextlib.suppress(DecodeError):
            said = len(GenerateResponse.FromString(bytes(self.log)).delta.token_ids)
        return self._request.head.resumed_tokens + said

    @property
    def possible(self) -> bool:
        """Whether tokens are all that there is to know: what an engine has detokenised is not."""
        head = self._request.head
        return (
            not head.no_resume
            and self._request.prompt is not None
            and not head.stop.strings
            and not head.echo
        )

    def take(self, payload: bytes) -> bytes | None:
        """Note an event; returns it as the caller should see it, `None` where the caller has it already."""
        event = GenerateResponse.FromString(payload)
        match event.WhichOneof("event"):
            case "started":
                if self._started is not None:
                    return None
                self._started, self._started_at = event.started, _now()
            case "prompt_logprobs":
                return self._take_scores(event, payload)
            case "delta":
                if self._first_token_at is None:
                    self._first_token_at = _now()
                self.streaming = self._plain
                if self._plain:
                    self.log += payload
                else:
                    ids = TokenDelta(token_ids=event.delta.token_ids)
                    self.log += GenerateResponse(delta=ids).SerializeToString()
            case "finished":
                if event.finished.HasField("usage"):
                    self._completed = event.finished.usage.completion_tokens
                if self._resumed:
                    return self._whole(event.finished)
        return payload

    def resume(self) -> bool:
        """Make the request ask for the rest; whether there is a rest."""
        head = self._request.head
        tokens = GenerateResponse.FromString(bytes(self.log)).delta.token_ids
        self.log.clear()
        self.streaming = False
        self._resumed = True
        self._request.append(tokens)
        head.resumed_tokens += len(tokens)
        if self._started is not None and not head.sampling.HasField("seed"):
            head.sampling.seed = self._started.seed
        if self._first_token_at is not None:
            head.ClearField("prompt_logprobs")  # they come before the first token
        self._scores_known = self._scores_told
        limit = head.stop.max_tokens if head.stop.HasField("max_tokens") else None
        return not head.resumed_tokens or limit is None or head.resumed_tokens < limit

    def end(self) -> bytes:
        """The last event of a request that had got all its tokens when its engine was lost."""
        request, finished = self._request, Finished(reason=FINISH_REASON_LENGTH)
        finished.usage.prompt_tokens = len(request.token_ids) - request.head.resumed_tokens
        finished.usage.completion_tokens = request.head.resumed_tokens
        return self._whole(finished)

    def _take_scores(self, event: GenerateResponse, payload: bytes) -> bytes | None:
        """Log probabilities of the prompt: an engine that begins anew tells all of them again."""
        scores = event.prompt_logprobs.logprobs
        known = min(self._scores_known, len(scores))
        self._scores_known -= known
        self._scores_told += len(scores) - known
        if not known:
            return payload
        del scores[:known]
        return event.SerializeToString() if scores else None

    def _whole(self, finished: Finished) -> bytes:
        """Usage and timings as if one engine had done it all; the times are the proxy's."""
        if self._started is not None:
            finished.usage.cached_tokens = self._started.cached_tokens
        finished.ClearField("timings")
        now = _now()
        started_at = now if self._started_at is None else self._started_at
        first_at = now if self._first_token_at is None else self._first_token_at
        times = finished.timings
        _set(times.queue_time, started_at - self._sent_at)
        _set(times.prefill_time, first_at - started_at)
        _set(times.decode_time, now - first_at)
        _set(times.time_to_first_token, 0.0 if self._first_token_at is None else first_at - self._sent_at)
        return GenerateResponse(finished=finished).SerializeToString()


def _set(duration: Duration, seconds: float) -> None:
    duration.FromNanoseconds(max(0, int(seconds * 1e9)))
