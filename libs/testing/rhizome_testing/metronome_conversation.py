"""What a `metronome_engine` answers to the frames of one peer, whatever carries them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from rhizome.engine.v1.engine_service_pb2 import GetLoadResponse, GetModelInfoResponse
from rhizome.engine.v1.frames_pb2 import Call, CallResult, ClientFrame, EngineFrame, Pong, Welcome
from rhizome.engine.v1.load_pb2 import Load, RequestTotals
from rhizome_testing.metronome import Counts, Metronome
from rhizome_testing.metronome_peer import CONTEXT_TOKENS, FramePeer
from rhizome_text.tokenizer import Tokenizer
from rhizome_transport.channel import PROTOCOL_VERSION
from rhizome_transport.servicer import unimplemented
from rhizome_transport.tokenizer_chunks import files_sha256, split_files

MODEL: Final = "metronome"
_INSTANCE_ID: Final = "metronome-1"


class MetronomeModel:
    """What the engine says of itself.

    Args:
        files: the tokenizer's.
        counts: of requests and tokens.

    Attributes:
        info: the answer to `GetModelInfo`.
        tokenizer: the answers to `GetTokenizer`.
    """

    def __init__(self, files: dict[str, bytes], counts: Counts) -> None:
        self.info = GetModelInfoResponse(
            model=MODEL,
            instance_id=_INSTANCE_ID,
            architecture="MetronomeForCausalLM",
            max_context_tokens=CONTEXT_TOKENS,
            vocab_size=Tokenizer.from_files(files).vocab_size,
            dtype="float32",
            device="cpu",
            tokenizer_sha256=files_sha256(files),
            version="0",
        )
        self.tokenizer = tuple(split_files(files))
        self._counts = counts
        self._sequence = 0

    def load(self) -> GetLoadResponse:
        """The answer to `GetLoad`."""
        counts = self._counts
        self._sequence += 1
        totals = RequestTotals(
            received=counts.received,
            completed=counts.completed,
            aborted=counts.aborted,
            generated_tokens=counts.tokens,
        )
        load = Load(
            instance_id=_INSTANCE_ID,
            sequence=self._sequence,
            running_requests=counts.open,
            waiting_requests=0,
            totals=totals,
        )
        return GetLoadResponse(load=load)

    def answer(self, call: Call) -> Iterator[CallResult]:
        """The answers to a call."""
        if call.method == "GetModelInfo":
            yield CallResult(call_id=call.call_id, response=self.info.SerializeToString(), final=True)
        elif call.method == "GetTokenizer":
            for chunk in self.tokenizer:
                yield CallResult(call_id=call.call_id, response=chunk.SerializeToString())
            yield CallResult(call_id=call.call_id, final=True)
        elif call.method == "GetLoad":
            yield CallResult(call_id=call.call_id, response=self.load().SerializeToString(), final=True)
        else:
            status = unimplemented(call.method).to_status()
            yield CallResult(call_id=call.call_id, status=status, final=True)


class MetronomeConversation:
    """One peer, from its Hello on.

    Args:
        metronome: gives the tokens.
        model: answers calls.
        send: carries a serialised EngineFrame to the peer.
    """

    def __init__(self, metronome: Metronome, model: MetronomeModel, send: Callable[[bytes], None]) -> None:
        self._metronome = metronome
        self._model = model
        self._send = send
        self._peer: FramePeer | None = None

    def take(self, frame: ClientFrame) -> None:
        """Do what a frame asks for; what comes before Hello is ignored."""
        kind = frame.WhichOneof("frame")
        if kind == "hello":
            self.close()
            self._peer = FramePeer(self._metronome, self._send)
            welcome = Welcome(protocol_version=PROTOCOL_VERSION, instance_id=_INSTANCE_ID)
            self._answer(EngineFrame(welcome=welcome))
            self._peer.allow(max(1, frame.hello.initial_credit))
        elif self._peer is None:
            return
        elif kind == "submit":
            self._peer.submit(frame.submit.request)
        elif kind == "cancel":
            self._peer.cancel(frame.cancel.request_id, satisfied=frame.cancel.satisfied)
        elif kind == "credit":
            self._peer.allow(frame.credit.frames)
        elif kind == "ping":
            self._answer(EngineFrame(pong=Pong(nonce=frame.ping.nonce)))
        elif kind == "call":
            for result in self._model.answer(frame.call):
                self._answer(EngineFrame(call_results=(result,)))

    def close(self) -> None:
        """The peer is gone, and its requests with it."""
        if self._peer is not None:
            self._peer.close()
            self._peer = None

    def _answer(self, frame: EngineFrame) -> None:
        self._send(frame.SerializeToString())
