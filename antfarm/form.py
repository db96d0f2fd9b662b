"""The forms of values that JSON does not have: objects with one key that starts with "$", and the Python values they stand for.

`docs/protocol.md` lists them for other languages. Values come back equal and of the same type, or are refused: nothing is changed silently. Nothing
is imported because bytes say so: classes are looked up among what the process has imported already.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import datetime as dt
import decimal
import enum
import functools
import importlib
import math
import pathlib
import sys
import uuid
from collections.abc import Callable, Container, Sequence
from types import ModuleType
from typing import Any

from antfarm.apps import find_class, main_app, public_module
from antfarm.errors import InvalidArgument
from antfarm.model import BlobRef

_SCALARS = frozenset({str, int, float, bool, type(None)})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class File(BlobRef):
    """A file in Storage that a task saved (`ctx.save`) or a client put there; travels as its name, read with `storage.get(file)`.

    `name` is what its maker called it; `key`, `size_bytes` and `sha256` are as in BlobRef and verified by every read.
    """

    name: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Input:
    """Stands in arguments for the result of the task's k-th dependency (`TaskGroup.inputs[k]`)."""

    k: int


# ---- to JSON ---------------------------------------------------------------------------------------------------------


def refuse(value: Any) -> Any:
    """Raise InvalidArgument that names the value's type."""
    raise InvalidArgument(f"a value of type {_type_name(type(value))} cannot be sent")


def is_plain(value: Any) -> bool:
    """True when JSON carries the value unchanged."""
    kind = type(value)
    if kind in _SCALARS:
        return True
    if kind is list:
        return _SCALARS.issuperset(map(type, value)) or all(map(is_plain, value))
    if kind is dict:
        for key in value:
            if type(key) is not str or key[:1] == "$":
                return False
        values = value.values()
        return _SCALARS.issuperset(map(type, values)) or all(map(is_plain, values))
    return False


def lower(value: Any) -> Any:
    """The value as JSON has it."""
    kind = type(value)
    if kind is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if kind in _SCALARS:
        return value
    if kind is list:
        return [lower(item) for item in value]
    if kind is dict:
        if all(type(key) is str and key[:1] != "$" for key in value):
            return {key: lower(item) for key, item in value.items()}
        return {"$dict": [[lower(key), lower(item)] for key, item in value.items()]}
    special = _LOWER.get(kind)
    if special is not None:
        return special(value)
    return _lower_by_nature(value, kind)


def _lower_by_nature(value: Any, kind: type) -> Any:
    """Values whose class is the user's or an optional package's."""
    if isinstance(value, enum.Enum):
        return _lower_enum(value, kind)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _lower_dataclass(value, kind)
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        _refuse_more(value, kind, ())
        return {"$namedtuple": [_class_path(kind), [lower(item) for item in value]]}
    message = sys.modules.get("google.protobuf.message")
    if message is not None and isinstance(value, message.Message):
        return {"$proto": [value.DESCRIPTOR.full_name, _to_base64(value.SerializeToString(deterministic=True))]}
    numpy = sys.modules.get("numpy")
    if numpy is not None and (kind is numpy.ndarray or (isinstance(value, numpy.generic) and kind is value.dtype.type)):
        return _lower_array(value, numpy)
    raise InvalidArgument(
        f"a value of type {_type_name(kind)} cannot be sent: use JSON values, dataclasses, dates, bytes, numpy arrays, protobuf "
        "messages or af.File, or allow pickles on both ends"
    )


def _lower_enum(value: enum.Enum, kind: type[enum.Enum]) -> Any:
    path = _class_path(kind)
    if kind.__members__.get(value.name) is not value:  # flags that are combined, or none at all, are no members
        raise InvalidArgument(f"{path}: {value!r} cannot be sent, since it is no member; send its value")
    return {"$enum": [path, value.name]}


def _lower_dataclass(value: Any, kind: type) -> Any:
    path = _class_path(kind)
    make: Any = kind.__new__
    if make is not object.__new__:  # a dict or an exception holds more than its fields
        raise InvalidArgument(
            f"a value of type {path} cannot be sent: its class makes its instances in a way of its own"
        )
    try:
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    except AttributeError as error:
        raise InvalidArgument(f"a value of type {path} cannot be sent: {error}") from None
    _refuse_more(value, kind, fields)
    return {"$dataclass": [path, {name: lower(item) for name, item in fields.items()}]}


def _refuse_more(value: Any, kind: type, fields: Container[str]) -> None:
    """Refuse an object that holds more than its fields: the rest would be lost on the way, since no constructor makes it anew."""
    state = object.__getstate__(value)  # the dictionary, or a pair of it and the slots
    for part in state if isinstance(state, tuple) else (state,):
        for name in part or ():
            if name not in fields and not _is_of_no_matter(kind, name):
                raise InvalidArgument(
                    f"a value of type {_type_name(kind)} cannot be sent: its attribute {name!r} is no field of its class; make it one"
                )


