"""Failpoints: nothing without the variable, exactly the named pass with it, every place known, misspelt ones refused at start."""

from __future__ import annotations

import errno
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from antfarm import failpoint
from antfarm.errors import InvalidArgument

ROOT = Path(failpoint.__file__).parents[1]


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    failpoint.arm({})


def test_every_place_in_the_code_is_listed_and_every_listed_one_is_in_the_code() -> None:
    found: list[str] = []
    for directory in ("antfarm", "services"):
        for path in (ROOT / directory).rglob("*.py"):
            if path.name != "failpoint.py":
                found += re.findall(r"\bfailpoint\(\"([^\"]+)\"\)", path.read_text())
    assert sorted(found) == sorted(failpoint.POINTS)


def test_nothing_happens_at_places_that_nobody_armed() -> None:
    failpoint.arm({})
    failpoint.failpoint("journal.before_commit")
    failpoint.arm({failpoint.VARIABLE: "journal.after_commit=error"})
    failpoint.failpoint("journal.before_commit")


def test_the_named_pass_alone_fails() -> None:
    failpoint.arm({failpoint.VARIABLE: "journal.after_commit=error@3,link.after_send=error"})
    failpoint.failpoint("journal.after_commit")
    failpoint.failpoint("journal.after_commit")
    with pytest.raises(OSError, match=r"failpoint journal\.after_commit") as caught:
        failpoint.failpoint("journal.after_commit")
    assert caught.value.errno == errno.EIO
    failpoint.failpoint("journal.after_commit")
    with pytest.raises(OSError, match=r"failpoint link\.after_send"):
        failpoint.failpoint("link.after_send")


def test_a_pause_holds_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(failpoint.time, "sleep", slept.append)
    failpoint.arm({failpoint.VARIABLE: "storage.before_fsync=pause:2.5"})
    failpoint.failpoint("storage.before_fsync")
    assert slept == [2.5]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("journal.befor_commit=kill", "no failpoint 'journal.befor_commit'"),
        ("journal.before_commit", "the action is kill, pause:SECONDS or error"),
        ("journal.before_commit=explode", "the action is"),
        ("journal.before_commit=pause:long", "after pause: come seconds"),
        ("journal.before_commit=kill@0", "after @ comes a number from 1"),
        ("journal.before_commit=kill@x", "after @ comes a number from 1"),
    ],
)
def test_what_is_misspelt_is_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        failpoint.arm({failpoint.VARIABLE: text})


@pytest.mark.slow
def test_a_kill_ends_the_process_at_that_place() -> None:
    code = (
        "import os; from antfarm.failpoint import arm, failpoint; arm(os.environ)\n"
        "failpoint('journal.before_commit'); print('once', flush=True); failpoint('journal.before_commit'); print('twice')"
    )
    environment = {"PYTHONPATH": str(ROOT), failpoint.VARIABLE: "journal.before_commit=kill@2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "once\n")
