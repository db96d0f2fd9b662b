"""A result whose own methods raise while it is encoded ends its task alone, and the same way in both kinds of children."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from test_undecodable import Said

from antfarm.errors import InvalidArgument
from antfarm.model import ERROR_TEXT_BYTES_MAX, FailureClass
from antfarm.task import Task
from services.worker.child.loop import LoopChild, LoopRunner
from services.worker.child.plain import PlainChild
from services.worker.child.protocol import OUT_DONE, OUT_FAILED, Setup, Template
from services.worker.child.runner import AttemptContext, Job, Runner

APP, PERMANENT = FailureClass.APP, FailureClass.PERMANENT
ERRORS = {
    error.__class__.__name__: error
    for error in (InvalidArgument("no"), RuntimeError("no"), SystemExit("no"), asyncio.CancelledError("no"))
}
ERRORS["long"] = InvalidArgument("no" * 10**6)
TEMPLATE = Template(job_id="job", epoch=1, type="t")


@dataclass
class Hostile:
    """Of two fields, one of which cannot be looked at."""

    error: str
    missing: int = field(init=False)

    def __getattr__(self, name: str) -> object:
        raise ERRORS[self.error]


def result(error: str, number: int) -> object:
    """The first one is bad."""
    return Hostile(error) if number == 1 else number


async def in_plain_child(said: Said, setup: Setup, error: str) -> None:
    child = PlainChild()
    child.runner = Runner(said, setup, None, {})  # type: ignore[arg-type]
    job = Job(TEMPLATE, Task(lambda number: result(error, number), "t"))
    child._queue.extend((job, [seq, 0, 1, b"[%d]" % seq, None]) for seq in (1, 2))
    child._run_queue()


async def in_loop_child(said: Said, setup: Setup, error: str) -> None:
    async def function(number: int) -> object:
        return result(error, number)

    child = LoopChild()
    child.runner = LoopRunner(said, setup, None, {})  # type: ignore[arg-type]
    job = Job(TEMPLATE, Task(function, "t"))
    for seq in (1, 2):
        await child._attempt(job, AttemptContext(child.runner, job, seq, 0, 1), seq, b"[%d]" % seq, None)


@pytest.mark.parametrize("child", [in_plain_child, in_loop_child])
@pytest.mark.parametrize(
    ("error", "failure_class", "kind"),
    [
        ("InvalidArgument", PERMANENT, "unencodable result"),
        ("RuntimeError", APP, "RuntimeError"),
        ("SystemExit", APP, "SystemExit"),
        ("CancelledError", APP, "asyncio.exceptions.CancelledError"),
    ],
)
async def test_both_kinds_of_children_report_it_and_run_on(
    tmp_path: Path, child: Any, error: str, failure_class: FailureClass, kind: str
) -> None:
    said = Said()
    setup = Setup(apps=[], installed_apps=False, allow_pickle=False, scratch=str(tmp_path), tls=[])
    await child(said, setup, error)
    [failed, done] = said.records
    assert (failed[:2], failed[3:6]) == ((OUT_FAILED, 1), (failure_class.value, kind, "no"))
    assert (done[0], done[1], done[3]) == (OUT_DONE, 2, b"2")


@pytest.mark.parametrize("child", [in_plain_child, in_loop_child])
async def test_what_encoding_says_is_bounded(tmp_path: Path, child: Any) -> None:
    said = Said()
    setup = Setup(apps=[], installed_apps=False, allow_pickle=False, scratch=str(tmp_path), tls=[])
    await child(said, setup, "long")
    assert said.records[0][3:] == (PERMANENT.value, "unencodable result", ("no" * 10**6)[:ERROR_TEXT_BYTES_MAX], "")
