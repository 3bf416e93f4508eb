"""How a step travels from rank 0 to the others: a head, a table of its values, the arrays themselves.

    head     magic, version, kind, number of values, step, bytes of the arrays
    table    three int64 per value: what it is, and its two sizes or the number itself
    arrays   one after the other, each padded to 8 bytes

The order of the values is that of the fields of `Batch` and of what it holds, as their types declare them;
nothing is named and nothing is executed on arrival. What has not the declared types and sizes is refused.
"""

from __future__ import annotations

import math
import struct
import types
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from enum import IntEnum
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from rhizome_engine.batch import Batch, TokenMasks

VERSION = 1
MAX_BYTES = 1 << 30
"""Of a frame; a step takes some hundred kilobytes at most."""
HEAD = struct.Struct("<4sHHIIQ")
_MAGIC = b"RzTP"
_VALUE_BYTES = 24
_NOTHING, _NUMBER, _LIST, _ARRAY = 0, 1, 2, 3
NOT_SENT = {"pooled"}
"""Fields of `Batch` that only rank 0 needs: vectors are made of hidden states, and those are all there."""


class Kind(IntEnum):
    """What a frame is."""

    LOAD = 1  # text: settings of a runner, to be made
    LAUNCH = 2  # a batch
    SAMPLE = 3  # masks, or none
    RESULT = 4
    IDLE = 5
    UNLOAD = 6
    STOP = 7
    HELLO = 8  # from a rank: it can be joined
    READY = 9  # from a rank: its model is loaded
    ERROR = 10  # from a rank: text


class FrameError(ValueError):
    """What arrived is not what this version sends."""


class Head(NamedTuple):
    """The beginning of a frame.

    Attributes:
        kind: what follows.
        num_values: of the table.
        step: which one it is about.
        num_bytes: of table and arrays.
    """

    kind: Kind
    num_values: int
    step: int
    num_bytes: int


def read_head(data: bytes) -> Head:
    """Read and check a head.

    Raises:
        FrameError: it is none, of another version, or promises too much.
    """
    magic, version, kind, num_values, step, num_bytes = HEAD.unpack(data)
    if magic != _MAGIC or version != VERSION:
        raise FrameError(f"a frame begins with {magic!r}, version {version}; expected {_MAGIC!r}, {VERSION}")
    if num_bytes > MAX_BYTES or num_values * _VALUE_BYTES > num_bytes:
        raise FrameError(f"a frame of {num_bytes} bytes for {num_values} values")
    try:
        return Head(Kind(kind), num_values, step, num_bytes)
    except ValueError:
        raise FrameError(f"a frame of unknown kind {kind}") from None


def text_frame(kind: Kind, text: str = "", step: int = 0) -> bytes:
    """Return a frame that holds text."""
    body = text.encode()
    return HEAD.pack(_MAGIC, VERSION, kind, 0, step, len(body)) + body


def batch_frame(batch: Batch, step: int) -> bytes:
    """Return the frame of a step."""
    return _frame(Kind.LAUNCH, step, _BATCH, batch)


def masks_frame(masks: TokenMasks | None, step: int) -> bytes:
    """Return the frame that lets a step's tokens be chosen."""
    return _frame(Kind.SAMPLE, step, _MASKS, masks)


def read_batch(head: Head, body: bytearray) -> Batch:
    """Read a step; its arrays are views of the body.

    Raises:
        FrameError: the body is damaged.
    """
    batch: Batch = _read(head, body, _BATCH)
    return batch


def read_masks(head: Head, body: bytearray) -> TokenMasks | None:
    """Read a step's masks.

    Raises:
        FrameError: the body is damaged.
    """
    masks: TokenMasks | None = _read(head, body, _MASKS)
    return masks


class _Writer:
    """Collects values and arrays."""

    def __init__(self) -> None:
        self.values: list[int] = []
        self.parts: list[bytes] = []

    def put(self, what: int, first: int = 0, second: int = 0) -> None:
        self.values += (what, first, second)


