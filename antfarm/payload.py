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

import importlib
import json
import json.encoder
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from antfarm.errors import InvalidArgument
from antfarm.form import Input, is_plain, lower, lower_blob, raise_blob, raise_form, refuse, take_input
from antfarm.model import PAYLOAD_BYTES_MAX, BlobRef

PICKLE_BYTE = 0x80
"""First byte of every pickle of protocol 2 and above; never the first byte of JSON in UTF-8."""


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
        if is_plain(value):
            try:
                return _dump(value)
            except ValueError:  # nan or infinity, which JSON does not have
                pass
        return _dump(lower(value))
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


def _make_dump() -> Callable[[Any], bytes]:
    """One encoder for the process: `JSONEncoder.encode` builds a new C encoder for every call, which costs more than the encoding."""
    plain = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False, default=refuse)
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return lambda value: plain.encode(value).encode()
    quote = json.encoder.encode_basestring_ascii
    encoder: Callable[[Any, int], Iterable[str]] = make(None, refuse, quote, None, ":", ",", False, False, False)
    return lambda value: "".join(encoder(value, 0)).encode()


_dump = _make_dump()


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
        try:
            return [_put_inputs(arg, inputs) for arg in call[0]], _put_inputs(dict(call[1]), inputs)
        except (TypeError, LookupError, ValueError):
            raise InvalidArgument("the payload is a pickle, but not of a call") from None
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
        hook = raise_form if not inputs else lambda found: raise_form(found, inputs)
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
        return take_input(value.k, inputs)
    if kind in (list, tuple):
        return kind(_put_inputs(item, inputs) for item in value)
    if kind is dict:
        return {key: _put_inputs(item, inputs) for key, item in value.items()}
    return value


# ---- Storage --------------------------------------------------------------------------------------------------------


_BLOB_FIRST = b"{ \t\r\n"
_BLOB = re.compile(rb'\s*\{\s*"\$blob"\s*:')


def blob_of(data: bytes) -> BlobRef | None:
    """The blob that holds the value, when `data` is `{"$blob": ...}`; else None."""
    if data[:1] not in _BLOB_FIRST or _BLOB.match(data) is None:
        return None
    try:
        found = json.loads(data)
        ref: BlobRef = raise_blob(found["$blob"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidArgument(f"a malformed $blob value: {error}") from None
    return ref


def blob_payload(ref: BlobRef) -> bytes:
    """The bytes that travel in place of a value that lies in Storage."""
    return _dump({"$blob": lower_blob(ref)})


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
