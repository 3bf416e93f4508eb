"""Unary methods inside the frame stream: `Call` in, `CallResult`s out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet

import grpc
from google.protobuf.message import DecodeError

from rhizome.engine.v1 import engine_admin_service_pb2 as admin
from rhizome.engine.v1 import engine_service_pb2 as engine
from rhizome.engine.v1.frames_pb2 import Call, CallResult
from rhizome.engine.v1.load_pb2 import DroppedFrames, Load
from rhizome_engine.core.cache_tree import to_cache_tree
from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.core.long_calls import failed
from rhizome_engine.core.reports import to_cache_stats, to_load, to_pin
from rhizome_engine.core.request_histograms import RequestHistograms
from rhizome_engine.core.served_model import ServedModel
from rhizome_engine.core.translate import check_model
from rhizome_transport.errors import EngineError
from rhizome_transport.frame_server import FrameServerCounters
from rhizome_transport.tokenizer_chunks import split_files

_log = logging.getLogger(__name__)

_MOST_ABORTED = 16_384

ADMIN_METHODS = frozenset(
    method.name for method in admin.DESCRIPTOR.services_by_name["EngineAdminService"].methods
)
"""Not for peers that came in through the public port."""


class CallHandler:
    """Answers every method that can be answered at once; `long_calls` has the others, which the loop answers.

    Args:
        core: whose load and cache it is.
        model: what is served.
        histograms: of ended requests.
        abort: ends the requests with these ids, whichever peer sent them.
        dropped: what the socket did not take.

    Attributes:
        draining: whether no new requests are taken.
    """

    def __init__(
        self,
        core: EngineCore,
        model: ServedModel,
        histograms: RequestHistograms,
        abort: Callable[[AbstractSet[str]], None],
        dropped: FrameServerCounters | None = None,
    ) -> None:
        self.draining = False
        self._dropped = dropped or FrameServerCounters()
        self._core = core
        self._model = model
        self._histograms = histograms
        self._abort = abort
        self._load_sequence = 0
        # Prepared: megabytes to hash and to pack would hold up a step of all requests.
        self._tokenizer_chunks = [chunk.SerializeToString() for chunk in split_files(model.tokenizer_files)]
        self._methods: dict[str, Callable[[bytes], Iterable[bytes]]] = {
            "GetModelInfo": self._get_model_info,
            "GetTokenizer": self._get_tokenizer,
            "GetLoad": self._get_load,
            "FlushCache": self._flush_cache,
            "UnpinPrefix": self._unpin_prefix,
            "ListPins": self._list_pins,
            "GetCacheStats": self._get_cache_stats,
            "GetCacheTree": self._get_cache_tree,
            "Abort": self._abort_requests,
        }

    def answer(self, call: Call) -> list[CallResult]:
        """All results of one call, the last one final; errors are results too."""
        try:
            method = self._methods.get(call.method)
            if method is None:
                known = ", ".join(sorted([*self._methods, "Drain", "Embed", "WarmPrefix", "WatchKvEvents"]))
                raise EngineError(
                    grpc.StatusCode.UNIMPLEMENTED,
                    f"{call.method!r} cannot be called in a frame; what can: {known}",
                )
            results = [CallResult(call_id=call.call_id, response=part) for part in method(call.request)]
        except DecodeError:
            message = f"the request of {call.method} is no such protobuf message"
            return [failed(call, EngineError(grpc.StatusCode.INVALID_ARGUMENT, message))]
        except EngineError as error:
            return [failed(call, error)]
        except Exception:
            _log.exception("%s failed", call.method)
            message = f"{call.method} failed; the engine's log has the traceback"
            return [failed(call, EngineError(grpc.StatusCode.INTERNAL, message))]
        results[-1].final = True
        return results

    def load(self) -> Load:
        """The engine's load now, with the next sequence number."""
        self._load_sequence += 1
        return to_load(self._core.load(), self._model.info.instance_id, self._load_sequence)

    def _get_model_info(self, request: bytes) -> Iterable[bytes]:
        check_model(engine.GetModelInfoRequest.FromString(request).model, self._model.name)
        return [self._model.info.SerializeToString()]

    def _get_tokenizer(self, request: bytes) -> Iterable[bytes]:
        check_model(engine.GetTokenizerRequest.FromString(request).model, self._model.name)
        return self._tokenizer_chunks

    def _get_load(self, request: bytes) -> Iterable[bytes]:
        engine.GetLoadRequest.FromString(request)
        dropped = self._dropped
        response = engine.GetLoadResponse(
            load=self.load(),
            histograms=self._histograms.message(),
            draining=self.draining,
            dropped_frames=DroppedFrames(
                undecodable=dropped.undecodable,
                before_hello=dropped.before_hello,
                unknown=dropped.unknown,
                refused_connections=dropped.refused,
            ),
        )
        return [response.SerializeToString()]

    def _flush_cache(self, request: bytes) -> Iterable[bytes]:
        message = admin.FlushCacheRequest.FromString(request)
        namespace = message.cache_namespace if message.HasField("cache_namespace") else None
        freed = self._core.flush_cache(namespace)
        return [admin.FlushCacheResponse(freed_pages=freed).SerializeToString()]

    def _unpin_prefix(self, request: bytes) -> Iterable[bytes]:
        known = self._core.unpin_prefix(admin.UnpinPrefixRequest.FromString(request).pin_id)
        return [admin.UnpinPrefixResponse(unpinned=known).SerializeToString()]

    def _list_pins(self, request: bytes) -> Iterable[bytes]:
        admin.ListPinsRequest.FromString(request)
        return [admin.ListPinsResponse(pins=map(to_pin, self._core.list_pins())).SerializeToString()]

    def _get_cache_stats(self, request: bytes) -> Iterable[bytes]:
        admin.GetCacheStatsRequest.FromString(request)
        return [to_cache_stats(self._core.cache_stats(), self._core.host_stats()).SerializeToString()]

    def _get_cache_tree(self, request: bytes) -> Iterable[bytes]:
        message, info = engine.GetCacheTreeRequest.FromString(request), self._model.info
        tree = to_cache_tree(self._core.cache_survey, message, info.page_size, info.instance_id)
        return [tree.SerializeToString()]

    def _abort_requests(self, request: bytes) -> Iterable[bytes]:
        request_ids = engine.AbortRequest.FromString(request).request_ids
        if len(request_ids) > _MOST_ABORTED:
            text = f"there are {len(request_ids)} ids; at most {_MOST_ABORTED} are taken in a call"
            raise EngineError(grpc.StatusCode.INVALID_ARGUMENT, text, param="request_ids")
        self._abort(frozenset(request_ids))
        return [engine.AbortResponse().SerializeToString()]