class _Reader:
    """Hands values and arrays out in the order in which they were put."""

    def __init__(self, head: Head, body: bytearray) -> None:
        table = head.num_values * _VALUE_BYTES
        if len(body) != head.num_bytes or table > len(body):
            raise FrameError(f"{len(body)} bytes arrived of {head.num_bytes}")
        self._values: Iterator[tuple[int, int, int]] = struct.iter_unpack("<3q", memoryview(body)[:table])
        self._body = body
        self._place = table

    def take(self, what: int) -> tuple[int, int]:
        found, first, second = self._next()
        if found & 3 != what:
            raise FrameError(f"a value of kind {found & 3} where {what} belongs")
        return first, second

    def take_optional(self) -> bool:
        """Whether a value is there that may be absent."""
        return self._next()[0] != _NOTHING

    def take_array(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        found, rows, columns = self._next()
        dimensions = found >> 2
        if found & 3 != _ARRAY or dimensions not in (1, 2) or rows < 0 or columns < 0:
            raise FrameError(f"no array of {dtype}")
        shape = (rows,) if dimensions == 1 else (rows, columns)
        count = math.prod(shape)
        if count * dtype.itemsize > len(self._body) - self._place:
            raise FrameError(f"an array of {list(shape)} {dtype} goes beyond its frame")
        array = np.frombuffer(self._body, dtype, count, self._place).reshape(shape)
        self._place += -(-array.nbytes // 8) * 8
        return array

    def finish(self) -> None:
        if self._place != len(self._body) or next(self._values, None) is not None:
            raise FrameError("a frame holds more than its step")

    def _next(self) -> tuple[int, int, int]:
        value = next(self._values, None)
        if value is None:
            raise FrameError("a frame holds less than its step")
        return value


class _Codec(NamedTuple):
    """Writes and reads values of one type."""

    write: Callable[[_Writer, Any], None]
    read: Callable[[_Reader], Any]


def _frame(kind: Kind, step: int, codec: _Codec, value: Any) -> bytes:
    writer = _Writer()
    codec.write(writer, value)
    count = len(writer.values)
    table = struct.pack(f"<{count}q", *writer.values)
    num_bytes = len(table) + sum(map(len, writer.parts))
    head = HEAD.pack(_MAGIC, VERSION, kind, count // 3, step, num_bytes)
    return b"".join((head, table, *writer.parts))


def _read(head: Head, body: bytearray, codec: _Codec) -> Any:
    reader = _Reader(head, body)
    value = codec.read(reader)
    reader.finish()
    return value


def _codec_of(hint: Any) -> _Codec:
    """Return what writes and reads values of a declared type.

    Raises:
        TypeError: there is no rule for the type.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is np.ndarray:
        return _array_codec(np.dtype(get_args(arguments[1])[0]))
    if origin in (types.UnionType,) and len(arguments) == 2 and arguments[1] is type(None):
        return _optional_codec(_codec_of(arguments[0]))
    if origin is list:
        return _list_codec(_codec_of(arguments[0]))
    if hint in (int, bool):
        return _Codec(
            lambda writer, value: writer.put(_NUMBER, int(value)),
            lambda reader: hint(reader.take(_NUMBER)[0]),
        )
    if is_dataclass(hint) or (isinstance(hint, type) and issubclass(hint, tuple)):
        return _record_codec(hint)
    raise TypeError(f"a step holds {hint}, which cannot be sent to other ranks")


def _record_codec(kind: Any) -> _Codec:
    """Of a dataclass or a named tuple: its fields, one after the other."""
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)] if is_dataclass(kind) else list(kind._fields)
    codecs = [(name, _codec_of(hints[name])) for name in names if name not in NOT_SENT]

    def write(writer: _Writer, value: Any) -> None:
        for name, codec in codecs:
            codec.write(writer, getattr(value, name))

    def read(reader: _Reader) -> Any:
        return kind(**{name: codec.read(reader) for name, codec in codecs})

    return _Codec(write, read)


def _array_codec(dtype: np.dtype[Any]) -> _Codec:
    def write(writer: _Writer, value: NDArray[Any]) -> None:
        if value.dtype != dtype or value.ndim not in (1, 2):
            raise TypeError(f"an array of {value.dtype} {value.shape} where {dtype} belongs")
        rows, columns = value.shape if value.ndim == 2 else (len(value), 0)
        writer.put(_ARRAY | value.ndim << 2, rows, columns)
        writer.parts.append(value.tobytes())
        if value.nbytes % 8:
            writer.parts.append(bytes(-value.nbytes % 8))

    return _Codec(write, lambda reader: reader.take_array(dtype))


def _optional_codec(inner: _Codec) -> _Codec:
    def write(writer: _Writer, value: Any) -> None:
        writer.put(_NOTHING if value is None else _NUMBER)
        if value is not None:
            inner.write(writer, value)

    return _Codec(write, lambda reader: inner.read(reader) if reader.take_optional() else None)


def _list_codec(inner: _Codec) -> _Codec:
    def write(writer: _Writer, value: list[Any]) -> None:
        writer.put(_LIST, len(value))
        for each in value:
            inner.write(writer, each)

    def read(reader: _Reader) -> list[Any]:
        return [inner.read(reader) for _ in range(reader.take(_LIST)[0])]

    return _Codec(write, read)


_BATCH = _codec_of(Batch)
_MASKS = _codec_of(TokenMasks | None)
