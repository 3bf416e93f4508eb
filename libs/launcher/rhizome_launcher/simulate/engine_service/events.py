"""What happens to a request, in the contract's messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rhizome.engine.v1.frames_pb2 import EngineFrame, RequestEvent
from rhizome.engine.v1.generate_pb2 import (
    FINISH_REASON_CANCELLED,
    FINISH_REASON_STOP,
    Finished,
    FinishReason,
    GenerateResponse,
    Started,
    TokenDelta,
)
from rhizome_launcher.simulate.request import SimulatedRequest


def started_response(request: SimulatedRequest) -> GenerateResponse:
    """The first event."""
    return GenerateResponse(
        started=Started(prompt_tokens=request.prompt_tokens, cached_tokens=request.cached, seed=request.seed)
    )


def finished_response(request: SimulatedRequest, reason: FinishReason.ValueType) -> GenerateResponse:
    """The last event."""
    finished = Finished(reason=reason)
    finished.usage.prompt_tokens = request.prompt_tokens
    finished.usage.completion_tokens = request.generated
    finished.usage.cached_tokens = request.cached
    moments = (request.arrived_s, request.started_s, request.first_token_s, request.ended_s)
    spans = (finished.timings.queue_time, finished.timings.prefill_time, finished.timings.decode_time)
    for span, begin, end in zip(spans, moments, moments[1:], strict=False):
        if begin is not None and end is not None:
            span.FromNanoseconds(round((end - begin) * 1e9))
    if request.first_token_s is not None:
        first_s = request.first_token_s - request.arrived_s
        finished.timings.time_to_first_token.FromNanoseconds(round(first_s * 1e9))
    return GenerateResponse(finished=finished)


class EventSink:
    """Gathers what happens to one request until somebody takes it.

    Args:
        token_ids: of the engine's vocabulary.
        reason: how the request ends where nobody cancels it.
        on_news: called once per step in which something happened.
        stall_after: of the output's tokens; nothing is heard of those that follow. Negative for none.
    """

    def __init__(
        self,
        token_ids: Sequence[int],
        reason: FinishReason.ValueType,
        on_news: Callable[[EventSink], None],
        stall_after: int = -1,
    ) -> None:
        self._token_ids = token_ids
        self._reason = reason
        self._on_news = on_news
        self._until_stall = stall_after
        self.request: SimulatedRequest | None = None
        self.first: GenerateResponse | None = None
        self.tokens: list[int] = []
        self.last: GenerateResponse | None = None

    def started(self, request: SimulatedRequest) -> None:
        """Part of `Sink`."""
        self.first = started_response(request)

    def token(self, index: int) -> None:
        """Part of `Sink`."""
        if self._until_stall != 0:
            self._until_stall -= 1
            self.tokens.append(self._token_ids[index])

    def finished(self, request: SimulatedRequest) -> None:
        """Part of `Sink`."""
        if self._until_stall != 0:
            self.last = finished_response(request, self._reason)

    def flush(self) -> None:
        """Part of `Sink`."""
        if self.tokens or self.first or self.last:
            self._on_news(self)

    def cancelled(self, request: SimulatedRequest, *, satisfied: bool) -> None:
        """The caller ended it."""
        self.last = finished_response(request, FINISH_REASON_STOP if satisfied else FINISH_REASON_CANCELLED)

    def take(self) -> Iterable[GenerateResponse]:
        """What happened since the last time."""
        first, tokens, last = self.first, self.tokens, self.last
        self.first, self.tokens, self.last = None, [], None
        if first is not None:
            yield first
        if tokens:
            yield GenerateResponse(delta=TokenDelta(token_ids=tokens))
        if last is not None:
            yield last


class FrameEvents:
    """Serialised frames of one event, for one request; joined they are one frame with all of them.

    A token's event ends with the token, and ids whose numbers take equally many bytes have the same bytes
    before them. These are made once, so that a token costs no message.

    Args:
        request_id: whose events.
    """

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._heads: dict[int, bytes] = {}

    def take(self, sink: EventSink) -> bytes:
        """What happened to it."""
        if len(sink.tokens) == 1 and sink.first is None and sink.last is None:
            return self._token(sink.tokens.pop())
        return b"".join(
            self._event(response, final=response.HasField("finished")) for response in sink.take()
        )

    def _token(self, token_id: int) -> bytes:
        number = _VARINTS.get(token_id) or _varint(token_id)
        head = self._heads.get(len(number))
        if head is None:
            event = self._event(GenerateResponse(delta=TokenDelta(token_ids=(token_id,))))
            head = self._heads[len(number)] = event[: -len(number)]
        return head + number

    def _event(self, response: GenerateResponse, *, final: bool = False) -> bytes:
        event = RequestEvent(request_id=self._request_id, response=response, final=final)
        return EngineFrame(events=(event,)).SerializeToString()


_VARINTS: dict[int, bytes] = {}


def _varint(number: int) -> bytes:
    written = bytearray()
    left = number
    while left > 0x7F:
        written.append(left & 0x7F | 0x80)
        left >>= 7
    written.append(left)
    _VARINTS[number] = bytes(written)
    return _VARINTS[number]
