"""One request's way through the pool: which engine it goes to, which refused it, and the spans of it all."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import grpc

from rhizome.engine.v1.generate_pb2 import GenerateRequest
from rhizome_proxy.policies.base import Policy
from rhizome_proxy.pool.backend import Backend
from rhizome_proxy.pool.registry import Registry
from rhizome_telemetry import semconv
from rhizome_telemetry.propagation import TraceParent
from rhizome_telemetry.rpc import end_rpc_span, start_client_span, start_server_span
from rhizome_transport.channel import ENGINE_SERVICE
from rhizome_transport.errors import EngineError

RETRY_AFTER_S: Final = 1.0
"""When to try again if nobody was ready; checks find an engine that came back faster than that."""

ENGINE_LOST: Final = "ENGINE_LOST"

_TRY_NEXT: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED})
_log = logging.getLogger(__name__)


def may_try_next(error: EngineError) -> bool:
    """Whether another engine may take what this one refused before its first event."""
    return error.code in _TRY_NEXT


def engine_lost(backend: Backend, error: EngineError) -> EngineError:
    """What a caller is told who has read part of an answer that nobody will continue."""
    return EngineError(
        grpc.StatusCode.ABORTED,
        f"engine {backend.name} was lost while it answered ({error.message or error.code.name}); "
        "the answer is incomplete, send the request again",
        reason=ENGINE_LOST,
    )


class Attempt:
    """A request at one engine, counted there until the attempt ends."""

    __slots__ = ("_lease", "_span", "backend")

    def __init__(self, backend: Backend, method: str, parent: TraceParent) -> None:
        self.backend = backend
        self._lease = backend.lease()
        self._span = start_client_span(method, parent, backend.address)

    @property
    def trace_parent(self) -> TraceParent:
        """The engine's parent span."""
        return self._span.trace_parent

    def end(self, code: str = "OK", message: str = "", *, failed: bool = False) -> None:
        """Give the place at the engine back; `failed` means that it refused or broke before an event."""
        self._lease.release(failed=failed)
        end_rpc_span(self._span, code, message, server=False)


class Route:
    """One request: it goes to one engine after another until one takes it.

    Args:
        router: who knows the engines.
        method: method of EngineService.
        request: what is to be run; `None` for a call that is no generation.
        model: served name that is asked for; empty means any.
        parent: the caller's span.
    """

    def __init__(
        self,
        router: Router,
        method: str,
        request: GenerateRequest | None,
        model: str,
        parent: TraceParent | None,
    ) -> None:
        self.attempt: Attempt | None = None
        self._router = router
        self._method = f"{ENGINE_SERVICE}/{method}"
        self._request = request
        self._model = model
        self._tried: set[str] = set()
        self._refusals: list[EngineError] = []
        self._span = start_server_span(self._method, parent)
        if request is not None:
            self._span.set_attributes(
                {
                    semconv.REQUEST_ID: request.request_id or None,
                    semconv.GEN_AI_REQUEST_MODEL: request.model or None,
                }
            )

    def next_attempt(self) -> Attempt:
        """Begin the attempt at the best engine that was not tried.

        Raises:
            EngineError: nobody is left; RESOURCE_EXHAUSTED when an engine was full, else UNAVAILABLE.
        """
        backend = self._router.pick(self._request, self._model, self._tried)
        if backend is None:
            raise self._router.nobody_left(self._refusals)
        self._tried.add(backend.name)
        self._span.add_event(
            semconv.EVENT_PICK,
            {
                semconv.PICK_BACKEND: backend.name,
                semconv.PICK_POLICY: self._router.policy.name,
                semconv.PICK_IN_FLIGHT: backend.in_flight,
            },
        )
        self.attempt = Attempt(backend, self._method, self._span.trace_parent)
        return self.attempt

    def refused(self, error: EngineError) -> None:
        """End the attempt: the engine refused or broke before its first event, and another may take it."""
        assert self.attempt is not None
        self._refusals.append(error)
        _log.info("backend %s did not take a request: %s", self.attempt.backend.name, error.message)
        self.attempt.end(error.code.name, error.message, failed=True)
        self.attempt = None

    def end(self, code: str = "OK", message: str = "", *, failed: bool = False) -> None:
        """End the request, and the attempt that is open; further calls do nothing.

        Args:
            code: name of the gRPC status, CANCELLED where the caller gave up.
            message: the status message.
            failed: the engine had not sent an event.
        """
        if self.attempt is not None:
            self.attempt.end(code, message, failed=failed)
            self.attempt = None
        end_rpc_span(self._span, code, message, server=True)


class Router:
    """Chooses engines for all requests of this proxy."""

    def __init__(self, registry: Registry, policy: Policy) -> None:
        self.registry = registry
        self.policy = policy

    def pick(
        self, request: GenerateRequest | None, model: str, tried: set[str] | frozenset[str] = frozenset()
    ) -> Backend | None:
        """The best engine that is ready and was not tried.

        Engines that are known to serve another model are left out, unless all are: then one of them may say
        in its own words that it does not know the model.
        """
        ready = self.registry.ready()
        if model:
            ready = [backend for backend in ready if not backend.models or model in backend.models] or ready
        untried = [backend for backend in ready if backend.name not in tried]
        ordered = self.policy.order(untried, request)
        return ordered[0] if ordered else None

    def nobody_left(self, refusals: Sequence[EngineError]) -> EngineError:
        """Say why no engine takes a request, and when to try again."""
        hints = [error.retry_after_s for error in refusals if error.retry_after_s is not None]
        retry_after_s = min(hints, default=RETRY_AFTER_S)
        full = [error for error in refusals if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED]
        if full:
            return EngineError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"every ready engine is full, {len(full)} of {len(self.registry)}: {full[-1].message}",
                reason=full[-1].reason,
                retry_after_s=retry_after_s,
            )
        states = "; ".join(
            f"{backend.name} is {backend.state.name.lower()}"
            + (f" ({backend.reason})" if backend.reason else "")
            for backend in self.registry
        )
        refused = f", {len(refusals)} tried and did not take it" if refusals else ""
        return EngineError(
            grpc.StatusCode.UNAVAILABLE,
            f"no engine can take the request: {len(self.registry)} known{refused}. {states}".rstrip(". ")
            + ". Try again when one is ready.",
            reason="NO_ENGINE_READY",
            retry_after_s=retry_after_s,
        )
