"""Words of `antfarm submit` become calls, as many as are asked for, made while they are read."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from antfarm.cli.__main__ import _parser
from antfarm.cli.submit import _calls
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
