"""`Embed`: one call, one request for each of its inputs.

The answer travels in parts, each an `EmbedResponse` with the next vectors: joined, their bytes are the whole
one, as protobuf has it. So no step is held up by megabytes, and vectors do not wait for the last of them.
"""

from __future__ import annotations

import time

import grpc

from rhizome.common.v1.common_pb2 import Usage
from rhizome.engine.v1 import engine_service_pb2 as engine
from rhizome.engine.v1.frames_pb2 import Call, CallResult
from rhizome_engine.batch import Float32
from rhizome_engine.core.durations import to_seconds
from rhizome_engine.core.events import EmbeddingEvent, Event, FailedEvent, FinishedEvent
from rhizome_engine.core.long_calls import answered, failed
from rhizome_engine.core.served_model import POOLING_NUMBERS, ServedModel
from rhizome_engine.core.translate import check_model, check_name, check_prompt
from rhizome_engine.embedding.pooling import EmbeddingParams, Pooling
from rhizome_engine.scheduler.request import FinishReason, Request
from rhizome_telemetry.propagation import from_proto
from rhizome_transport.channel import MAX_MESSAGE_BYTES
from rhizome_transport.errors import EngineError
from rhizome_transport.frame_server import Peer
from rhizome_transport.packed_ids import ids_array

MAX_INPUTS = 2048
_PART_BYTES = 1024 * 1024
_ROOM_FOR_NUMBERS = 0.9
"""Of a message; the rest is for what surrounds them."""
_POOLINGS = {number: pooling for pooling, number in POOLING_NUMBERS.items() if pooling is not None}


class EmbedCall:
    """One `Embed` under way. It stands where other requests have their peer, so that events find back to it.

    Attributes:
        asker: who called.
        requests: one per input, in order; all end with the call.
        request_id: by which `Abort` finds it; may be empty.
        ended: whether it was answered.
        why_cancelled: what the caller is told if its requests are cancelled; the code tells others whether to
            try again.
    """

    def __init__(self, asker: Peer, call: Call, model: ServedModel) -> None:
        """Read the call; the engine core checks the inputs when they are added.

        Raises:
            DecodeError: the request is no EmbedRequest.
            EngineError: it names another model, has no inputs or too many, or leaves open how to pool them.
        """
        message = engine.EmbedRequest.FromString(call.request)
        check_model(message.model, model.name)
        check_name(message.cache_namespace, "cache_namespace")
        check_name(message.tenant, "tenant")
        _check_sizes(message, model.info.embedding_size)
        params = EmbeddingParams(
            _pooling(message, model), message.normalize if message.HasField("normalize") else True
        )
        deadline = time.monotonic() + to_seconds(call.timeout) if call.HasField("timeout") else None
        self.asker = asker
        self.request_id = message.request_id
        self.trace = from_proto(call.trace) if call.HasField("trace") else None
        self.ended = False
        self.why_cancelled = EngineError(grpc.StatusCode.CANCELLED, "the caller gave up")
        self.usage = Usage()
        self._call = call
        self._vectors: dict[int, bytes] = {}  # those before which another one is missing
        self._num_taken = 0
        self._unsent = bytearray()
        self._left = len(message.inputs)
        self.requests = [
            Request(
                str(index),
                ids_array(ids),
                peer=self,
                embedding=params,
                namespace=message.cache_namespace,
                tenant=message.tenant,
                priority=message.priority,
                deadline=deadline,
            )
            for index, ids in enumerate(message.inputs)
        ]

    @property
    def key(self) -> tuple[Peer, str]:
        """By what its asker means it."""
        return self.asker, self._call.call_id

    def take(self, event: Event) -> CallResult | None:
        """Note what happened to an input; what can be told the caller: more of the answer, or an error."""
        if self.ended:
            return None
        result = None
        match event:
            case EmbeddingEvent():
                self._vectors[int(event.request.request_id)] = _in_wire_form(event.values)
                return self._next_part()
            case FailedEvent():
                result = self._failed(event)
            case FinishedEvent() if event.reason is FinishReason.CANCELLED:
                result = failed(self._call, self.why_cancelled)
            case FinishedEvent():
                self.usage.prompt_tokens += event.usage.prompt_tokens
                self.usage.cached_tokens += event.usage.cached_tokens
                self.usage.preemptions += event.usage.preemptions
                self._left -= 1
                if not self._left:
                    result = self._answered()
        self.ended = result is not None  # by now it would be the last one
        return result

    def _next_part(self) -> CallResult | None:
        """Vectors that are next in order, once they are enough for a frame of their own."""
        while (vector := self._vectors.pop(self._num_taken, None)) is not None:
            self._num_taken += 1
            self._unsent += vector
        if len(self._unsent) < _PART_BYTES:
            return None
        part, self._unsent = bytes(self._unsent), bytearray()
        return CallResult(call_id=self._call.call_id, response=part)

    def _answered(self) -> CallResult:
        rest = engine.EmbedResponse(usage=self.usage).SerializeToString()
        return answered(self._call, bytes(self._unsent) + rest)

    def _failed(self, event: FailedEvent) -> CallResult:
        error, name = event.error, f"inputs[{event.request.request_id}]"
        text = f"{name}: {error.message}"
        return failed(self._call, EngineError(error.code, text, reason=error.reason, param=name))


