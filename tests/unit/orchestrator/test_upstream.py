"""The tie to the orchestrator above, without one: what the core wants of it."""

from __future__ import annotations

import asyncio
import logging

import pytest
from orchestrator_harness import Harness

from services.orchestrator.core import effects, events
from services.orchestrator.core.machine import Core
from services.orchestrator.core.turn import CoreConfig
from services.orchestrator.journal.memory import MemoryJournal
from services.orchestrator.runtime.driver import Driver
from services.orchestrator.runtime.sessions import Sessions
from services.orchestrator.runtime.timers import SystemClock
from services.orchestrator.upstream import Upstream


def make(core: Core, task_types: tuple[str, ...] = ("t",), slots: int = 1) -> tuple[Driver, Upstream]:
    driver = Driver(core, MemoryJournal(), SystemClock(), lambda effect: None)
    sessions = Sessions(core.state, owner=b"me", orchestrator_id="me", storage_address="")
    upstream = Upstream(
        driver,
        sessions,
        address="127.0.0.1:1",
        task_types=task_types,
        slots=slots,
        orchestrator_id="me",
        storage_address="",
        tls=None,
    )
    return driver, upstream


async def test_an_end_whose_record_is_purged_is_told_to_nobody_and_is_no_defect(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The parent came again under a newer token while its old failure was being read, and is done anew."""
    driver, upstream = make(Core(CoreConfig(), None))  # type: ignore[arg-type]
    before = asyncio.all_tasks()
    with caplog.at_level(logging.INFO):
        upstream.deliver(effects.ReportParents(seq=7, ends=[effects.ParentEnd(("job", 0, 1, 1), 0)], after=0))
        await asyncio.gather(*(asyncio.all_tasks() - before), return_exceptions=True)
        await driver.close()
    assert caplog.messages == []


async def test_it_asks_for_what_keeps_the_slots_below_busy() -> None:
    farm = Harness()
    driver, upstream = make(farm.core, slots=16)

    def asked() -> int:
        upstream._look_below()
        upstream._resize()
        return upstream._window

    assert asked() == 32  # nobody is here yet
    worker = farm.worker("w1", slots=40)
    assert asked() == 80  # how long its tasks take is not known: one waits for each slot
    upstream._sizer.ended(1_000, 100)
    assert asked() == 40 + 4_096 // 40 * 40
    below = farm.worker("cluster", slots=4, window=2_000, orchestrator=True, descendants=("cluster",))
    assert asked() == 2_040 + 4_096 // 2_040 * 2_040
    planner = farm.worker("planner", slots=2, types=("t:plan",))
    assert asked() == 16 + 4_096 // 16 * 16  # what it would expand stays few
    for gone in (worker, below, planner):
        farm.do(events.Goodbye(session=gone.session))
    assert asked() == 32
    upstream.on_drain(1.0)
    assert asked() == 0
    await driver.close()


async def test_what_takes_long_is_not_asked_for_ahead() -> None:
    """Tasks that run for a second, though others before were short; those that only wait here say nothing."""
    farm = Harness()
    driver, upstream = make(farm.core, slots=16)
    worker = farm.worker("w1", slots=2, window=4)
    upstream._sizer.ended(1_000, 100)
    farm.create("j", 4)
    first, second, *_ = worker.take()
    farm.now = driver.clock.monotonic_ns()
    windows = []
    for token in (None, first, second):
        if token is not None:
            worker.running(token, running_for_s=1.0)
        upstream._look_below()
        upstream._resize()
        windows.append(upstream._window)
    assert windows == [4_098, 4_098, 2]
    await driver.close()
