"""The engine behind the contract: requests in, events out, and what it says of itself."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Mapping
from itertools import count
from typing import Final

import grpc
import orjson

from rhizome.engine.v1.engine_service_pb2 import (
    GetModelInfoResponse,
    KvCleared,
    KvEvent,
    KvRemoved,
    KvStored,
    WatchKvEventsResponse,
)
from rhizome.engine.v1.generate_pb2 import FINISH_REASON_LENGTH, FINISH_REASON_STOP, GenerateRequest
from rhizome.engine.v1.load_pb2 import Load, RequestTotals
from rhizome_launcher.simulate.block_pool import Change, Stored
from rhizome_launcher.simulate.engine import Engine, TooLargeError
from rhizome_launcher.simulate.engine_service.events import EventSink
from rhizome_launcher.simulate.faults import Faults
from rhizome_launcher.simulate.heart import Heart
from rhizome_launcher.simulate.physics import Physics
from rhizome_launcher.simulate.request import TOKEN_BYTES, SimulatedRequest
from rhizome_transport.errors import EngineError
from rhizome_transport.packed_ids import ids_array
from rhizome_transport.tokenizer_chunks import files_sha256, split_files

_WORD: Final = re.compile("[\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}\N{LOWER ONE EIGHTH BLOCK}]?[A-Za-z]+")


class EngineCore:
    """A simulated engine with a tokenizer. Must be made inside the running loop.

    Args:
        files: the tokenizer's.
        physics: how fast.
        model: served name.
        speed: simulated seconds per second.
        context_tokens: most tokens of prompt and output together.
        default_max_tokens: after so many the model has said all, where a request sets no limit.

    Attributes:
        engine: what computes.
        faults: what is wrong.
        info: the answer to `GetModelInfo`.
        tokenizer: the answers to `GetTokenizer`.
        after_beat: called after each wake-up.
        kv_watchers: called with every change of the cache.
    """

    def __init__(
        self,
        files: Mapping[str, bytes],
        physics: Physics,
        *,
        model: str,
        speed: float,
        context_tokens: int,
        default_max_tokens: int,
    ) -> None:
        self._token_ids = _word_ids(files["tokenizer.json"])
        vocabulary = [token_id.to_bytes(TOKEN_BYTES, "little") for token_id in self._token_ids]
        self.engine = Engine(physics, vocabulary, watched=True)
        self.heart = Heart(self.engine, speed, self._beat)
        self.faults = Faults()
        self.after_beat: list[Callable[[], None]] = []
        self.kv_watchers: set[Callable[[WatchKvEventsResponse], None]] = set()
        self.instance_id = uuid.uuid4().hex
        self.tokenizer = tuple(split_files(files))
        self._default_max_tokens = default_max_tokens
        self._load_sequence = count(1)
        # Another instance must not go on with the numbers that a watcher knows from this one.
        self._kv_sequence = time.time_ns() // 1000
        self.info = GetModelInfoResponse(
            model=model,
            instance_id=self.instance_id,
            architecture="SimulatedForCausalLM",
            max_context_tokens=context_tokens,
            vocab_size=max(self._token_ids) + 1,
            dtype="float32",
            device="cpu",
            tokenizer_sha256=files_sha256(files),
            page_size=physics.block_size,
            kv_pages_total=physics.kv_blocks,
            version="0",
        )
        self.info.start_time.GetCurrentTime()

    def submit(self, asked: GenerateRequest, sink: EventSink) -> SimulatedRequest:
        """Queue a request.

        Raises:
            EngineError: it cannot be served, or a fault says so.
        """
        if asked.model not in ("", self.info.model):
            raise EngineError(grpc.StatusCode.NOT_FOUND, "the model does not exist", param="model")
        if not asked.token_ids.ids:
            raise EngineError(
                grpc.StatusCode.INVALID_ARGUMENT,
                "a simulated engine continues token ids; send at least one in token_ids",
                param="token_ids",
            )
        ids = ids_array(asked.token_ids)
        limit = asked.stop.max_tokens if asked.stop.HasField("max_tokens") else self._default_max_tokens
        if len(ids) - asked.resumed_tokens + limit > self.info.max_context_tokens:
            raise EngineError(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"prompt and output together may have {self.info.max_context_tokens} tokens at most",
                reason="CONTEXT_LENGTH_EXCEEDED",
            )
        sampling = asked.sampling
        greedy = sampling.HasField("temperature") and sampling.temperature == 0
        request = SimulatedRequest(
            sink,
            bytearray(ids.tobytes()),
            limit,
            0 if greedy else sampling.seed,
            asked.cache_namespace,
            asked.resumed_tokens,
            asked.tenant or asked.cache_namespace,
        )
        try:
            self.heart.submit(request)
        except TooLargeError as error:
            raise EngineError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None
        return request

    def sink(self, asked: GenerateRequest, on_news: Callable[[EventSink], None]) -> EventSink:
        """Who hears of a request, with the fault that is its.

        Raises:
            EngineError: the fault is an error.
        """
        fault = self.faults.take()
        if fault is not None and fault.status:
            raise EngineError(grpc.StatusCode.UNAVAILABLE, "the simulated engine fails")
        cut = None if fault is None else fault.cut
        reason = FINISH_REASON_LENGTH if asked.stop.HasField("max_tokens") else FINISH_REASON_STOP
        return EventSink(self._token_ids, reason, on_news, -1 if cut is None else cut.after_tokens)

    def load(self) -> Load:
        """How busy it is."""
        engine, totals, physics = self.engine, self.engine.totals, self.engine.physics
        return Load(
            instance_id=self.instance_id,
            sequence=next(self._load_sequence),
            running_requests=engine.running,
            waiting_requests=engine.waiting,
            waiting_tokens=engine.waiting_tokens,
            kv_pages_total=physics.kv_blocks,
            kv_pages_in_use=engine.pool.in_use,
            kv_pages_cached=engine.pool.idle,
            page_size=physics.block_size,
            generated_tokens_per_second=engine.tokens_per_s(self.heart.now()),
            totals=RequestTotals(
                received=totals.received,
                completed=totals.completed,
                aborted=totals.aborted,
                preemptions=totals.preemptions,
                cache_hit_tokens=totals.cached_tokens,
                cache_miss_tokens=totals.prompt_tokens - totals.cached_tokens,
                generated_tokens=totals.generated_tokens,
                prompt_tokens=totals.prompt_tokens,
                steps=totals.steps,
            ),
        )

    def kv_snapshot(self) -> WatchKvEventsResponse:
        """Everything cached now, to begin a watch with."""
        hashes = self.engine.pool.hashes()
        stored = KvStored(block_hashes=hashes, block_size=self.engine.physics.block_size)
        events = [KvEvent(cleared=KvCleared()), *([KvEvent(stored=stored)] if hashes else [])]
        return WatchKvEventsResponse(sequence=self._kv_sequence, instance_id=self.instance_id, events=events)

    def _beat(self) -> None:
        changes, self.engine.pool.changes = self.engine.pool.changes, []
        if changes:
            self._kv_sequence += 1
            if self.kv_watchers:
                news = WatchKvEventsResponse(
                    sequence=self._kv_sequence,
                    instance_id=self.instance_id,
                    events=[_kv_event(change, self.engine.physics.block_size) for change in changes],
                )
                for watcher in tuple(self.kv_watchers):
                    watcher(news)
        for call in tuple(self.after_beat):
            call()


def _kv_event(change: Change, block_size: int) -> KvEvent:
    if isinstance(change, Stored):
        stored = KvStored(parent_hash=change.parent, block_hashes=change.hashes, block_size=block_size)
        return KvEvent(stored=stored)
    return KvEvent(removed=KvRemoved(block_hashes=change.hashes))


def _word_ids(tokenizer_json: bytes) -> list[int]:
    """Ids of tokens that are words.

    Raises:
        ValueError: the vocabulary has none.
    """
    vocabulary = orjson.loads(tokenizer_json)["model"]["vocab"]
    entries = (
        vocabulary.items()
        if isinstance(vocabulary, dict)
        else ((one[0], at) for at, one in enumerate(vocabulary))
    )
    found = sorted(token_id for token, token_id in entries if _WORD.fullmatch(token))
    if not found:
        raise ValueError("no token of this tokenizer is a word; give the tokenizer of another checkpoint")
    return found