def _is_of_no_matter(kind: type, name: str) -> bool:
    """Whether an attribute may be lost: what is computed anew when it is asked for, and what Python itself notes (`__orig_class__`)."""
    return (name[:2] == name[-2:] == "__") or isinstance(getattr(kind, name, None), functools.cached_property)


def _lower_array(value: Any, numpy: Any) -> Any:
    array = numpy.ascontiguousarray(value)  # its dtype, because that of an empty text has no size and cannot be read
    if array.dtype.kind not in "biufcmMSU" or not array.dtype.itemsize:
        raise InvalidArgument(f"an array of dtype {value.dtype} cannot be sent; convert it to numbers, dates or text")
    content: dict[str, Any] = {
        "dtype": array.dtype.str,
        "shape": list(value.shape),
        "data": _to_base64(array.tobytes()),
    }
    if isinstance(value, numpy.generic):
        if isinstance(value, str | bytes) and value != array[0]:
            raise InvalidArgument(
                "a numpy text that ends with zeros cannot be sent: numpy drops them; convert it to str or bytes"
            )
        content["scalar"] = True
    return {"$ndarray": content}


def _class_path(kind: type) -> str:
    path = f"{public_module(kind.__module__)}:{kind.__qualname__}"
    if kind.__module__ == "__main__" and not _is_app(sys.modules["__main__"]):
        raise InvalidArgument(
            f"a value of type {path} cannot be sent: its class must stand in a module that workers can import"
        )
    if find_class(path) is not kind:
        raise InvalidArgument(
            f"a value of type {path} cannot be sent: its class must stand at the top level of a module"
        )
    return path


@functools.lru_cache(maxsize=1)
def _is_app(main: ModuleType) -> bool:
    """Whether workers can import the main program: not a notebook or a prompt. Remembered: to ask the file system for each value costs more than the value."""
    return bool(main_app())


def _type_name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _to_base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _lower_timedelta(value: dt.timedelta) -> dict[str, Any]:
    return {"$timedelta": [value.days, value.seconds, value.microseconds]}


def _lower_datetime(value: dt.datetime) -> dict[str, Any]:
    if value.tzinfo is not None and not isinstance(value.tzinfo, dt.timezone):
        zone = getattr(value.tzinfo, "key", None)
        if zone is None:
            raise InvalidArgument(f"a datetime with the time zone {value.tzinfo!r} cannot be sent; use UTC or zoneinfo")
        return {"$datetime": [value.replace(tzinfo=None, fold=0).isoformat(), zone, value.fold]}
    return {"$datetime": value.isoformat()}


_LOWER: dict[type, Callable[[Any], Any]] = {
    dt.date: lambda value: {"$date": value.isoformat()},
    dt.datetime: _lower_datetime,
    dt.time: lambda value: {"$time": value.isoformat()} if value.tzinfo is None else refuse(value),
    dt.timedelta: _lower_timedelta,
    bytes: lambda value: {"$bytes": _to_base64(value)},
    bytearray: lambda value: {"$bytearray": _to_base64(bytes(value))},
    tuple: lambda value: {"$tuple": [lower(item) for item in value]},
    set: lambda value: {"$set": [lower(item) for item in value]},
    frozenset: lambda value: {"$frozenset": [lower(item) for item in value]},
    complex: lambda value: {"$complex": [lower(value.real), lower(value.imag)]},
    range: lambda value: {"$range": [value.start, value.stop, value.step]},
    decimal.Decimal: lambda value: {"$decimal": str(value)},
    uuid.UUID: lambda value: {"$uuid": str(value)},
    type(pathlib.Path()): lambda value: {"$path": str(value)},
    Input: lambda value: {"$input": value.k},
    File: lambda value: {"$file": {**lower_blob(value), "name": value.name}},
}
"""Exact types with a form of their own."""


def add_form(kind: type, lower: Callable[[Any], Any]) -> None:
    """Give an exact type of AntFarm's own a form: `lower` returns what JSON has for a value of it."""
    _LOWER[kind] = lower


def lower_blob(ref: BlobRef) -> dict[str, Any]:
    """A reference as JSON has it."""
    return {"key": ref.key, "size_bytes": ref.size_bytes, "sha256": ref.sha256.hex()}


# ---- from JSON -------------------------------------------------------------------------------------------------------


def take_input(k: Any, inputs: Sequence[Any]) -> Any:
    """The value of input number k. InvalidArgument when there is none."""
    if type(k) is not int or not 0 <= k < len(inputs):
        raise InvalidArgument(f"the payload asks for input {k!r}, and the task has {len(inputs)}")
    return inputs[k]


def raise_form(found: dict[str, Any], inputs: Sequence[Any] = ()) -> Any:
    """The value that a JSON object stands for; called from the inside out."""
    if len(found) != 1:
        return found
    [(tag, content)] = found.items()
    if tag[:1] != "$":
        return found
    if tag == "$input":
        return take_input(content, inputs)
    make = _RAISE.get(tag)
    if make is None:
        raise InvalidArgument(f"a value of the unknown form {tag!r}; the sender may run a newer version")
    try:
        return make(content)
    except InvalidArgument:
        raise
    except (ValueError, TypeError, KeyError, ArithmeticError, AttributeError, LookupError) as error:
        raise InvalidArgument(f"a malformed {tag} value: {type(error).__name__}: {error}") from None


