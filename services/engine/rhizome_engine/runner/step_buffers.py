"""A step's small arrays on their way to the device.

The numpy arrays of a `Batch` are laid out, with padding, in one of a few pinned buffers, and one asynchronous
copy brings them into the one device buffer. What computes the step reads them there through views that were
made once per shape, so that their addresses stay the same from step to step and can be recorded.

    Batch ──▶ pinned buffer 0 ─┐
              pinned buffer 1 ─┼─ one copy a step, in turn ─▶ device buffer ◀── views of shape A, B, ...
              pinned buffer 2 ─┘

With overlap the host is one step ahead of the device. A pinned buffer is written again three steps later,
when its copy was done long ago; an event says so, and is waited for where it was not. The device buffer needs
no guard: copies and steps are in one stream.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rhizome_engine.batch import Batch
from rhizome_engine.runner.page_tables import NO_CHANGES, PageChanges
from rhizome_engine.sampling.static_choice import DeviceSampling

_NUM_BUFFERS = 3
_ALIGNMENT = 16


@dataclass(frozen=True, slots=True)
class StepShape:
    """How many of everything there are, padding included.

    Attributes:
        num_tokens: places for tokens.
        num_rows: places for rows; 0 where only the arrays of tokens are wanted.
        num_changes: places for changes of the page table.
        is_decode: row i has the one token i, so that padding rows have one too.
    """

    num_tokens: int
    num_rows: int = 0
    num_changes: int = 0
    is_decode: bool = False


@dataclass(frozen=True, slots=True)
class StepArrays:
    """What a step's arrays are on the device; padding stands behind what is used.

    Attributes:
        token_ids: [num_tokens] int64; 0 in padding.
        positions: [num_tokens] int64; 0 in padding.
        slot_mapping: [num_tokens] int64; -1 in padding.
        late_slots: [num_tokens] int32, the slot whose token at `positions` takes the place of a token id; -1
            where the id is known, and in padding.
        query_start: [num_rows + 1] int32.
        context_len: [num_rows] int32; 0 in padding.
        row_slots: [num_rows] int32; in padding the page table's last row, which belongs to nobody.
        sampled_tokens: [num_rows] int64, places of the tokens whose successors are chosen; 0 in padding.
        change_places: [num_changes] int64, see `PageChanges`; in padding an entry that belongs to nobody.
        change_pages: [num_changes] int32.
        sampling: [num_rows] each, of the rows that get a token; slots are -1 in padding.
    """

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    late_slots: Tensor
    query_start: Tensor
    context_len: Tensor
    row_slots: Tensor
    sampled_tokens: Tensor
    change_places: Tensor
    change_pages: Tensor
    sampling: DeviceSampling


class _Field(NamedTuple):
    """One array of the buffer: its length is so many times `num_tokens`, `num_rows` or `num_changes`."""

    name: str
    dtype: Any
    unit: str
    padding: float = 0


_SAMPLING = "sampling."
_FIELDS = (
    _Field("token_ids", np.int64, "tokens"),
    _Field("positions", np.int64, "tokens"),
    _Field("slot_mapping", np.int64, "tokens", -1),
    _Field("late_slots", np.int32, "tokens", -1),
    _Field("query_start", np.int32, "starts"),
    _Field("context_len", np.int32, "rows"),
    _Field("row_slots", np.int32, "rows"),
    _Field("sampled_tokens", np.int64, "rows"),
    _Field("change_places", np.int64, "changes"),
    _Field("change_pages", np.int32, "changes"),
    _Field(_SAMPLING + "slots", np.int64, "rows", -1),
    _Field(_SAMPLING + "positions", np.int64, "rows"),
    _Field(_SAMPLING + "num_prompt", np.int64, "rows"),
    _Field(_SAMPLING + "seeds", np.int64, "rows"),
    _Field(_SAMPLING + "top_k", np.int64, "rows"),
    _Field(_SAMPLING + "temperature", np.float32, "rows"),
    _Field(_SAMPLING + "top_p", np.float32, "rows", 1),
    _Field(_SAMPLING + "min_p", np.float32, "rows"),
    _Field(_SAMPLING + "repetition_penalty", np.float32, "rows", 1),
    _Field(_SAMPLING + "frequency_penalty", np.float32, "rows"),
    _Field(_SAMPLING + "presence_penalty", np.float32, "rows"),
)
_DTYPES = {np.int64: torch.int64, np.int32: torch.int32, np.float32: torch.float32}
_SAMPLING_FIELDS = [(field.name, field.name.removeprefix(_SAMPLING), field.padding) for field in _FIELDS[10:]]


class _Span(NamedTuple):
    """Where a field lies in a buffer, in bytes."""

    field: _Field
    start: int
    end: int


def _layout(shape: StepShape) -> list[_Span]:
    starts = shape.num_rows + 1 if shape.num_rows else 0
    counts = {
        "tokens": shape.num_tokens,
        "rows": shape.num_rows,
        "starts": starts,
        "changes": shape.num_changes,
    }
    spans, start = [], 0
    for field in _FIELDS:
        end = start + counts[field.unit] * np.dtype(field.dtype).itemsize
        spans.append(_Span(field, start, end))
        start = -(-end // _ALIGNMENT) * _ALIGNMENT
    return spans


def _num_bytes(shape: StepShape) -> int:
    return _layout(shape)[-1].end


class _HostBuffer:
    """A buffer that the device copies from.

    Attributes:
        memory: [bytes] uint8, pinned beside a GPU.
        copied: recorded after the last copy; None where copies are done when they return.
    """

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self.memory = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=on_gpu)
        self.copied = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]

    def arrays(self, shape: StepShape) -> dict[str, NDArray[Any]]:
        """The buffer as the arrays of a shape."""
        window = self.memory.numpy()
        return {
            span.field.name: window[span.start : span.end].view(span.field.dtype) for span in _layout(shape)
        }


class _Views:
    """What is made once per shape.

    Attributes:
        arrays: on the device.
        copies: per host buffer its arrays, and the two ends of its copy.
    """

    def __init__(self, shape: StepShape, host: list[_HostBuffer], device: Tensor) -> None:
        spans, num_bytes = _layout(shape), _num_bytes(shape)
        tensors = {
            span.field.name: device[span.start : span.end].view(_DTYPES[span.field.dtype]) for span in spans
        }
        sampling = {name: tensors.pop(full) for full, name, _ in _SAMPLING_FIELDS}
        self.arrays = StepArrays(sampling=DeviceSampling(**sampling), **tensors)
        target = device[:num_bytes]
        self.copies = [(buffer.arrays(shape), buffer.memory[:num_bytes], target) for buffer in host]


class StepBuffers:
    """See the head of this module.

    Args:
        shapes: the largest ones that will come.
        nobody: the row of the page table that belongs to no slot.
        device: where steps are computed.

    Attributes:
        num_waits: times that the host came round to a buffer whose copy was not done; 0 in a steady state.
    """

    def __init__(self, shapes: Iterable[StepShape], nobody: int, device: torch.device) -> None:
        num_bytes = max(map(_num_bytes, shapes))
        self.num_waits = 0
        self._nobody = nobody
        self._host = [_HostBuffer(num_bytes, device) for _ in range(_NUM_BUFFERS)]
        self._device = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        self._views: dict[StepShape, _Views] = {}
        self._next = 0

    def arrays(self, shape: StepShape) -> StepArrays:
        """What `send` will fill; the same tensors each time."""
        return self._of(shape).arrays

    def send(self, shape: StepShape, batch: Batch | None, changes: PageChanges = NO_CHANGES) -> StepArrays:
        """Begin to copy a step to the device; valid there until the next call.

        Args:
            shape: at least as large as the batch.
            batch: the step; None for padding only.
            changes: of the page table, with an entry of nobody's row for padding.
        """
        views = self._of(shape)
        turn = self._next
        self._next = (turn + 1) % _NUM_BUFFERS
        copied = self._host[turn].copied
        if copied is not None and not copied.query():  # type: ignore[no-untyped-call]
            self.num_waits += 1
            copied.synchronize()
        arrays, source, target = views.copies[turn]
        if batch is None:
            self._fill_with_padding(arrays, shape, changes)
        else:
            _fill_tokens(arrays, batch)
            if shape.num_rows:
                self._fill_rows(arrays, shape, batch)
                _put(arrays["change_places"], changes.places, changes.unused)
                _put(arrays["change_pages"], changes.pages, 0)
        target.copy_(source, non_blocking=True)
        if copied is not None:
            copied.record()
        return views.arrays

    def _of(self, shape: StepShape) -> _Views:
        views = self._views.get(shape)
        if views is None:
            views = self._views[shape] = _Views(shape, self._host, self._device)
        return views

    def _fill_rows(self, arrays: dict[str, NDArray[Any]], shape: StepShape, batch: Batch) -> None:
        _put(arrays["context_len"], batch.context_len, 0)
        _put(arrays["row_slots"], batch.slots, self._nobody)
        sampling = batch.sampling
        if shape.is_decode:
            arrays["query_start"][:] = np.arange(shape.num_rows + 1)
        else:
            _put(arrays["query_start"], batch.query_start, batch.query_start[-1])
            _put(arrays["sampled_tokens"], batch.query_start[sampling.rows + 1] - 1, 0)
        for full_name, name, padding in _SAMPLING_FIELDS:
            _put(arrays[full_name], getattr(sampling, name), padding)

    def _fill_with_padding(
        self, arrays: dict[str, NDArray[Any]], shape: StepShape, changes: PageChanges
    ) -> None:
        for field in _FIELDS:
            arrays[field.name].fill(field.padding)
        arrays["row_slots"].fill(self._nobody)
        arrays["change_places"].fill(changes.unused)
        if shape.is_decode:
            arrays["query_start"][:] = np.arange(shape.num_rows + 1)


def _fill_tokens(arrays: dict[str, NDArray[Any]], batch: Batch) -> None:
    _put(arrays["token_ids"], batch.token_ids, 0)
    _put(arrays["positions"], batch.positions, 0)
    _put(arrays["slot_mapping"], batch.slot_mapping, -1)
    late_slots = arrays["late_slots"]
    late_slots.fill(-1)
    if len(batch.late):
        late_slots[batch.late] = batch.late_slots


def _put(target: NDArray[Any], values: NDArray[Any], padding: float) -> None:
    """Copy values to the front and fill what is left."""
    count = len(values)
    if count == len(target):
        target[:] = values
    else:
        target[:count] = values
        target[count:] = padding
