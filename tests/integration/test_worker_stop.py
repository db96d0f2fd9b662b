"""A driver with a real child: a signal meant for an attempt that has ended does not hit the one that runs."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fake_orchestrator import until

from antfarm.link import OutcomeParts
from antfarm.model import SECOND_NS, Ending
from antfarm.v1 import common_pb2, work_queue_pb2
from services.worker.child.protocol import CURRENT
from services.worker.executors.process import ChildSpec, child_environment
from services.worker.runtime.driver import Driver, Manner

TASKS = Path(__file__).with_name("worker_tasks.py")


class Upward:
    """The link: what was reported, by index."""

    self_lease_over = False

    def __init__(self) -> None:
        self.outcomes: dict[int, list[OutcomeParts]] = {}

    def report(self, job_id: str, epoch: int, parts: OutcomeParts) -> None:
        self.outcomes.setdefault(parts["index"], []).append(parts)

    def running(self, word: object) -> None:
        """Nobody listens."""

    def set_window(self, window: int) -> None:
        """Nobody gives more."""

    def endings(self) -> dict[int, list[int]]:
        return {index: [parts["ending"] for parts in outcomes] for index, outcomes in self.outcomes.items()}


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[Driver]:
    spec = ChildSpec(apps=(str(TASKS),), installed_apps=False, scratch=tmp_path, env=child_environment(os.environ))
    manner = Manner(slots=1, capacity={"cpu": 1.0}, grace_ns=SECOND_NS // 5)
    made = Driver(manner, spec, on_drain=lambda limit_s: None)
    await made.start()
    yield made
    await made.close()


def give(driver: Driver, first: int, calls: list[list[object]]) -> None:
    group = work_queue_pb2.TaskGroup(job_id="job", epoch=1, template=common_pb2.TaskTemplate(type="note"))
    for index, call in enumerate(calls, first):
        group.assignments.add(index=index, attempt=1, payload=json.dumps(call).encode())
    driver.on_tasks([group])


@pytest.mark.slow
async def test_a_revoke_of_what_has_just_ended_leaves_the_running_task_alone(driver: Driver, tmp_path: Path) -> None:
    """The loop is held while the first ends and the second begins, so that the first's record lies unread in the pipe."""
    link, path = Upward(), tmp_path / "notes"
    driver.use(link, None)  # type: ignore[arg-type]
    give(driver, 0, [[str(path), "0"]])  # the type is known to be short from now on
    await until(lambda: 0 in link.outcomes)
    page = driver._crew._children[1].page
    give(driver, 1, [[str(path), "1", 0.05], [str(path), "2", 1.0], [str(path), "3"]])
    deadline = time.monotonic() + 10
    while page[CURRENT] < 3:
        assert time.monotonic() < deadline
        time.sleep(0.001)  # noqa: ASYNC251 - the agent must not read meanwhile
    driver.on_revoke([("job", 1, 1, 1)], "cancelled")
    await until(lambda: len(link.outcomes) == 4)
    await asyncio.sleep(0)
    assert link.endings() == {
        0: [Ending.SUCCEEDED],
        1: [Ending.REVOKED],
        2: [Ending.SUCCEEDED],
        3: [Ending.SUCCEEDED],
    }
    assert path.read_text().split() == ["0", "1", "2", "3"]
    assert list(driver._board.lanes) == [1], "the child lives"
