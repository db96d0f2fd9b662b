"""Another orchestrator answers: nothing of what is here may be reported to it, though its tasks may have the same names."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from test_stop_running import GRACE_NS, KILL, TERM, Dummies, driver_of_dummies

from antfarm.errors import Unavailable
from antfarm.link import Link, OutcomeParts, WorkerIdentity
from antfarm.model import SECOND_NS
from antfarm.v1 import common_pb2, work_queue_pb2
from services.worker.child.protocol import OUT_DONE, OUT_READY, may_start
from services.worker.runtime.driver import Driver


class Watched(Link):
    """A link that dials nobody. Its reports are looked at as they are made."""

    def __init__(self, driver: Driver) -> None:
        identity = WorkerIdentity(worker_id="w", slots=1, window=1, task_types=("t",))
        super().__init__(
            addresses=["nobody:1"],
            identity=identity,
            handler=driver,
            queue="farm A",
            on_other_queue=driver.on_other_queue,
        )
        self.reported: list[int] = []

    def report(self, job_id: str, epoch: int, parts: OutcomeParts) -> None:
        before = self.unacked_count
        super().report(job_id, epoch, parts)
        self.reported += [parts["index"]] * (self.unacked_count - before)

    def give(self, common: bytes, *indices: int) -> None:
        """As a frame of the orchestrator does."""
        template = common_pb2.TaskTemplate(type="t", common_payload=common)
        group = work_queue_pb2.TaskGroup(job_id="nightly", epoch=1, template=template)
        for index in indices:
            group.assignments.add(index=index, attempt=1, payload=b"[]")
        assert self._take(group)
        self._handler.on_tasks([group])


class Moved:
    """A worker that holds a report and runs one of two tasks of farm A, while farm B answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = SECOND_NS
        self.driver = driver_of_dummies(monkeypatch, lambda: self.now_ns)
        self.link = Watched(self.driver)

    @property
    def crew(self) -> Dummies:
        return self.driver._crew  # type: ignore[return-value]

    async def run(self) -> Moved:
        starting = asyncio.create_task(self.driver.start())
        await asyncio.sleep(0)
        self.crew.said(1, [[OUT_READY, [["t", "1", False]]]])
        await starting
        self.driver.use(self.link, None)  # type: ignore[arg-type]
        self.link.give(b"A", 0, 1, 2)
        may_start(self.crew.dummies[1].page, 1)
        self.crew.said(1, [[OUT_DONE, 1, 1_000, b"0"]])
        may_start(self.crew.dummies[1].page, 2)
        assert (self.link.reported, self.link.held_count) == ([0], 3)
        return self

    async def passes(self, span_ns: int) -> None:
        self.now_ns += span_ns
        async with asyncio.timeout(10):
            for _ in range(2):
                self.crew.turned.clear()
                await self.crew.turned.wait()

    async def close(self) -> None:
        for number in list(self.crew.dummies):
            self.driver._board.close_lane(self.driver._board.lanes[number])
            self.crew.remove(number)
        await self.driver.close()


@pytest.fixture
async def moved(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = await Moved(monkeypatch).run()
    yield made
    await made.close()


async def test_all_is_given_up_and_the_other_queue_is_taken_when_the_last_attempt_has_ended(
    moved: Moved, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "antfarm.worker")
    child = moved.crew.dummies[1]
    moved.driver.on_other_queue("farm B")
    assert [record.message for record in caplog.records] == [
        "another orchestrator answers than before: 3 tasks of that one's queue are given up"
    ]
    assert (moved.link.held_count, moved.link.unacked_count, child.signals) == (0, 0, [TERM])
    with pytest.raises(Unavailable):
        moved.driver.on_welcome(work_queue_pb2.Welcome(epoch=1))
    moved.driver.on_other_queue("farm B")  # its next Welcome
    await moved.passes(GRACE_NS)
    assert (child.signals, moved.link.queue) == ([TERM, KILL], "farm A")
    child.started_last = 2
    moved.crew.exits(1, -9)
    assert moved.link.queue == "farm B"
    assert len(caplog.records) == 1
    assert moved.link.reported == [0]
    moved.driver.on_welcome(work_queue_pb2.Welcome(epoch=1))


async def test_a_result_that_comes_late_is_not_that_of_the_other_queues_task_of_that_name(moved: Moved) -> None:
    moved.driver.on_other_queue("farm B")
    moved.crew.said(1, [[OUT_DONE, 2, 1_000, b"of farm A"]])
    assert (moved.link.queue, moved.link.reported) == ("farm B", [0])
    moved.link.give(b"B", 1)
    [waiting] = moved.driver._board.waiting_plain
    assert (waiting.token, waiting.group.common_payload) == (("nightly", 1, 1, 1), b"B"), "its job is another one too"
    assert moved.link.reported == [0]


async def test_a_worker_that_has_nothing_takes_the_other_queue_at_once(moved: Moved) -> None:
    moved.crew.said(1, [[OUT_DONE, 2, 1_000, b"1"]])
    may_start(moved.crew.dummies[1].page, 3)
    moved.crew.said(1, [[OUT_DONE, 3, 1_000, b"2"]])
    moved.driver.on_other_queue("farm B")
    assert (moved.link.queue, moved.link.unacked_count, moved.crew.dummies[1].signals) == ("farm B", 0, [])
