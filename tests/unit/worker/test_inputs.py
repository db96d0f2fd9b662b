"""Inputs that go by file: a file is there while attempts of its group are, and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from test_stop_running import Upward

from antfarm.errors import NotFound, Unavailable
from antfarm.link.estimate import Estimate
from antfarm.link.window import WindowSizer
from antfarm.model import DependencyKind, Ending, FailureClass, TaskState
from antfarm.v1 import common_pb2, job_pb2, work_queue_pb2
from services.worker.core.attempt import Attempt, Group
from services.worker.runtime import inputs as module
from services.worker.runtime.inputs import INLINE_BYTES_MAX, InputReader
from services.worker.runtime.intake import Intake
from services.worker.runtime.reporting import Reporter

ALL = common_pb2.Dependency(job_id="first", kind=int(DependencyKind.ALL))  # type: ignore[arg-type]
PATIENCE_S = 10.0


class Call:
    """All outcomes of a job, too large for a pipe; then it breaks off, or ends when it may."""

    def __init__(self, error: Exception | None, may_end: asyncio.Event) -> None:
        self.error = error
        self.may_end = may_end
        self.read_by_now = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[job_pb2.StreamResultsResponse]:
        result = b"x" * (INLINE_BYTES_MAX + 1)
        row = common_pb2.TaskResult(index=0, state=int(TaskState.SUCCEEDED), result=result)  # type: ignore[arg-type]
        yield job_pb2.StreamResultsResponse(results=[row])
        self.read_by_now.set()
        if self.error is not None:
            raise self.error
        await self.may_end.wait()

    def cancel(self) -> None:
        """Nobody is at the other end."""


class Reading(InputReader):
    """A reader of calls that end as the test says, the last of them well."""

    def __init__(self, directory: Path, *errors: Exception) -> None:
        super().__init__(directory, lambda: None)
        self.may_end = asyncio.Event()
        self.calls = [Call(error, self.may_end) for error in (*errors, None)]
        self._next = iter(self.calls)

    def _stream(self, job_id: str, indices: Any = ()) -> Any:
        return next(self._next)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0)


def group_of(live: int) -> Group:
    group = Group(job_id="second", epoch=1, type="t", is_async=False, estimate=Estimate(), cost={}, input_count=1)
    group.live = live
    return group


def files(directory: Path) -> list[object]:
    return [str(path) for path in directory.iterdir()]


async def fill(reader: InputReader, group: Group) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await reader.fill(group, [ALL], [Attempt(group, 0, 1, b"", 0)])


async def test_a_read_that_the_weather_broke_off_leaves_no_file(tmp_path: Path) -> None:
    reader = Reading(tmp_path, Unavailable("gone"), Unavailable("gone again"))
    reader.may_end.set()
    group = group_of(1)
    await fill(reader, group)
    assert files(tmp_path) == [group.shared_inputs[0]]
    reader.forget(group)
    assert files(tmp_path) == []


async def test_a_read_that_fails_for_good_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await fill(Reading(tmp_path, NotFound("purged while it was read")), group_of(1))
    assert files(tmp_path) == []


async def test_a_read_that_is_cancelled_leaves_no_file(tmp_path: Path) -> None:
    reader = Reading(tmp_path)
    reading = asyncio.create_task(reader._whole_job("first"))
    async with asyncio.timeout(PATIENCE_S):
        await reader.calls[0].read_by_now.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert files(tmp_path) == []


async def test_a_file_that_comes_after_the_last_attempt_has_gone_is_removed(tmp_path: Path) -> None:
    """Revoked or released while it was read, by two frames of the same group."""
    reader = Reading(tmp_path)
    group = group_of(2)
    filling = [asyncio.create_task(fill(reader, group)) for _ in range(2)]
    async with asyncio.timeout(PATIENCE_S):
        await reader.calls[0].read_by_now.wait()
    group.live = 0
    reader.forget(group)
    reader.may_end.set()
    await asyncio.gather(*filling)
    assert files(tmp_path) == []
    assert group.shared_inputs == {}


async def test_a_file_stays_while_one_attempt_is_left(tmp_path: Path) -> None:
    reader = Reading(tmp_path)
    group = group_of(2)
    filling = [asyncio.create_task(fill(reader, group)) for _ in range(2)]
    async with asyncio.timeout(PATIENCE_S):
        await reader.calls[0].read_by_now.wait()
    group.live = 1
    reader.may_end.set()
    await asyncio.gather(*filling)
    assert files(tmp_path) == [group.shared_inputs[0]]


async def test_an_input_that_cannot_be_kept_here_fails_its_attempts_as_the_nodes_trouble(tmp_path: Path) -> None:
    """The disk is full, no descriptor is left, or the directory has gone: elsewhere they may run."""
    changed = asyncio.Event()
    reporter = Reporter(lambda group: intake.forget(group))
    reporter.link = link = Upward()  # type: ignore[assignment]
    intake = Intake(
        types={"t": False},
        inputs=Reading(tmp_path / "gone"),
        reporter=reporter,
        sizer=WindowSizer(),
        on_ready=lambda attempts, is_async: None,
        on_change=changed.set,
    )
    group = work_queue_pb2.TaskGroup(job_id="second", epoch=1, inputs=[ALL])
    group.template.type = "t"
    for index in (0, 1):
        group.assignments.add(index=index, attempt=1, payload=b"[]")
    intake.take([group])
    async with asyncio.timeout(PATIENCE_S):
        await changed.wait()
    assert intake.idle
    assert [link.ending(index) for index in (0, 1)] == [Ending.FAILED] * 2
    for failure in [link.outcomes[index]["failure"] for index in (0, 1)]:
        assert (failure.failure_class, failure.kind) == (FailureClass.INFRA, "input")
        assert failure.message.startswith("an input cannot be read: [Errno 2] No such file or directory")
