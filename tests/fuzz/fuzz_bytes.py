"""Bytes gone wrong, by given dice: what a broken or hostile peer sends in place of a message."""

from __future__ import annotations

import random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_BYTES_MAX = 4096
_CHUNKS = (
    b"\x00", b"\xff", b"\x80", b"\x7f", b"\xff" * 9 + b"\x01", b"\xff\xff\xff\xff\x0f", b"\x80" * 10, b"\x0a\x00", b"\x12\xff\x01", b"\x1b\x1c",
    b"\xc0\xaf", b"\xed\xa0\x80", b"..", b"/", b"\n",
)  # fmt: skip
_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (0, 1, -1, (1 << 31) - 1, -(1 << 31)),
    FieldDescriptor.CPPTYPE_INT64: (0, 1, -1, (1 << 63) - 1, -(1 << 63)),
    FieldDescriptor.CPPTYPE_UINT32: (0, 1, 1 << 31, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 1, 1 << 32, 1 << 63, (1 << 64) - 1),
    FieldDescriptor.CPPTYPE_ENUM: (0, 1, 9, 250, -1, (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_BOOL: (False, True),
    FieldDescriptor.CPPTYPE_DOUBLE: (0.0, -1.0, 1e300, 5e-324, float("inf"), float("-inf"), float("nan")),
}
_TEXTS = ("", "a", "no good", "..", "a/../b", "x" * 600, "ü" * 200, "\0", "\u202e", "up/a/0/tasks", "٣", "²")


def mutate(data: bytes, dice: random.Random, other: bytes = b"") -> bytes:
    """`data` with one to six things done to it; `other` is a source of parts."""
    changed = bytearray(data)
    for _ in range(1 + int(dice.random() * dice.random() * 6)):
        size = len(changed)
        at = int(dice.random() * (size + 1))
        end = min(at + 1 + int(dice.random() * 8), size)
        match int(dice.random() * 8):
            case 0 if at < size:
                changed[at] ^= 1 << int(dice.random() * 8)
            case 1 if at < size:
                changed[at] = int(dice.random() * 256)
            case 2:
                del changed[at:end]
            case 3:
                changed[at:at] = changed[at:end] * (1 + int(dice.random() * 3))
            case 4:
                changed[at:end] = _CHUNKS[int(dice.random() * len(_CHUNKS))]
            case 5:
                del changed[at:]
            case 6:
                start = int(dice.random() * (len(other) + 1))
                changed[at:end] = other[start : start + 1 + int(dice.random() * 32)]
            case _:
                changed[at:at] = _CHUNKS[int(dice.random() * len(_CHUNKS))]
    return bytes(changed[:_BYTES_MAX])


def twist(message: Message, dice: random.Random) -> None:
    """Set some field of a message, or of one inside it, to an edge of its type, clear it, or repeat what it has."""
    fields = message.DESCRIPTOR.fields
    if not fields:
        return
    field = fields[int(dice.random() * len(fields))]
    value: Any = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        _twist_map(field, value, dice)
    elif field.is_repeated:
        _twist_repeated(field, value, dice)
    elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        if dice.random() < 0.2:
            message.ClearField(field.name)
        else:
            value.SetInParent()
            twist(value, dice)
    else:
        setattr(message, field.name, _edge(field, dice))


def _edge(field: FieldDescriptor, dice: random.Random) -> Any:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        text = _TEXTS[int(dice.random() * len(_TEXTS))]
        return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
    edges = _INTEGERS[field.cpp_type]
    return edges[int(dice.random() * len(edges))]


def _twist_map(field: FieldDescriptor, value: Any, dice: random.Random) -> None:
    of = field.message_type.fields_by_name
    value[_edge(of["key"], dice)] = _edge(of["value"], dice)


def _twist_repeated(field: FieldDescriptor, value: Any, dice: random.Random) -> None:
    choice = dice.random()
    if choice < 0.2:
        del value[:]
    elif field.cpp_type != FieldDescriptor.CPPTYPE_MESSAGE:
        value.append(_edge(field, dice))
    elif choice < 0.5 and len(value):
        value.add().CopyFrom(value[int(dice.random() * len(value))])
    elif len(value):
        twist(value[int(dice.random() * len(value))], dice)
    else:
        value.add()
