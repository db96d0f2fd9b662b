"""Coroutines in their child: each that was fed is answered with one record, whenever it is asked to stop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from antfarm.task import Task
from services.worker.child.loop import LoopChild, LoopRunner
from services.worker.child.protocol import CURRENT, IN_CANCEL, IN_TASKS, OUT_DONE, OUT_FAILED, Setup, Template
from services.worker.child.runner import Job

PATIENCE_S = 10.0
CANCELLED = "asyncio.exceptions.CancelledError"


class Said:
    """A channel into a list."""

    def __init__(self) -> None:
        self.page = [0] * 8
        self.records: list[Any] = []
        self.send = self.records.append

    def endings(self) -> list[tuple[int, int, Any]]:
        """Kind of record, seq, and the kind of failure or the result."""
        return [(record[0], record[1], record[4 if record[0] == OUT_FAILED else 3]) for record in self.records]


def child_of(function: Callable[..., Coroutine[Any, Any, object]], scratch: Path) -> tuple[LoopChild, Said]:
    """A child with one job, in slot 0."""
    said = Said()
    child = LoopChild()
    setup = Setup(apps=[], installed_apps=False, allow_pickle=False, scratch=str(scratch), tls=[])
    child.runner = LoopRunner(said, setup, None, {})  # type: ignore[arg-type]
    child.runner.jobs[0] = Job(Template(job_id="job", epoch=1, type="t"), Task(function, "t"))
    return child, said


def feed(child: LoopChild, *seqs: int) -> None:
    child._handle([IN_TASKS, 0, [[seq, seq, 1, b"[%d]" % seq, None] for seq in seqs]])


async def ended(*tasks: asyncio.Task[None]) -> None:
    """The coroutines have ended, and what is told of their ends has been."""
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.wait(tasks)
    await asyncio.sleep(0)


async def test_one_that_is_cancelled_before_it_has_begun_ends_and_its_neighbour_runs_on(tmp_path: Path) -> None:
    """Task and cancel lie in one read of the pipe, because a neighbour blocked the loop for a moment."""
    begun = []

    async def function(number: int) -> int:
        begun.append(number)
        await asyncio.sleep(0)
        return number

    child, said = child_of(function, tmp_path)
    feed(child, 1, 2)
    tasks = [task for task, _ in child._tasks.values()]
    child._handle([IN_CANCEL, 1])
    await ended(*tasks)
    assert sorted(said.endings()) == [(OUT_DONE, 2, b"2"), (OUT_FAILED, 1, CANCELLED)]
    assert begun == [2]
    assert child._tasks == {}


async def test_the_page_says_which_have_begun(tmp_path: Path) -> None:
    """Fed is not begun: a neighbour may block the loop, or end the process, before their turn comes."""
    seen = []

    async def function(number: int) -> None:
        seen.append((number, said.page[CURRENT]))

    child, said = child_of(function, tmp_path)
    feed(child, 1, 2, 3)
    tasks = [task for task, _ in child._tasks.values()]
    assert said.page[CURRENT] == 0
    child._handle([IN_CANCEL, 3])
    await ended(*tasks)
    assert (seen, said.page[CURRENT]) == ([(1, 1), (2, 2)], 2)


async def test_one_that_is_cancelled_while_it_runs_is_answered_once(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def function(number: int) -> None:
        begun.set()
        await asyncio.Event().wait()

    child, said = child_of(function, tmp_path)
    feed(child, 1)
    [(task, _)] = child._tasks.values()
    async with asyncio.timeout(PATIENCE_S):
        await begun.wait()
    child._handle([IN_CANCEL, 1])
    child._handle([IN_CANCEL, 1])
    await ended(task)
    assert said.endings() == [(OUT_FAILED, 1, CANCELLED)]


async def test_one_that_has_returned_is_not_cancelled_on_the_way_to_a_thread(tmp_path: Path) -> None:
    """A large result waits for a thread while all of them are in use."""
    returned, free = asyncio.Event(), threading.Event()

    async def function(number: int) -> str:
        returned.set()
        return "x" * 70_000

    child, said = child_of(function, tmp_path)
    loop = asyncio.get_running_loop()
    blockers = [loop.run_in_executor(None, free.wait) for _ in range(64)]  # more than there are threads
    try:
        feed(child, 1)
        [(task, _)] = child._tasks.values()
        async with asyncio.timeout(PATIENCE_S):
            await returned.wait()
        child._handle([IN_CANCEL, 1])
        for _ in range(3):  # what a cancel sets going goes its way
            await asyncio.sleep(0)
    finally:
        free.set()
        await asyncio.gather(*blockers)
    await ended(task)
    assert said.endings() == [(OUT_FAILED, 1, "unencodable result")], "the farm of this test has no Storage"


async def test_one_that_cancels_itself_and_returns_all_the_same_has_returned(tmp_path: Path) -> None:
    """Its large result waits for a thread, and the cancel takes effect there."""
    free = threading.Event()

    async def function(number: int) -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return "x" * 70_000

    child, said = child_of(function, tmp_path)
    told = asyncio.Event()
    loop = asyncio.get_running_loop()

    def send(record: Any) -> None:
        said.records.append(record)
        loop.call_soon_threadsafe(told.set)

    said.send = send  # type: ignore[assignment]
    blockers = [loop.run_in_executor(None, free.wait) for _ in range(64)]  # more than there are threads
    try:
        feed(child, 1)
        [(task, _)] = child._tasks.values()
        await ended(task)
    finally:
        free.set()
        await asyncio.gather(*blockers)
    async with asyncio.timeout(PATIENCE_S):
        await told.wait()
    assert said.endings() == [(OUT_FAILED, 1, "unencodable result")], "the farm of this test has no Storage"
