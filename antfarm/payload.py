"""What is in a payload and in a result: the one place that turns Python values into bytes and back.

The bytes are UTF-8 JSON that any language can read and write (docs/protocol.md, "Payloads"). Plain values are themselves; every
other value is an object with one key that starts with "$", e.g. `{"$date": "2021-01-01"}`. A dict of the user's that could be taken for one,
or whose keys are not all strings, is written as `{"$dict": [[key, value], ...]}`, so nothing is ever misread.

Values come back equal and of the same type, or encoding refuses them: nothing is changed silently. Nothing is imported because bytes say so:
classes are looked up among what the process has imported already. Pickles (first byte 0x80) are read and written only where
the caller says `allow_pickle`.

This module does no I/O. A value above `PAYLOAD_BYTES_MAX` is put into Storage by a callback and `{"$blob": ...}` travels in its place.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import datetime as dt
import decimal
import enum
import importlib
import json
import json.encoder
import math
import pathlib
import re
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from antfarm.apps import find_class, public_module
from antfarm.errors import InvalidArgument
from antfarm.model import PAYLOAD_BYTES_MAX, BlobRef

PICKLE_BYTE = 0x80
"""First byte of every pickle of protocol 2 and above; never the first byte of JSON in UTF-8."""

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


# ---- encoding -------------------------------------------------------------------------------------------------------


def encode_call(args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, *, allow_pickle: bool = False) -> bytes:
    """The payload of one call. InvalidArgument naming the type when a value has no encoding and pickles are not allowed."""
    if not kwargs:
        return _encode(list(args), pickled=(args, {}) if allow_pickle else None)
    call = {"args": list(args), "kwargs": dict(kwargs)}
    return _encode(call, pickled=(args, kwargs) if allow_pickle else None)


def encode_common(kwargs: Mapping[str, Any], *, allow_pickle: bool = False) -> bytes:
    """`TaskTemplate.common_payload`: keyword arguments of all calls of a job. b"" without any."""
    return _encode(dict(kwargs), pickled=((), kwargs) if allow_pickle else None) if kwargs else b""


def encode_result(value: Any, *, allow_pickle: bool = False) -> bytes:
    """The bytes of one result. InvalidArgument naming the type when the value has no encoding and pickles are not allowed."""
    return _encode(value, pickled=value if allow_pickle else None)


def _encode(value: Any, pickled: Any) -> bytes:
    try:
        if _is_plain(value):
            try:
                return _dump(value)
            except ValueError:  # nan or infinity, which JSON does not have
                pass
        return _dump(_lower(value))
    except InvalidArgument:
        if pickled is None:
            raise
        return _pickle(pickled)
    except RecursionError:
        raise InvalidArgument("a value is nested too deeply or contains itself; it cannot be sent") from None
    except ValueError as error:  # an integer above the interpreter's limit of digits
        raise InvalidArgument(f"a value cannot be sent: {error}") from None


def _pickle(value: Any) -> bytes:
    cloudpickle = importlib.import_module("cloudpickle")
    try:
        return bytes(cloudpickle.dumps(value))
    except Exception as error:
        raise InvalidArgument(f"a value can be neither encoded nor pickled: {type(error).__name__}: {error}") from None


def _default(value: Any) -> Any:
    raise InvalidArgument(f"a value of type {_type_name(type(value))} cannot be sent")


def _make_dump() -> Callable[[Any], bytes]:
    """One encoder for the process: `JSONEncoder.encode` builds a new C encoder for every call, which costs more than the encoding."""
    plain = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False, default=_default)
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return lambda value: plain.encode(value).encode()
    quote = json.encoder.encode_basestring_ascii
    encoder: Callable[[Any, int], Iterable[str]] = make(None, _default, quote, None, ":", ",", False, False, False)
    return lambda value: "".join(encoder(value, 0)).encode()


_dump = _make_dump()


def _is_plain(value: Any) -> bool:
    """True when JSON carries the value unchanged."""
    kind = type(value)
    if kind in _SCALARS:
        return True
    if kind is list:
        return _SCALARS.issuperset(map(type, value)) or all(map(_is_plain, value))
    if kind is dict:
        for key in value:
            if type(key) is not str or key[:1] == "$":
                return False
        values = value.values()
        return _SCALARS.issuperset(map(type, values)) or all(map(_is_plain, values))
    return False


def _lower(value: Any) -> Any:
    """The value as JSON has it."""
    kind = type(value)
    if kind is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if kind in _SCALARS:
        return value
    if kind is list:
        return [_lower(item) for item in value]
    if kind is dict:
        if all(type(key) is str and key[:1] != "$" for key in value):
            return {key: _lower(item) for key, item in value.items()}
        return {"$dict": [[_lower(key), _lower(item)] for key, item in value.items()]}
    lower = _LOWER.get(kind)
    if lower is not None:
        return lower(value)
    return _lower_by_nature(value, kind)


def _lower_by_nature(value: Any, kind: type) -> Any:
    """Values whose class is the user's or an optional package's."""
    if isinstance(value, enum.Enum):
        return {"$enum": [_class_path(kind), value.name]}
    if dataclasses.is_dataclass(value):
        fields = {field.name: _lower(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"$dataclass": [_class_path(kind), fields]}
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return {"$namedtuple": [_class_path(kind), [_lower(item) for item in value]]}
    if isinstance(value, pathlib.PurePath):
        return {"$path": str(value)}
    message = sys.modules.get("google.protobuf.message")
    if message is not None and isinstance(value, message.Message):
        return {"$proto": [value.DESCRIPTOR.full_name, _to_base64(value.SerializeToString(deterministic=True))]}
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
        return _lower_array(value, numpy)
    raise InvalidArgument(
        f"a value of type {_type_name(kind)} cannot be sent: use JSON values, dataclasses, dates, bytes, numpy arrays, protobuf "
        "messages or af.File, or allow pickles on both ends"
    )


def _lower_array(value: Any, numpy: Any) -> Any:
    if value.dtype.kind not in "biufcmMSU":
        raise InvalidArgument(f"an array of dtype {value.dtype} cannot be sent; convert it to numbers, dates or text")
    raw = numpy.ascontiguousarray(value).tobytes()
    content: dict[str, Any] = {"dtype": value.dtype.str, "shape": list(value.shape), "data": _to_base64(raw)}
    if isinstance(value, numpy.generic):
        content["scalar"] = True
    return {"$ndarray": content}


def _class_path(kind: type) -> str:
    path = f"{public_module(kind.__module__)}:{kind.__qualname__}"
    if find_class(path) is not kind:
        raise InvalidArgument(
            f"a value of type {path} cannot be sent: its class must stand at the top level of a module"
        )
    return path


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
    dt.time: lambda value: {"$time": value.isoformat()} if value.tzinfo is None else _default(value),
    dt.timedelta: _lower_timedelta,
    bytes: lambda value: {"$bytes": _to_base64(value)},
    bytearray: lambda value: {"$bytearray": _to_base64(bytes(value))},
    tuple: lambda value: {"$tuple": [_lower(item) for item in value]},
    set: lambda value: {"$set": [_lower(item) for item in value]},
    frozenset: lambda value: {"$frozenset": [_lower(item) for item in value]},
    complex: lambda value: {"$complex": [_lower(value.real), _lower(value.imag)]},
    range: lambda value: {"$range": [value.start, value.stop, value.step]},
    decimal.Decimal: lambda value: {"$decimal": str(value)},
    uuid.UUID: lambda value: {"$uuid": str(value)},
    Input: lambda value: {"$input": value.k},
    File: lambda value: {"$file": {**_lower_blob(value), "name": value.name}},
}
"""Exact types with a form of their own."""


def add_form(kind: type, lower: Callable[[Any], Any]) -> None:
    """Give an exact type of AntFarm's own a form: `lower` returns what JSON has for a value of it."""
    _LOWER[kind] = lower


