"""Payloads come back equal and of the same type, or are refused in one line."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import functools
import hashlib
import json
import math
import pathlib
import pickle
import sys
import types
import uuid
import zoneinfo
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from antfarm import form, payload
from antfarm.errors import InvalidArgument
from antfarm.form import File, Input
from antfarm.model import PAYLOAD_BYTES_MAX, BlobRef
from antfarm.v1 import job_pb2


class Colour(enum.Enum):
    RED = "r"


class Level(enum.IntEnum):
    HIGH = 3


class Pair(NamedTuple):
    left: int
    right: object


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    x: float
    y: Any = None
    half: float = dataclasses.field(init=False, default=0.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "half", self.x / 2)


T = TypeVar("T")


class Access(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Doubled:
    x: float

    def __post_init__(self) -> None:
        self.x *= 2


@dataclasses.dataclass
class Shifted(Doubled):
    by: dataclasses.InitVar[float]
    note: str = dataclasses.field(default="", init=False)

    def __post_init__(self, by: float) -> None:  # type: ignore[override]
        self.x += by
        self.note = f"by {by}"


@dataclasses.dataclass(frozen=True, slots=True)
class Base:
    x: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Derived(Base, Generic[T]):
    y: T | None = None


@dataclasses.dataclass
class Loose(Generic[T]):
    x: int

    @functools.cached_property
    def twice(self) -> int:
        return 2 * self.x


@dataclasses.dataclass
class Listed(list[int]):
    x: int = 0


@dataclasses.dataclass
class Unset:
    x: int = dataclasses.field(init=False)


class Doubling(NamedTuple("Doubling", [("x", int), ("y", int)])):
    def __new__(cls, x: int, y: int = 0) -> Doubling:
        return super().__new__(cls, 2 * x, y)


class Reading(np.ndarray):
    pass


class Metres(np.float64):
    pass


class Outer:
    @dataclasses.dataclass
    class Inner:
        value: int


def round_trip(value: Any) -> Any:
    return payload.decode_result(payload.encode_result(value))


def same(a: Any, b: Any) -> bool:
    """Equal and of the same types all the way down; nan equals nan."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return len(a) == len(b) and all(map(same, a.keys(), b.keys())) and all(map(same, a.values(), b.values()))
    if isinstance(a, Point):
        return same(a.x, b.x) and same(a.y, b.y)
    return bool(a == b)


json_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
hashables = (
    json_scalars.filter(lambda v: v == v)
    | st.binary()
    | st.dates()
    | st.datetimes(timezones=st.none() | st.just(dt.UTC))
    | st.times()
    | st.timedeltas()
    | st.uuids()
    | st.decimals(allow_nan=False)
    | st.sampled_from([Colour.RED, Level.HIGH, range(3), pathlib.PurePosixPath("/a/b").name, 1 + 2j])
)
leaves = (
    json_scalars | hashables | st.sets(hashables) | st.frozensets(hashables) | st.builds(Point, st.floats(), st.text())
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.sampled_from(["$date", "$input", "$blob", "$x"]), inner)
        | st.dictionaries(hashables, inner)
        | st.builds(Pair, st.integers(), inner)
        | st.builds(Point, st.floats(allow_nan=False), inner)
    ),
    max_leaves=12,
)


@given(values)
def test_any_value_comes_back_equal_and_of_the_same_type(value: Any) -> None:
    assert same(round_trip(value), value)


@given(st.lists(values, max_size=4), st.dictionaries(st.text(), values, max_size=3))
def test_a_call_comes_back(args: list[Any], kwargs: dict[str, Any]) -> None:
    back_args, back_kwargs = payload.decode_call(payload.encode_call(args, kwargs))
    assert same(back_args, args)
    assert same(back_kwargs, kwargs)


@given(
    hnp.arrays(
        dtype=hnp.scalar_dtypes() | hnp.byte_string_dtypes() | hnp.unicode_string_dtypes(),
        shape=hnp.array_shapes(min_dims=0),
    )
)
def test_an_array_comes_back_bit_for_bit_and_writable(array: Any) -> None:
    back = round_trip(array)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()
    assert back.flags.writeable


@given(st.binary())
def test_hostile_bytes_are_a_value_or_one_clear_error(data: bytes) -> None:
    for decode in (payload.decode_result, payload.decode_call):
        try:
            decode(data)
        except InvalidArgument:
            pass  # any other exception fails the test


