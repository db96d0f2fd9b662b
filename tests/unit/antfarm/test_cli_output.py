"""Tables are for people, JSON for programs, and neither hands a terminal what a stranger wrote."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antfarm.cli.output import Output
from antfarm.cli.progress import ProgressLine, summary
from antfarm.model import JobId, JobSpec, JobState, JobStatus, TaskState, TaskTemplate
from antfarm.text import escape, lines


@given(st.text())
def test_nothing_that_a_terminal_obeys_is_shown(text: str) -> None:
    shown = escape(text)
    assert shown.isprintable()
    shown.encode()
    assert "\x1b" not in lines(text)


def test_hostile_text_is_still_readable() -> None:
    assert escape("\x1b[31mred\x07 é\u202e") == "\\x1b[31mred\\x07 é\\u202e"
    assert lines("a\n\tb\r") == "a\n\tb\\r"


ROWS = [{"job": "a", "tasks": 1200, "name": "x\n"}, {"job": "bcd", "tasks": 5, "name": ""}]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("table", "JOB  TASKS  NAME\na    1,200  x\\n\nbcd      5\n"),
        ("quiet", "a\nbcd\n"),
        ("jsonl", "".join(json.dumps(row) + "\n" for row in ROWS)),
        ("json", json.dumps(ROWS, indent=2) + "\n"),
    ],
)
def test_rows_are_shown_as_asked(form: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Output(form).rows(ROWS)
    assert capsys.readouterr().out == text


def test_one_thing_is_shown_by_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"job": "a", "labels": {"k": "v"}, "empty": "", "text": "one\ntwo\x1b"}
    Output().row(row)
    assert capsys.readouterr().out == "job     a\nlabels  k=v\ntext    one\n        two\\x1b\n"


def test_an_empty_table_says_so_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    Output().rows([], empty="no jobs yet")
    assert capsys.readouterr() == ("", "no jobs yet\n")


def status(state: JobState = JobState.RUNNING, **counts: int) -> JobStatus:
    found = {TaskState[name]: count for name, count in counts.items()}
    spec = JobSpec(template=TaskTemplate(type="t"))
    return JobStatus(
        job_id=JobId("j"), spec=spec, state=state, task_count=sum(counts.values()), counts=found, duration_s=2.0
    )


def test_counts_are_told_in_words() -> None:
    told = summary(status(SUCCEEDED=1000, FAILED=2, DEAD_LETTER=1, ACTIVE=4, WAITING=3, QUEUED=90))
    assert told == "1,003/1,100 done, 3 failed, 4 running, 3 waiting"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_line_that_is_taken_away_again() -> None:
    stream = Terminal()
    line = ProgressLine(stream)
    line.update(status(SUCCEEDED=1, QUEUED=1))
    line.close(status(JobState.SUCCEEDED, SUCCEEDED=2))
    assert stream.getvalue() == "\r\x1b[K1/2 done\r\x1b[Ksucceeded: 2/2 done in 2s\n"


def test_a_file_gets_a_line_now_and_then() -> None:
    stream = io.StringIO()
    line = ProgressLine(stream)
    for _ in range(100):
        line.update(status(SUCCEEDED=1, QUEUED=1))
    assert stream.getvalue() == ""
    line.close(status(JobState.FAILED, SUCCEEDED=1, FAILED=1))
    assert stream.getvalue() == "failed: 2/2 done, 1 failed in 2s\n"