def _lower_blob(ref: BlobRef) -> dict[str, Any]:
    return {"key": ref.key, "size_bytes": ref.size_bytes, "sha256": ref.sha256.hex()}


# ---- decoding -------------------------------------------------------------------------------------------------------


def decode_call(
    payload: bytes,
    common: bytes = b"",
    *,
    inputs: Sequence[Any] = (),
    get: Callable[[BlobRef], bytes] | None = None,
    allow_pickle: bool = False,
) -> tuple[list[Any], dict[str, Any]]:
    """Arguments and keyword arguments of one call.

    Args:
        payload: as submitted.
        common: the template's common_payload; the payload's own keyword arguments win over it.
        inputs: values of the dependencies, in their order, each put where `Input(k)` stands.
        get: fetches a payload that lies in Storage.
        allow_pickle: whether a pickle may be read.

    InvalidArgument when the bytes are not a call; no retry can help.
    """
    args, kwargs = _decode_arguments(_fetch(payload, get), inputs, allow_pickle)
    if common:
        _, shared = _decode_arguments(_fetch(common, get), inputs, allow_pickle, common=True)
        kwargs = {**shared, **kwargs}
    return args, kwargs


def _decode_arguments(
    data: bytes, inputs: Sequence[Any], allow_pickle: bool, *, common: bool = False
) -> tuple[list[Any], dict[str, Any]]:
    call = _decode(data, inputs, allow_pickle)
    if data[:1] == b"\x80":  # the pair that `encode_call` pickles; its maker is trusted
        return [_put_inputs(arg, inputs) for arg in call[0]], _put_inputs(dict(call[1]), inputs)
    if common:
        if type(call) is not dict:
            raise InvalidArgument("common arguments must be a JSON object")
        return [], call
    if type(call) is list:
        return call, {}
    if type(call) is dict and type(call.get("args")) is list:
        kwargs = call.get("kwargs", {})
        if type(kwargs) is dict and all(type(name) is str for name in kwargs):
            return call["args"], kwargs
    raise InvalidArgument('a payload must be a JSON list of arguments or {"args": [...], "kwargs": {...}}')


def decode_result(data: bytes, *, get: Callable[[BlobRef], bytes] | None = None, allow_pickle: bool = False) -> Any:
    """The value of a result. InvalidArgument when the bytes are not one, or hold a pickle that is not allowed."""
    return _decode(_fetch(data, get), (), allow_pickle)


