"""Protobuf messages that nobody sends: valid ones with extreme values, and broken ones made from them.

Strategies of hypothesis follow the descriptors, so that most bytes get past the parser and into what reads
them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

_DEEPEST = 4
_MOST_ITEMS = 6
_INTS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_REALS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 3.4e38, float("inf"), float("-inf"), float("nan"))
_TEXTS = st.one_of(
    st.sampled_from(
        ("", "x", "rhizome-demo", "\x00", "../../etc/passwd", "{", "[a-z]{1,9999}", "\U0010ffff")
    ),
    st.text(max_size=12),
    st.sampled_from((255, 256, 257, 5000)).map("y".__mul__),
)


def messages(descriptor: Descriptor, depth: int = 0) -> st.SearchStrategy[Message]:
    """Messages of a type, with few fields set, most of them to values at some border."""

    @st.composite
    def build(draw: Callable[..., Any]) -> Message:
        message: Message = GetMessageClass(descriptor)()
        fields = [one for one in descriptor.fields if depth < _DEEPEST or one.message_type is None]
        if not fields:
            return message
        for field in draw(st.lists(st.sampled_from(fields), max_size=4, unique_by=lambda one: one.number)):
            _set(draw, message, field, depth)
        return message

    return build()


def broken(payload: bytes, dice: random.Random) -> bytes:
    """The same bytes with one thing wrong that networks, old versions and attackers do."""
    at = dice.randrange(len(payload) + 1)
    size = dice.choice((1, 2, 8, 64))
    return dice.choice(
        (
            lambda: payload[:at],
            lambda: payload[:at] + dice.randbytes(size) + payload[at:],
            lambda: payload[:at] + dice.randbytes(size) + payload[at + size :],
            lambda: payload[:at] + payload[at + size :],
            lambda: payload + payload,
            lambda: payload[:at] + b"\xff" * 9 + b"\x01" + payload[at:],
            lambda: (
                payload[:at] + bytes([dice.randrange(256) & 0xF8 | dice.choice((3, 4, 6, 7))]) + payload[at:]
            ),
            lambda: payload + b"\xfa\x3f\x04\xde\xad\xbe\xef",  # a field that this version does not know
            lambda: b"\x0a" * dice.choice((50, 200)) + payload,  # messages in messages, without an end
            lambda: bytes(
                byte ^ (1 << dice.randrange(8)) if dice.random() < 0.05 else byte for byte in payload
            ),
        )
    )()


def _set(draw: Callable[..., Any], message: Any, field: FieldDescriptor, depth: int) -> None:
    is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
    if is_map:
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        for _ in range(draw(st.integers(0, 3))):
            if value.message_type is not None:
                getattr(message, field.name)[draw(_scalars(key))].CopyFrom(
                    draw(messages(value.message_type, depth + 1))
                )
            else:
                getattr(message, field.name)[draw(_scalars(key))] = draw(_scalars(value))
    elif field.is_repeated:
        one = _scalars(field) if field.message_type is None else messages(field.message_type, depth + 1)
        items = draw(st.lists(one, max_size=_MOST_ITEMS))
        repeat = draw(st.sampled_from((1, 1, 1, 500))) if field.message_type is None else 1
        getattr(message, field.name).extend(items * repeat)
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(draw(messages(field.message_type, depth + 1)))
    else:
        setattr(message, field.name, draw(_scalars(field)))


def _scalars(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    kind = field.cpp_type
    if kind in _INTS:
        least, most = _INTS[kind]
        border = [
            one for one in (least, -1, 0, 1, 2, 16, 100, 1151, 1152, 2048, 2**31 - 1, most) if least <= one
        ]
        return st.sampled_from([one for one in border if one <= most]) | st.integers(least, most)
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return st.sampled_from(_REALS)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return st.integers(-1, 9)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=40)
    return _TEXTS