tags = st.sampled_from([*sorted(form._RAISE), "$input", "$blob", "$nonsense"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.builds(lambda t, v: {t: v}, tags, inner),
    max_leaves=8,
)


@given(json_values)
def test_hostile_json_is_a_value_or_one_clear_error(value: Any) -> None:
    data = json.dumps(value).encode()
    for decode in (payload.decode_result, payload.decode_call):
        try:
            decode(data)
        except InvalidArgument:
            pass


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([1, 2.5, "é", None, True], '[1,2.5,"\\u00e9",null,true]'),
        (dt.date(2021, 1, 1), '{"$date":"2021-01-01"}'),
        (b"\x00\xff", '{"$bytes":"AP8="}'),
        ((1, "a"), '{"$tuple":[1,"a"]}'),
        ({"$date": 1}, '{"$dict":[["$date",1]]}'),
        ({1: 2}, '{"$dict":[[1,2]]}'),
        (math.inf, '{"$float":"inf"}'),
        (Input(1), '{"$input":1}'),
        (Point(1.0), f'{{"$dataclass":["{__name__}:Point",{{"x":1.0,"y":null,"half":0.5}}]}}'),
        (
            File(key="a/b", size_bytes=3, sha256=bytes(32), name="b"),
            '{"$file":{"key":"a/b","size_bytes":3,"sha256":"' + "0" * 64 + '","name":"b"}}',
        ),
    ],
)
def test_the_bytes_are_those_that_other_languages_expect(value: Any, text: str) -> None:
    assert payload.encode_result(value) == text.encode()


def test_positional_calls_are_a_list_and_others_an_object() -> None:
    assert payload.encode_call((1, "a")) == b'[1,"a"]'
    assert payload.encode_call((1,), {"b": 2}) == b'{"args":[1],"kwargs":{"b":2}}'


def test_common_arguments_stand_below_the_payloads_own() -> None:
    common = payload.encode_common({"a": 1, "day": dt.date(2021, 1, 1)})
    assert payload.decode_call(b"[7]", common) == ([7], {"a": 1, "day": dt.date(2021, 1, 1)})
    assert payload.decode_call(b'{"args":[],"kwargs":{"a":2}}', common) == ([], {"a": 2, "day": dt.date(2021, 1, 1)})
    assert payload.encode_common({}) == b""


def test_inputs_take_their_places() -> None:
    data = payload.encode_call((Input(1), [Input(0)]), {"k": {"deep": Input(0)}})
    assert payload.decode_call(data, inputs=["zero", "one"]) == (["one", ["zero"]], {"k": {"deep": "zero"}})
    with pytest.raises(InvalidArgument, match="asks for input 1, and the task has 1"):
        payload.decode_call(data, inputs=["zero"])


def test_escaped_and_spaced_json_of_other_writers_is_read() -> None:
    assert payload.decode_result(b' { "\\u0024date" : "2021-01-02" } ') == dt.date(2021, 1, 2)
    assert payload.decode_result(b" [1 , 2]\n") == [1, 2]


def test_named_classes_come_back() -> None:
    for value in (Outer.Inner(3), Pair(1, (2,)), Colour.RED, Level.HIGH):
        back = round_trip(value)
        assert (type(back), back) == (type(value), value)


def test_a_protobuf_message_comes_back() -> None:
    message = job_pb2.Job(job_id="j", task_count=3)
    assert round_trip(message) == message


def test_zones_and_other_leaves_come_back() -> None:
    zone = zoneinfo.ZoneInfo("UTC")
    for value in (
        dt.datetime(2021, 3, 28, 1, 30, tzinfo=zone),
        dt.datetime(2021, 1, 1, 12, tzinfo=dt.timezone(dt.timedelta(hours=2))),
        decimal.Decimal("1.10"),
        uuid.UUID(int=7),
        pathlib.Path("/a/b"),
        bytearray(b"x"),
        np.float32(1.5),
        np.datetime64("2021-01-01"),
        np.str_(""),
        np.bytes_(b""),
        np.str_("ab"),
    ):
        back = round_trip(value)
        assert (type(back), back) == (type(value), value)