def _from_base64(text: str) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True) if text else b""
    except binascii.Error as error:
        raise ValueError(str(error)) from None


def _raise_datetime(content: Any) -> dt.datetime:
    if isinstance(content, str):
        return dt.datetime.fromisoformat(content)
    text, zone, fold = content
    zoneinfo = importlib.import_module("zoneinfo")
    return dt.datetime.fromisoformat(text).replace(tzinfo=zoneinfo.ZoneInfo(zone), fold=fold)


def _known(path: str, what: str) -> type:
    kind = find_class(path)
    if kind is None:
        raise InvalidArgument(
            f"the {what} {path} is not known in this process; import its module first (--app on workers)"
        )
    return kind


def _raise_dataclass(content: Any) -> Any:
    path, values = content
    kind = _known(path, "dataclass")
    if not dataclasses.is_dataclass(kind):
        raise InvalidArgument(f"{path} is not a dataclass")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - set(fields)):
        raise InvalidArgument(f"{path} has no field {unknown[0]!r}; the two ends run different versions of it")
    if len(values) == len(fields):
        # Not by its constructor, which may compute fields from others: that was done where the value was made.
        made: Any = object.__new__(kind)
    else:  # written by an older version of the class, or by hand: the class knows what the others are, or refuses
        made = kind(**{name: value for name, value in values.items() if fields[name].init})
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made


def _raise_enum(content: Any) -> Any:
    path, name = content
    kind = _known(path, "enumeration")
    if not issubclass(kind, enum.Enum):
        raise InvalidArgument(f"{path} is not an enumeration")
    return kind[name]


def _raise_namedtuple(content: Any) -> Any:
    path, values = content
    kind: Any = _known(path, "named tuple")
    if not (issubclass(kind, tuple) and hasattr(kind, "_fields")):
        raise InvalidArgument(f"{path} is not a named tuple")
    # A whole one not by its constructor, as with dataclasses.
    return kind(*values) if len(values) < len(kind._fields) else kind._make(values)


def _raise_proto(content: Any) -> Any:
    name, text = content
    pool = importlib.import_module("google.protobuf.descriptor_pool").Default()
    try:
        descriptor = pool.FindMessageTypeByName(name)
    except KeyError:
        raise InvalidArgument(
            f"the protobuf message {name} is not known in this process; import its module first"
        ) from None
    message = importlib.import_module("google.protobuf.message_factory").GetMessageClass(descriptor)()
    try:
        message.ParseFromString(_from_base64(text))
    except importlib.import_module("google.protobuf.message").DecodeError as error:
        raise ValueError(str(error)) from None
    return message


def _raise_array(content: Any) -> Any:
    try:
        numpy = importlib.import_module("numpy")
    except ImportError:
        raise InvalidArgument("the value is a numpy array, and numpy is not installed here") from None
    dtype = numpy.dtype(content["dtype"])
    if dtype.kind not in "biufcmMSU":
        raise InvalidArgument(f"an array of dtype {dtype} is not allowed")
    # A copy, because the buffer of the text is read-only and users write into their arrays.
    array = numpy.frombuffer(_from_base64(content["data"]), dtype=dtype).reshape(content["shape"]).copy()
    return array[()] if content.get("scalar") else array


def raise_blob(content: Any, cls: type[BlobRef] = BlobRef, **more: str) -> Any:
    """The reference that `lower_blob` wrote. ValueError, KeyError or TypeError when it is none."""
    key, size_bytes, sha256 = content["key"], content["size_bytes"], bytes.fromhex(content["sha256"])
    if type(key) is not str or type(size_bytes) is not int or len(sha256) != 32:
        raise ValueError("not a key, a size and a SHA-256")
    return cls(key=key, size_bytes=size_bytes, sha256=sha256, **more)


_RAISE: dict[str, Callable[[Any], Any]] = {
    "$float": lambda content: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[content],
    "$dict": dict,
    "$date": dt.date.fromisoformat,
    "$datetime": _raise_datetime,
    "$time": dt.time.fromisoformat,
    "$timedelta": lambda content: dt.timedelta(*content),
    "$bytes": _from_base64,
    "$bytearray": lambda content: bytearray(_from_base64(content)),
    "$tuple": tuple,
    "$set": set,
    "$frozenset": frozenset,
    "$complex": lambda content: complex(*content),
    "$range": lambda content: range(*content),
    "$decimal": decimal.Decimal,
    "$uuid": uuid.UUID,
    "$path": pathlib.Path,
    "$enum": _raise_enum,
    "$dataclass": _raise_dataclass,
    "$namedtuple": _raise_namedtuple,
    "$proto": _raise_proto,
    "$ndarray": _raise_array,
    "$file": lambda content: raise_blob(content, File, name=str(content.get("name", ""))),
}
"""How each form is read. $input and $blob are met before."""
