"""Words of `antfarm submit` become calls, as many as are asked for, made while they are read."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from antfarm.cli.__main__ import _parser
from antfarm.cli.submit import _assignment, _calls
from antfarm.errors import InvalidArgument


def calls(*words: str) -> Any:
    return _calls(_parser().parse_args(["submit", "app.task", *words]))


def test_a_range_beyond_memory_is_made_while_it_is_read() -> None:
    made = calls("--range", "x=1..90000000")
    assert made.count == 90_000_000
    assert list(itertools.islice(made, 2)) == [((), {"x": 1}), ((), {"x": 2})]
    pairs = calls("--range", "x=1..2", "--range", "y=8..9")
    assert [call[1] for call in pairs] == [{"x": 1, "y": 8}, {"x": 1, "y": 9}, {"x": 2, "y": 8}, {"x": 2, "y": 9}]
    assert [list(call[1]) for call in pairs] == 4 * [["x", "y"]]


@pytest.mark.parametrize(
    ("ranges", "said"),
    [
        (["x=1..99999999999"], "99,999,999,999 values; a job that is submitted here has at most 100,000,000 tasks"),
        (["x=1..5000", "y=1..50000"], "--range asks for 250,000,000 tasks"),
        (["x=1..2", "x=3..4"], "--range x=...: the same name has two ranges"),
        (["x=2..1"], "its end lies before its beginning"),
        (["x=2021-01-02..2021-01-01"], "its end lies before its beginning"),
        (["x=1..2021-01-01"], "neither days"),
    ],
)
def test_a_range_that_cannot_be_meant_is_refused_in_one_line(ranges: list[str], said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        calls(*(word for text in ranges for word in ("--range", text)))


def test_a_name_with_a_range_has_no_other_value() -> None:
    with pytest.raises(InvalidArgument, match="--arg x=3: this name has a --range; give one of the two"):
        calls("--range", "x=1..2", "--arg", "y=1", "--arg", "x=3")
    assert calls("--range", "x=1..2", "--arg", "y=1").count == 2


@pytest.mark.parametrize(("flag", "text"), [("--each-line", ""), ("--from-json", "[]"), ("--from-json", "\n")])
def test_a_source_without_calls_is_refused(tmp_path: Path, flag: str, text: str) -> None:
    path = tmp_path / "calls"
    path.write_text(text)
    with pytest.raises(InvalidArgument, match=f"{path} is empty: there is nothing to submit"):
        calls(flag, str(path))
    with pytest.raises(InvalidArgument, match="the name of the file is empty"):
        list(calls(flag, ""))
    path.write_text("[1]\n[2]\n")
    assert len(list(calls(flag, str(path)))) == 2


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ('{"x":1}', [((), {"x": 1})]),
        ('\n {"x":1}\n\n', [((), {"x": 1})]),
        ('"a"\n', [(("a",), {})]),
        ("[1,2]\n", [((1,), {}), ((2,), {})]),
        ("[[1,2]]\n", [((1, 2), {})]),
        ("[1,2]\r\n[3,4]\r\n", [((1, 2), {}), ((3, 4), {})]),
        (
            '["a\u2028b"]\n["c\x85d"]\n["e\x0cf"]\n'.replace("\x0c", "\\f"),
            [(("a\u2028b",), {}), (("c\x85d",), {}), (("e\x0cf",), {})],
        ),
    ],
)
def test_json_is_a_list_of_calls_or_a_call_a_line(tmp_path: Path, text: str, made: Any) -> None:
    path = tmp_path / "calls"
    path.write_bytes(text.encode())
    assert list(calls("--from-json", str(path))) == made


def test_an_object_over_several_lines_is_no_list(tmp_path: Path) -> None:
    path = tmp_path / "calls"
    path.write_text('{\n"x": 1}\n')
    with pytest.raises(InvalidArgument, match="not a JSON list"):
        calls("--from-json", str(path))


def test_values_nested_beyond_reason_are_refused_by_their_place(tmp_path: Path) -> None:
    path, deep = tmp_path / "calls", 100_000 * "["
    with pytest.raises(InvalidArgument, match=r"^--arg x: the value is nested too deeply$"):
        _assignment(f"x={deep}")
    for text, where in ((deep, ""), (f"[1]\n{deep}", ": line 2")):
        path.write_text(text)
        with pytest.raises(InvalidArgument, match=f"{path}{where}: the value is nested too deeply"):
            list(calls("--from-json", str(path)))