def test_what_a_constructor_computes_is_not_computed_again() -> None:
    for value in (Doubled(2.0), Shifted(2.0, by=1.0), Derived(x=1, y="y"), Derived(x=2), Doubling(1, 2)):
        back = round_trip(value)
        assert (type(back), repr(back)) == (type(value), repr(value))
    assert round_trip(Shifted(2.0, by=1.0)).note == "by 1.0"


def test_an_instance_that_holds_what_is_computed_anew_comes_back() -> None:
    value = Loose[int](3)
    assert value.twice == 6
    assert vars(round_trip(value)) == {"x": 3}


def loose(**more: Any) -> Loose[Any]:
    made = Loose[Any](3)
    vars(made).update(more)
    return made


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (
            Access.READ | Access.WRITE,
            f"{__name__}:Access: <Access.READ|WRITE: 3> cannot be sent, since it is no member; send its value",
        ),
        (Access(0), f"{__name__}:Access: <Access: 0> cannot be sent, since it is no member; send its value"),
        (
            loose(y=5),
            f"a value of type {__name__}.Loose cannot be sent: its attribute 'y' is no field of its class; make it one",
        ),
        (
            Listed(1),
            f"a value of type {__name__}:Listed cannot be sent: its class makes its instances in a way of its own",
        ),
        (Unset(), f"a value of type {__name__}:Unset cannot be sent: 'Unset' object has no attribute 'x'"),
        (np.ndarray((2,), "U0"), "an array of dtype <U0 cannot be sent; convert it to numbers, dates or text"),
        (
            np.str_("a\0"),
            "a numpy text that ends with zeros cannot be sent: numpy drops them; convert it to str or bytes",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_would_come_back_otherwise_is_refused_with_the_reason(value: Any, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        payload.encode_result([value])
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    "value",
    [
        Doubled,
        Access.READ | Access.WRITE,
        np.ma.masked_array([1.0, 2.0, -999.0], mask=[0, 0, 1]),
        np.zeros(2).view(Reading),
        pathlib.PureWindowsPath("C:\\a"),
        pathlib.PurePosixPath("/a"),
        loose(y=5),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_only_a_pickle_carries_goes_by_one_where_that_is_allowed(value: Any) -> None:
    with pytest.raises(InvalidArgument, match="cannot be sent"):
        payload.encode_result(value)
    back = payload.decode_result(payload.encode_result(value, allow_pickle=True), allow_pickle=True)
    assert (type(back), repr(back)) == (type(value), repr(value))


class Plain:
    pass


@pytest.mark.parametrize(
    "value",
    [
        Plain(),
        lambda: 1,
        collections.Counter("a"),
        collections.OrderedDict(),
        np.array([object()]),
        10**5000,
        dt.time(tzinfo=dt.UTC),
        Metres(1.5),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_encoding_is_refused_in_one_line(value: Any) -> None:
    for wrapped in (value, [value], {"a": (value,)}):
        with pytest.raises(InvalidArgument, match="cannot be sent") as caught:
            payload.encode_result(wrapped)
        assert "\n" not in str(caught.value)


def test_local_classes_are_refused() -> None:
    @dataclasses.dataclass
    class Local:
        x: int

    with pytest.raises(InvalidArgument, match="must stand at the top level of a module"):
        payload.encode_result(Local(1))


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(InvalidArgument, match="nested too deeply"):
        payload.encode_result(loop)
    with pytest.raises(InvalidArgument, match="nested too deeply"):
        payload.decode_result(b"[" * 100_000)


def test_nothing_is_imported_because_bytes_say_so() -> None:
    for path in ("wave:Wave_read", "antfarm_no_such:X", "os:system", "json:JSONDecoder", "antfarm.model:os"):
        with pytest.raises(InvalidArgument):
            payload.decode_result(json.dumps({"$dataclass": [path, {}]}).encode())
    assert "wave" not in sys.modules


def test_a_field_of_another_version_is_named() -> None:
    data = json.dumps({"$dataclass": [f"{__name__}:Point", {"x": 1.0, "z": 2}]}).encode()
    with pytest.raises(InvalidArgument, match="has no field 'z'"):
        payload.decode_result(data)


def test_a_field_that_is_not_told_is_the_classs_own_affair() -> None:
    """An older version of the class did not know it, or a hand in another language left it to its default."""
    data = json.dumps({"$dataclass": [f"{__name__}:Point", {"x": 1.0}]}).encode()
    assert payload.decode_result(data) == Point(1.0)
    assert payload.decode_result(data).half == 0.5
    data = json.dumps({"$dataclass": [f"{__name__}:Point", {"y": 1.0}]}).encode()
    with pytest.raises(
        InvalidArgument, match=r"^a malformed \$dataclass value: TypeError: .* missing .* argument: 'x'$"
    ):
        payload.decode_result(data)
    assert payload.decode_result(json.dumps({"$namedtuple": [f"{__name__}:Doubling", [1]]}).encode()) == (2, 0)


NOTEBOOK = """
import dataclasses, enum, typing
@dataclasses.dataclass
class Box:
    x: int
class Colour(enum.Enum):
    RED = 1
class Pair(typing.NamedTuple):
    a: int
"""


def test_classes_of_a_notebook_go_by_pickle_where_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker can import what it was typed into, so that their names would say nothing there."""
    notebook: Any = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", notebook)
    exec(NOTEBOOK, vars(notebook))
    for value in (notebook.Box(1), notebook.Colour.RED, notebook.Pair(3)):
        with pytest.raises(InvalidArgument, match=r"its class must stand in a module that workers can import$"):
            payload.encode_call([value])
        data = payload.encode_call([value], allow_pickle=True)
        assert data[0] == payload.PICKLE_BYTE
        assert payload.decode_call(data, allow_pickle=True) == ([value], {})


def test_classes_of_a_script_go_by_their_name(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    script: Any = types.ModuleType("__main__")
    script.__file__ = str(tmp_path / "boxes.py")
    monkeypatch.setitem(sys.modules, "__main__", script)
    exec(NOTEBOOK, vars(script))
    data = payload.encode_call([script.Box(1), script.Colour.RED])
    assert data == b'[{"$dataclass":["boxes:Box",{"x":1}]},{"$enum":["boxes:Colour","RED"]}]'
    assert payload.decode_call(data) == ([script.Box(1), script.Colour.RED], {})


def test_pickles_need_the_consent_of_both_ends() -> None:
    data = payload.encode_call((collections.Counter("aab"), [Input(0)]), allow_pickle=True)
    assert data[0] == payload.PICKLE_BYTE
    with pytest.raises(InvalidArgument, match="pickle"):
        payload.decode_call(data)
    args, kwargs = payload.decode_call(data, inputs=["in"], allow_pickle=True)
    assert (args, kwargs) == ([collections.Counter("aab"), ["in"]], {})
    assert payload.encode_call((1,), allow_pickle=True) == b"[1]"
    with pytest.raises(InvalidArgument, match="pickle cannot be read"):
        payload.decode_result(pickle.dumps(1)[:-1], allow_pickle=True)


def test_a_large_value_travels_by_reference() -> None:
    store: dict[str, bytes] = {}

    def put(data: bytes) -> BlobRef:
        ref = BlobRef(key="blobs/x", size_bytes=len(data), sha256=hashlib.sha256(data).digest())
        store[ref.key] = data
        return ref

    small, large = (
        payload.encode_result("a" * (PAYLOAD_BYTES_MAX - 2)),
        payload.encode_result("a" * (PAYLOAD_BYTES_MAX - 1)),
    )
    assert payload.spill(small, put) is small
    assert store == {}
    reference = payload.spill(large, put)
    assert len(reference) < 300
    assert payload.decode_result(reference, get=lambda ref: store[ref.key]) == "a" * (PAYLOAD_BYTES_MAX - 1)
    with pytest.raises(InvalidArgument, match="lies in Storage under blobs/x"):
        payload.decode_result(reference)
    call = payload.spill(payload.encode_call(("b" * PAYLOAD_BYTES_MAX,)), put)
    assert payload.decode_call(call, get=lambda ref: store[ref.key])[0] == ["b" * PAYLOAD_BYTES_MAX]


def test_a_users_dict_is_never_taken_for_a_reference() -> None:
    data = payload.encode_result({"$blob": {"key": "k", "size_bytes": 1, "sha256": "00"}})
    assert payload.blob_of(data) is None
    assert round_trip({"$blob": 1}) == {"$blob": 1}