def _fetch(data: bytes, get: Callable[[BlobRef], bytes] | None) -> bytes:
    ref = blob_of(data)
    if ref is None:
        return data
    if get is None:
        raise InvalidArgument(f"the value lies in Storage under {ref.key}, and there is no Storage to read it from")
    return get(ref)


def _decode(data: bytes, inputs: Sequence[Any], allow_pickle: bool) -> Any:
    if data and data[0] == PICKLE_BYTE:
        if not allow_pickle:
            raise InvalidArgument("the value is a pickle; both ends must opt in with allow_pickle to use pickles")
        return _unpickle(data)
    try:
        if b'"$' not in data and b"u0024" not in data:
            return _parse_plain(str(data, "utf-8"))
        hook = _raise if not inputs else lambda found: _raise(found, inputs)
        return json.loads(str(data, "utf-8"), object_hook=hook, parse_constant=_no_constant)
    except InvalidArgument:
        raise
    except RecursionError:
        raise InvalidArgument("a value is nested too deeply") from None
    except ValueError as error:
        raise InvalidArgument(f"a value is not JSON in UTF-8: {error}") from None


def _no_constant(name: str) -> Any:
    raise InvalidArgument(f"a value is not JSON: {name}")


_PLAIN = json.JSONDecoder(parse_constant=_no_constant)
_SCAN: Callable[[str, int], tuple[Any, int]] = getattr(_PLAIN, "scan_once", _PLAIN.raw_decode)


def _parse_plain(text: str) -> Any:
    # `decode` looks for white space around the value by regular expressions, which costs more than reading a small value.
    try:
        value, end = _SCAN(text, 0)
    except StopIteration:
        return _PLAIN.decode(text)
    return value if end == len(text) else _PLAIN.decode(text)


def _unpickle(data: bytes) -> Any:
    pickle = importlib.import_module("pickle")
    try:
        return pickle.loads(data)
    except Exception as error:
        raise InvalidArgument(f"a pickle cannot be read: {type(error).__name__}: {error}") from None


def _put_inputs(value: Any, inputs: Sequence[Any]) -> Any:
    """Replace `Input(k)` in what a pickle held; JSON is handled while it is parsed."""
    kind = type(value)
    if kind is Input:
        return _input(value.k, inputs)
    if kind in (list, tuple):
        return kind(_put_inputs(item, inputs) for item in value)
    if kind is dict:
        return {key: _put_inputs(item, inputs) for key, item in value.items()}
    return value


def _input(k: Any, inputs: Sequence[Any]) -> Any:
    if type(k) is not int or not 0 <= k < len(inputs):
        raise InvalidArgument(f"the payload asks for input {k!r}, and the task has {len(inputs)}")
    return inputs[k]


def _raise(found: dict[str, Any], inputs: Sequence[Any] = ()) -> Any:
    """The value that a JSON object stands for; called from the inside out."""
    if len(found) != 1:
        return found
    [(tag, content)] = found.items()
    if tag[:1] != "$":
        return found
    if tag == "$input":
        return _input(content, inputs)
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
    made: Any = kind(**{name: value for name, value in values.items() if fields[name].init})
    for name, value in values.items():
        if not fields[name].init:
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
    return kind(*values)


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


def _raise_blob(content: Any, cls: type[BlobRef] = BlobRef, **more: str) -> Any:
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
    "$file": lambda content: _raise_blob(content, File, name=str(content.get("name", ""))),
}
"""How each form is read. $input and $blob are met before."""


# ---- Storage --------------------------------------------------------------------------------------------------------


_BLOB = re.compile(rb'\s*\{\s*"\$blob"\s*:')


def blob_of(data: bytes) -> BlobRef | None:
    """The blob that holds the value, when `data` is `{"$blob": ...}`; else None."""
    if data[:1] == b"[" or _BLOB.match(data) is None:
        return None
    try:
        found = json.loads(data)
        ref: BlobRef = _raise_blob(found["$blob"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidArgument(f"a malformed $blob value: {error}") from None
    return ref


def blob_payload(ref: BlobRef) -> bytes:
    """The bytes that travel in place of a value that lies in Storage."""
    return _dump({"$blob": _lower_blob(ref)})


def spill(data: bytes, put: Callable[[bytes], BlobRef]) -> bytes:
    """`data` itself up to PAYLOAD_BYTES_MAX; else it goes to Storage by `put`, and its reference comes back."""
    return data if len(data) <= PAYLOAD_BYTES_MAX else blob_payload(put(data))


async def spill_async(data: bytes, put: Callable[[bytes], Awaitable[BlobRef]]) -> bytes:
    """As `spill`, on the loop."""
    return data if len(data) <= PAYLOAD_BYTES_MAX else blob_payload(await put(data))


async def fetch_async(data: bytes, get: Callable[[BlobRef], Awaitable[bytes]]) -> bytes:
    """The encoded value itself, read by `get` where it lies in Storage."""
    ref = blob_of(data)
    return data if ref is None else await get(ref)
