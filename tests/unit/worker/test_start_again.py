"""Children that cannot be started: no work is asked for until one of their kind can, whoever lives beside them."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from test_stop_running import KILL, Dummy, Upward

from antfarm.model import SECOND_NS, Ending
from antfarm.v1 import common_pb2, work_queue_pb2
from services.worker.child.protocol import OUT_DONE, OUT_READY
from services.worker.executors import crew as crew_module
from services.worker.executors.process import ChildSpec
from services.worker.runtime import driver as module
from services.worker.runtime import intake
from services.worker.runtime.driver import Driver, Manner

PATIENCE_S = 10.0
TYPES = [["plain", "1", False], ["aio", "1", True]]


class NoWarden:
    def close(self) -> None:
        """There was none."""


class Asking(Upward):
    """The link: for how much work it was asked last."""

    def __init__(self) -> None:
        super().__init__()
        self.window = 0
        self.windows: asyncio.Queue[int] = asyncio.Queue()

    def set_window(self, window: int) -> None:
        if window != self.window:
            self.window = window
            self.windows.put_nowait(window)

    async def asked_for(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            return await self.windows.get()


class Started(Dummy):
    """A child of which there is nothing but what the test says."""

    def __init__(self, number: int, mode: str, callbacks: dict[str, Any]) -> None:
        super().__init__()
        self.number, self.mode, self._callbacks = number, mode, callbacks

    def says(self, *records: list[Any]) -> None:
        self._callbacks["on_records"](self.number, list(records))

    def is_ready(self, types: list[list[Any]] = TYPES) -> None:
        self.says([OUT_READY, types])

    def ends(self, *seqs: int) -> None:
        self.says(*([OUT_DONE, seq, 1_000, b"1"] for seq in seqs))

    def dies(self, code: int) -> None:
        self._callbacks["on_exit"](self.number, code)


class Farm:
    """A driver whose children are started, or not, as the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = SECOND_NS
        self.refuses = False
        self.started: asyncio.Queue[Started] = asyncio.Queue()
        monkeypatch.setattr(crew_module, "ChildProcess", self._make)
        monkeypatch.setattr(crew_module, "Warden", NoWarden)
        for user in (module, intake):
            monkeypatch.setattr(user, "now_ns", lambda: self.now_ns)
        monkeypatch.setattr(module, "TICK_S", 0.001)
        spec = ChildSpec(apps=(), scratch=Path("/nowhere"), env={})
        self.driver = Driver(Manner(slots=2, capacity={"cpu": 2.0}), spec, on_drain=lambda limit_s: None)
        self.link = Asking()

    def _make(self, *, number: int, mode: str, spec: ChildSpec, warden: object, **callbacks: Any) -> Started:
        if self.refuses:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        made = Started(number, mode, callbacks)
        self.started.put_nowait(made)
        return made

    async def child(self) -> Started:
        """The next one that is started."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.started.get()

    async def serve(self) -> Started:
        """Its first child is ready, and it asks for work."""
        starting = asyncio.create_task(self.driver.start())
        first = await self.child()
        first.is_ready()
        await starting
        self.driver.use(self.link, None)  # type: ignore[arg-type]
        assert await self.link.asked_for() > 0
        return first

    def give(self, type_: str, *indices: int) -> None:
        group = work_queue_pb2.TaskGroup(job_id=type_, epoch=1, template=common_pb2.TaskTemplate(type=type_))
        for index in indices:
            group.assignments.add(index=index, attempt=1, payload=b"[]")
        self.driver.on_tasks([group])

    def the_pause_is_over(self) -> None:
        self.now_ns += crew_module.START_PAUSE_MAX_NS

    async def close(self) -> None:
        """Its children are gone without a word."""
        for number, lane in list(self.driver._board.lanes.items()):
            self.driver._board.close_lane(lane)
            self.driver._crew.remove(number)
        await self.driver.close()


@pytest.fixture
async def farm(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Farm]:
    made = Farm(monkeypatch)
    yield made
    await made.close()


async def test_the_first_child_is_started_as_soon_as_the_system_lets_it(
    farm: Farm, caplog: pytest.LogCaptureFixture
) -> None:
    farm.refuses = True
    starting = asyncio.create_task(farm.driver.start())
    await asyncio.sleep(0)
    assert caplog.messages == ["no child could be started: Resource temporarily unavailable; trying again"]
    farm.refuses = False
    farm.the_pause_is_over()
    (await farm.child()).is_ready()
    assert list(await starting) == ["plain", "aio"]


async def test_work_is_asked_for_again_when_another_child_can_be_started_beside_a_living_one(farm: Farm) -> None:
    first = await farm.serve()
    farm.refuses = True
    farm.give("plain", 1, 2)  # the second one needs another child
    assert await farm.link.asked_for() == 0
    first.ends(1)
    first.ends(2)
    assert [farm.link.ending(index) for index in (1, 2)] == [Ending.SUCCEEDED] * 2
    farm.refuses = False
    farm.the_pause_is_over()
    second = await farm.child()
    assert second.mode == "plain"
    assert farm.link.windows.empty(), "not before it is ready"
    second.is_ready()
    assert await farm.link.asked_for() > 0


@pytest.mark.parametrize("how", ["is refused", "dies"])
async def test_it_is_one_of_the_kind_that_failed_which_is_tried_again(farm: Farm, how: str) -> None:
    """A plain one, which does start, would show nothing: one more of them would live after each coroutine that cannot be run."""
    await farm.serve()
    farm.refuses = how == "is refused"
    farm.give("aio", 1)
    if how == "dies":
        (await farm.child()).dies(1)
    assert await farm.link.asked_for() == 0
    farm.driver.on_revoke([("aio", 1, 1, 1)], "cancelled")
    farm.refuses = False
    for _ in range(3):
        farm.the_pause_is_over()
        tried = await farm.child()
        assert tried.mode == "loop"
        tried.dies(1)
    farm.the_pause_is_over()
    (await farm.child()).is_ready()
    assert await farm.link.asked_for() > 0
    assert sorted(lane.is_loop for lane in farm.driver._board.lanes.values()) == [False, True]


@pytest.mark.parametrize(
    "types", [[["plain", "1", False]], [["plain", "1", False], ["aio", "1", False]]], ids=["gone", "no coroutine now"]
)
async def test_a_child_that_lacks_a_type_of_this_worker_counts_as_one_that_could_not_be_started(
    farm: Farm, caplog: pytest.LogCaptureFixture, types: list[list[Any]]
) -> None:
    """Its app's file changed. Fed what it lacks it would die, or never answer."""
    await farm.serve()
    farm.give("aio", 1)
    second = await farm.child()
    second.is_ready(types)
    assert second.signals == [KILL]
    assert "the apps have changed: start the worker again" in caplog.messages
    assert farm.started.empty(), "no other one before the pause"
    second.dies(-9)
    assert await farm.link.asked_for() == 0
    farm.the_pause_is_over()
    third = await farm.child()
    assert third.mode == "loop"
    third.is_ready([*TYPES, ["new", "1", False]])  # the file is as it was, and more
    assert await farm.link.asked_for() > 0
    assert (farm.link.ending(1), farm.link.outcomes[1]["never_started"]) == (Ending.RELEASED, True)
