"""A step arrives as it was sent, or is refused."""

from __future__ import annotations

import dataclasses
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhizome_engine.batch import (
    Batch,
    Int64,
    PageCopy,
    PromptScores,
    SlotHistory,
    TokenMasks,
)
from rhizome_engine.parallel.channel import Channel, Frame
from rhizome_engine.parallel.frames import (
    HEAD,
    FrameError,
    Kind,
    _codec_of,
    batch_frame,
    masks_frame,
    read_batch,
    read_head,
    read_masks,
    text_frame,
)
from rhizome_engine.sampling.params import SamplingParams
from rhizome_testing.sampling_batch import sampling_batch

PARAMS = [
    SamplingParams(temperature=0.5, logit_bias={3: 1.5, 5: -2.0}),
    SamplingParams(temperature=1.0, allowed_token_ids=(1, 2, 40), bad_words=((1, 2), (3,))),
]


def batch_of(rows: int = 2, tokens: int = 7, **others: Any) -> Batch:
    return Batch(
        token_ids=np.arange(tokens),
        positions=np.arange(tokens) + 3,
        slot_mapping=np.arange(tokens) * 5,
        query_start=np.linspace(0, tokens, rows + 1).astype(np.int32),
        context_len=np.arange(rows, dtype=np.int32),
        page_table=np.arange(rows * 3, dtype=np.int32).reshape(rows, 3),
        slots=np.arange(rows),
        sampling=sampling_batch(PARAMS[:rows], list(range(9, 9 + rows)), 64, seeds=[2**64 - 1] * rows),
        **others,
    )


FULL = batch_of(
    histories=[SlotHistory(1, np.array([4, 5, 6], np.int32)), SlotHistory(0, np.empty(0, np.int32))],
    page_copies=[PageCopy(np.array([1, 4], np.int32), np.array([2, 9], np.int32), 3)],
    prompt_scores=[PromptScores(0, np.array([7, 8, 9]), 2)],
    late=np.array([1]),
    late_slots=np.array([0]),
    constrained=True,
)


def assert_same(one: Any, other: Any) -> None:
    """Of the same types, with the same arrays in the same types."""
    assert type(one) is type(other)
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        assert one.tolist() == other.tolist()
        assert one.flags.writeable, "torch warns of arrays that it may not write"
    elif dataclasses.is_dataclass(one):
        for name in get_type_hints(type(one)):
            assert_same(getattr(one, name), getattr(other, name))
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for each, its in zip(one, other, strict=True):
            assert_same(each, its)
    else:
        assert one == other


def sent(frame: bytes) -> Frame:
    own, other = Channel.pair()
    own.send(frame)
    received = Channel(other).receive()
    assert received is not None
    return received


@pytest.mark.parametrize("batch", [FULL, batch_of(), batch_of(rows=0, tokens=0)])
def test_a_batch_arrives_as_it_was_sent(batch: Batch) -> None:
    frame = sent(batch_frame(batch, 41))
    assert frame.head.kind is Kind.LAUNCH and frame.head.step == 41
    assert_same(read_batch(frame.head, frame.body), batch)


@pytest.mark.parametrize("masks", [None, TokenMasks(np.array([0, 2]), np.array([[-1, 5], [0, 7]], np.int32))])
def test_masks_arrive_as_they_were_sent(masks: TokenMasks | None) -> None:
    frame = sent(masks_frame(masks, 1))
    assert_same(read_masks(frame.head, frame.body), masks)


@given(st.data())
def test_a_damaged_batch_is_refused_or_has_the_declared_types(data: st.DataObject) -> None:
    frame = bytearray(batch_frame(FULL, 1))
    place = data.draw(st.integers(0, len(frame) - 1))
    frame[place] ^= data.draw(st.integers(1, 255))
    frame = frame[: data.draw(st.sampled_from([len(frame), place]))]
    try:
        head = read_head(bytes(frame[: HEAD.size])) if len(frame) >= HEAD.size else None
        if head is not None and head.kind is Kind.LAUNCH:
            batch = read_batch(head, frame[HEAD.size :])
            assert batch.page_table.dtype == np.int32
    except FrameError:
        pass


def test_another_version_is_refused() -> None:
    frame = bytearray(text_frame(Kind.STOP))
    struct.pack_into("<H", frame, 4, 9)
    with pytest.raises(FrameError, match="version 9"):
        read_head(bytes(frame))


def test_arrays_of_other_types_are_not_sent() -> None:
    with pytest.raises(TypeError, match="int32"):
        batch_frame(replace(FULL, slots=FULL.slots.astype(np.int32)), 1)


def test_a_field_without_a_rule_is_noticed_when_the_module_is_loaded() -> None:
    @dataclass
    class Named:
        name: str

    with pytest.raises(TypeError, match="cannot be sent"):
        _codec_of(Named)
    assert _codec_of(Int64)


def test_the_other_end_notices_that_one_is_gone() -> None:
    own, other = Channel.pair()
    far = Channel(other)
    own.send(text_frame(Kind.READY)[:5])
    own.close()
    with pytest.raises(FrameError, match="5 of"):
        far.receive()
    own, other = Channel.pair()
    own.close()
    assert Channel(other).receive() is None
    assert isinstance(other, socket.socket)


def test_frames_larger_than_the_sockets_buffer_arrive() -> None:
    batch = replace(FULL, page_table=np.arange(1 << 20, dtype=np.int32).reshape(2, -1))
    own, other = Channel.pair()
    with ThreadPoolExecutor(1) as thread:
        sending = thread.submit(own.send, batch_frame(batch, 1))
        frame = Channel(other).receive()
        sending.result()
    assert frame is not None
    assert_same(read_batch(frame.head, frame.body), batch)
