"""Drains that an orchestrator asks for: how long they hold, and when work goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from test_stop_running import Dummies

from antfarm.model import SECOND_NS
from antfarm.v1 import work_queue_pb2
from services.worker import app
from services.worker import leave as leave_module
from services.worker.executors.process import ChildSpec
from services.worker.leave import Leave
from services.worker.runtime import driver as module
from services.worker.runtime.driver import Driver, Manner

FIRST, SECOND = b"1" * 16, b"2" * 16
"""Owners: processes of an orchestrator."""


class Told:
    """A driver, and what it was told of drains."""

    def __init__(self) -> None:
        self.asked: list[float | None] = []
        manner = Manner(slots=1, capacity={"cpu": 1.0})
        self.driver = Driver(manner, ChildSpec(apps=(), scratch=Path("/nowhere"), env={}), on_drain=self.asked.append)

    def welcome(self, owner: bytes, epoch: int) -> None:
        self.driver.on_welcome(work_queue_pb2.Welcome(owner=owner, epoch=epoch))


@pytest.fixture
async def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    monkeypatch.setattr(module, "Crew", Dummies)
    return Told()


# ---- the same orchestrator, or one that was started again -----------------------------------------------------------


@pytest.mark.parametrize("epoch", [1, 2], ids=["same epoch", "the epoch has risen"])
async def test_a_welcome_of_who_asked_for_the_drain_ends_it(told: Told, epoch: int) -> None:
    """An epoch rises in a running process too: with a job that is submitted again after it was purged, or by retention."""
    told.welcome(FIRST, 1)
    told.driver.on_drain(30.0)
    told.welcome(FIRST, epoch)
    assert told.asked == [30.0, None]
    told.welcome(FIRST, epoch)
    assert told.asked == [30.0, None], "told once"


@pytest.mark.parametrize("epoch", [1, 2], ids=["same epoch", "the epoch has risen"])
async def test_an_orchestrator_that_was_started_again_has_only_forgotten_the_drain(told: Told, epoch: int) -> None:
    told.welcome(FIRST, 1)
    told.driver.on_drain(30.0)
    told.welcome(SECOND, epoch)
    assert told.asked == [30.0]
    told.driver.on_drain(20.0)
    told.welcome(SECOND, epoch)
    assert told.asked == [30.0, 20.0, None], "this one knows of the drain"


# ---- one drain after another ------------------------------------------------------------------------------------------


class Draining:
    """A worker of whose driver and link there is only what a drain asks of them, at a time that stands still."""

    unacked_count = 0

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for user in (app, leave_module):
            monkeypatch.setattr(user, "now_ns", lambda: SECOND_NS)
        self.leave = Leave(asyncio.Event(), 30.0)
        self.steps: asyncio.Queue[float | str] = asyncio.Queue()
        self.idle = asyncio.Event()
        worker: Any = self
        self.drains = asyncio.create_task(app._drain_when_told(self.leave, "w1", worker, worker))

    async def drain(self, limit_s: float) -> None:
        self.steps.put_nowait(limit_s)
        await self.idle.wait()

    def resume(self) -> None:
        self.steps.put_nowait("work")

    async def settled(self, timeout_s: float) -> bool:
        return True

    async def goodbye(self, cause: str) -> None:
        self.steps.put_nowait(cause)

    async def step(self) -> float | str:
        """What it does next: drain within so many seconds, work, or leave."""
        async with asyncio.timeout(10.0):
            return await self.steps.get()

    async def left(self) -> None:
        """What runs has ended: it leaves, and did nothing else."""
        self.idle.set()
        assert await self.step() == "drained"
        async with asyncio.timeout(10.0):
            await self.drains
        assert self.steps.empty()


@pytest.fixture
async def draining(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Draining]:
    made = Draining(monkeypatch)
    yield made
    made.drains.cancel()
    await asyncio.gather(made.drains, return_exceptions=True)


@pytest.mark.parametrize("limit_s", [0.5, 25.0], ids=["shorter", "longer"])
async def test_a_drain_that_is_asked_for_again_goes_on_with_its_new_limit(draining: Draining, limit_s: float) -> None:
    draining.leave.ask(20.0)
    assert await draining.step() == 20.0
    draining.leave.ask(limit_s)
    assert await draining.step() == limit_s, "without any work between"
    await draining.left()


async def test_a_drain_that_is_taken_back_is_followed_by_work_until_the_next(draining: Draining) -> None:
    draining.leave.ask(20.0)
    assert await draining.step() == 20.0
    draining.leave.ask(None)
    assert await draining.step() == "work"
    draining.leave.ask(10.0)
    assert await draining.step() == 10.0
    await draining.left()