def aborted() -> EngineError:
    """For a call that somebody ended by its id; nobody should try it again."""
    return EngineError(grpc.StatusCode.ABORTED, "the call was ended by Abort", reason="ABORTED")


def drained() -> EngineError:
    """For a call that was not done when a drain's time was over."""
    text = "the engine was drained before all inputs were embedded; send the call to another one"
    return EngineError(grpc.StatusCode.UNAVAILABLE, text, reason="DRAINING")


def _pooling(message: engine.EmbedRequest, model: ServedModel) -> Pooling:
    if message.pooling in _POOLINGS:
        return _POOLINGS[message.pooling]
    if message.pooling != engine.POOLING_UNSPECIFIED:
        raise _invalid(f"pooling {message.pooling} is not known to this engine", "pooling")
    try:
        return model.pooling.choose()
    except ValueError as error:
        raise _invalid(str(error), "pooling") from error


def _check_sizes(message: engine.EmbedRequest, embedding_size: int) -> None:
    """Refuse what is too much before it is read."""
    count = len(message.inputs)
    if not 1 <= count <= MAX_INPUTS:
        raise _invalid(f"a call embeds 1 to {MAX_INPUTS} inputs, not {count}; send several calls", "inputs")
    most = int(MAX_MESSAGE_BYTES * _ROOM_FOR_NUMBERS) // (4 * max(embedding_size, 1))
    if count > most:
        text = f"{count} vectors of {embedding_size} numbers do not fit an answer; send at most {most} inputs"
        raise _invalid(text, "inputs")
    check_prompt(sum(len(ids.ids) for ids in message.inputs), "inputs")


def _in_wire_form(values: Float32) -> bytes:
    """One embedding of an `EmbedResponse`, serialised: the numbers stay the bytes that they are.

    Megabytes of them, turned into Python numbers and back, would hold up a step of all requests.
    """
    numbers = _field(engine.Embedding.VALUES_FIELD_NUMBER, values.astype("<f4", copy=False).tobytes())
    return _field(engine.EmbedResponse.EMBEDDINGS_FIELD_NUMBER, numbers)


def _field(number: int, content: bytes) -> bytes:
    """A protobuf field of bytes: its tag, the length as a varint, the content."""
    head, size = bytearray((number << 3 | 2,)), len(content)
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + content


def _invalid(text: str, param: str) -> EngineError:
    return EngineError(grpc.StatusCode.INVALID_ARGUMENT, text, param=param)
