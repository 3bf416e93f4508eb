"""Calls that take several steps: the loop answers them when they are done."""

from __future__ import annotations

import time
import uuid

import grpc

from rhizome.engine.v1 import engine_admin_service_pb2 as admin
from rhizome.engine.v1.frames_pb2 import Call, CallResult
from rhizome_engine.core.durations import to_seconds
from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.core.events import FailedEvent, FinishedEvent
from rhizome_engine.core.reports import to_pin
from rhizome_engine.core.translate import check_model, check_name, check_prompt
from rhizome_engine.scheduler.request import FinishReason, Request
from rhizome_transport.errors import EngineError
from rhizome_transport.frame_server import Peer
from rhizome_transport.packed_ids import ids_array

_MAX_PIN_S = 10 * 366 * 24 * 3600
"""Its end must be a date that the contract can name."""


class DrainCall:
    """One `Drain` that waits until nothing is open.

    Attributes:
        call: whose answer is due.
        deadline: when open requests are cancelled, on `time.monotonic`; None waits for ever.
        cancelled: requests cancelled for it.
    """

    def __init__(self, call: Call) -> None:
        """Read the call.

        Raises:
            DecodeError: the request is no DrainRequest.
        """
        request = admin.DrainRequest.FromString(call.request)
        self.call = call
        self.cancelled = 0
        self.deadline: float | None = None
        if request.HasField("timeout"):
            self.deadline = time.monotonic() + to_seconds(request.timeout)

    @property
    def overdue(self) -> bool:
        """Whether the open requests are to be cancelled now."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def result(self) -> CallResult:
        """The answer once nothing is open."""
        return answered(self.call, admin.DrainResponse(cancelled_requests=self.cancelled).SerializeToString())


class WarmPrefixCall:
    """One `WarmPrefix`: a request for no tokens, whose prompt is pinned once it was computed.

    It stands where other requests have their peer, so that its end finds back to it.

    Attributes:
        asker: who called.
        request: what the engine core is given.
    """

    def __init__(self, asker: Peer, call: Call, model: str) -> None:
        """Read the call.

        Raises:
            DecodeError: the request is no WarmPrefixRequest.
            EngineError: it names another model, or its prompt is not tokenised.
        """
        message = admin.WarmPrefixRequest.FromString(call.request)
        check_model(message.model, model)
        check_name(message.cache_namespace, "cache_namespace")
        if message.WhichOneof("input") != "token_ids":
            text = "the core takes token_ids only; EngineAdminService takes text and messages"
            raise EngineError(grpc.StatusCode.INVALID_ARGUMENT, text, param="input")
        check_prompt(len(message.token_ids.ids))
        self.asker = asker
        self._call = call
        self._pin_for_s = to_seconds(message.pin_for) if message.HasField("pin_for") else None
        self._pins = message.pin or self._pin_for_s is not None
        if self._pin_for_s is not None and not 0 < self._pin_for_s <= _MAX_PIN_S:
            text = (
                f"pin_for must be more than 0 s and at most {_MAX_PIN_S} s, not {self._pin_for_s:g} s; "
                "set pin alone to keep the prefix until UnpinPrefix"
            )
            raise EngineError(grpc.StatusCode.INVALID_ARGUMENT, text, param="pin_for")
        self.request = Request(
            f"warm-{uuid.uuid4().hex}",
            ids_array(message.token_ids),
            peer=self,
            max_tokens=0,
            namespace=message.cache_namespace,
        )

    @property
    def key(self) -> tuple[Peer, str]:
        """By what its asker means it."""
        return self.asker, self._call.call_id

    @property
    def requests(self) -> list[Request]:
        """What is computed for it."""
        return [self.request]

    def finish(self, event: FinishedEvent | FailedEvent, core: EngineCore) -> CallResult:
        """The answer, from the request's last event; pins what it computed.

        Nothing runs between a request's end and its event, so the prefix is still in the cache.
        """
        if isinstance(event, FailedEvent):
            return failed(self._call, event.error)
        if event.reason is FinishReason.CANCELLED:
            text = "the prefix was not computed: the engine drains, or the caller gave up"
            return failed(self._call, EngineError(grpc.StatusCode.CANCELLED, text))
        response = admin.WarmPrefixResponse(
            prompt_tokens=event.usage.prompt_tokens, cached_tokens=event.usage.cached_tokens
        )
        if self._pins:
            try:
                pin = core.pin_prefix(self.request.namespace, self.request.prompt_ids, self._pin_for_s)
            except EngineError as error:
                return failed(self._call, error)
            response.pin.CopyFrom(to_pin(pin))
        return answered(self._call, response.SerializeToString())


def answered(call: Call, response: bytes) -> CallResult:
    """The only answer to a call that went well."""
    return CallResult(call_id=call.call_id, response=response, final=True)


def failed(call: Call, error: EngineError) -> CallResult:
    """The only answer to a call that failed."""
    return CallResult(call_id=call.call_id, status=error.to_status(), final=True)
