"""Drains that an orchestrator asks for: how long they hold, and when work goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_stop_running import Dummies

from antfarm.v1 import work_queue_pb2
from services.worker.executors.process import ChildSpec
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
