"""Faults are read strictly, befall requests in their order, and the realistic mix has every kind each season."""

import json
from datetime import date, timedelta
from pathlib import Path

import pytest

from clouds.errors import CloudsError
from clouds.standin import Fault, FaultPlan, Kind, parse_day_faults, parse_fault, read_faults
from clouds.standin.fault import FLAWS, mishap

DAY = date(2021, 1, 5)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("http503*2", Fault(kind=Kind.DOWN, times=2)),
        ("http429*1:retry_after=7", Fault(kind=Kind.THROTTLED, times=1, option=7.0)),
        ("drip:seconds=0.5", Fault(kind=Kind.DRIP, option=0.5)),
        ("otherday:days=3", Fault(kind=Kind.OTHER_DAY, option=3.0)),
        ("gap", Fault(kind=Kind.GAP)),
        *((kind.value, Fault(kind=kind)) for kind in Kind),
    ],
)
def test_faults_are_read(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http418", "unknown; there are gap, night"),
        ("", "unknown"),
        ("http503*0", "1 or more"),
        ("http503*", "1 or more"),
        ("http503*x", "1 or more"),
        ("gap*2", "takes no"),
        ("http404:retry_after=1", "takes no option"),
        ("drip:retry_after=1", "takes seconds="),
        ("drip:seconds=long", "not a number"),
        ("drip:seconds=nan", "not within"),
        ("drip:seconds=-1", "not within"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(text: str, words: str) -> None:
    with pytest.raises(CloudsError, match=words) as caught:
        parse_fault(text)
    assert "\n" not in str(caught.value)


def test_faults_of_a_day_are_read() -> None:
    both = (Fault(kind=Kind.DOWN, times=2), Fault(kind=Kind.GAP))
    assert parse_day_faults("2021-01-05=http503*2+gap") == (DAY, both)
    assert parse_day_faults("*=drop*1") == (None, (Fault(kind=Kind.DROP, times=1),))
    with pytest.raises(CloudsError, match="not YYYY-MM-DD"):
        parse_day_faults("5.1.2021=gap")
    with pytest.raises(CloudsError, match="write DAY=FAULT"):
        parse_day_faults("gap")


def test_a_file_of_faults(tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    path.write_text(json.dumps({"2021-01-05": ["http503*2", "gap"], "*": "black"}))
    assert read_faults(path) == {
        DAY: (Fault(kind=Kind.DOWN, times=2), Fault(kind=Kind.GAP)),
        None: (Fault(kind=Kind.BLACK),),
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "write an object"),
        ('{"2021-01-05": 3}', "neither a fault nor a list"),
        ('{"2021-01-05": [3]}', "neither a fault nor a list"),
        ('{"tomorrow": "gap"}', "not YYYY-MM-DD"),
        ('{"2021-01-05": "storm"}', "unknown"),
    ],
)
def test_a_file_that_cannot_be_read_is_said_in_one_line(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "faults.json"
    path.write_text(content)
    with pytest.raises(CloudsError, match=words):
        read_faults(path)


def test_a_missing_file_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CloudsError, match="No such file"):
        read_faults(tmp_path / "none.json")


def test_mishaps_befall_requests_in_their_order_then_all_is_well() -> None:
    faults = tuple(parse_fault(text) for text in ("gap", "http503*2", "cut*1", "black"))
    kinds = [found.kind if (found := mishap(faults, earlier)) else None for earlier in range(5)]
    assert kinds == [Kind.DOWN, Kind.DOWN, Kind.CUT, None, None]


def test_a_mishap_without_count_never_ends() -> None:
    faults = (parse_fault("drop*1"), parse_fault("xml200"))
    kinds = [found.kind if (found := mishap(faults, earlier)) else None for earlier in (0, 1, 2, 999)]
    assert kinds == [Kind.DROP, Kind.XML, Kind.XML, Kind.XML]


def test_a_plan_looks_up_the_day_then_every_day() -> None:
    plan = FaultPlan(by_day={DAY: (parse_fault("gap"),), None: (parse_fault("drop*1"),)})
    assert [fault.kind for fault in plan.for_day(DAY)] == [Kind.GAP]
    assert [fault.kind for fault in plan.for_day(date(2021, 1, 6))] == [Kind.DROP]
    assert FaultPlan().for_day(DAY) == ()


def test_the_realistic_mix_depends_on_the_seed_and_on_nothing_else() -> None:
    days = [date(2021, 1, 1) + timedelta(days=number) for number in range(90)]
    one, same, other = (FaultPlan(realistic_seed=seed) for seed in (1, 1, 2))
    assert [one.for_day(day) for day in days] == [same.for_day(day) for day in reversed(days)][::-1]
    assert [one.for_day(day) for day in days] != [other.for_day(day) for day in days]


@pytest.mark.parametrize("seed", range(5))
def test_any_two_realistic_months_have_something_of_everything(seed: int) -> None:
    """Two months bring each kind of bad day, one day that never comes, and mostly good days."""
    plan = FaultPlan(realistic_seed=seed)
    days = [date(2021, 1, 1) + timedelta(days=number) for number in range(59)]
    found = [fault for day in days for fault in plan.for_day(day)]
    kinds = [fault.kind for fault in found]
    wanted = {"gap", "http503", "http429", "http502", "cut", "cutmatch", "drop", "black", "redirect308", "gzip"}
    assert wanted | {"xml200", "otherday", "drip"} == set(kinds)
    assert kinds.count(Kind.XML) == 1
    assert sum(1 for day in days if not plan.for_day(day)) > 20
    weather = {"http503", "http429", "http502", "cut", "cutmatch", "drop"}
    assert all(fault.times is not None and fault.times <= 2 for fault in found if fault.kind in weather)


def test_an_entry_of_its_own_replaces_the_realistic_mix() -> None:
    days = [date(2021, 1, 1) + timedelta(days=number) for number in range(28)]
    plan = FaultPlan(by_day=dict.fromkeys(days, ()), realistic_seed=1)
    assert not any(plan.for_day(day) for day in days)


def test_flaws_are_the_ones_a_picture_shows() -> None:
    assert set(FLAWS) == {Kind.GAP, Kind.NIGHT, Kind.BLACK, Kind.OTHER_DAY}
