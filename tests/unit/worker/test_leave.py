"""Whether a worker leaves, and until when: a signal is final, what the orchestrator asks for it may change and take back."""

from __future__ import annotations

import asyncio

import pytest

from antfarm.model import SECOND_NS
from services.worker import leave as module
from services.worker.leave import Leave

OWN_S = 30.0
PATIENCE_S = 10.0


class Clock:
    """Time stands still until it is told to pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passed_ns = 0
        monkeypatch.setattr(module, "now_ns", lambda: SECOND_NS + self.passed_ns)

    def passes(self, span_s: float) -> None:
        self.passed_ns += int(span_s * SECOND_NS)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def until_s(leave: Leave) -> float | None:
    """When what runs is stopped, counted from the start of the test."""
    return None if leave.until_ns is None else leave.until_ns / SECOND_NS - 1


async def wanted_s(wanted: asyncio.Task[int]) -> float:
    async with asyncio.timeout(PATIENCE_S):
        return await wanted / SECOND_NS - 1


async def test_a_signal_is_final(clock: Clock) -> None:
    stop = asyncio.Event()
    leave = Leave(stop, OWN_S)
    assert (leave.until_ns, leave.for_good) == (None, False)
    wanted = asyncio.create_task(leave.wanted())
    await asyncio.sleep(0)
    clock.passes(1)
    stop.set()
    assert await wanted_s(wanted) == 31
    leave.ask(5.0)
    assert until_s(leave) == 6
    leave.ask(None)
    assert (until_s(leave), leave.for_good) == (31, True)


async def test_what_the_orchestrator_asks_for_ends_when_it_says_so(clock: Clock) -> None:
    leave = Leave(asyncio.Event(), OWN_S)
    wanted = asyncio.create_task(leave.wanted())
    await asyncio.sleep(0)
    leave.ask(100.0)
    assert await wanted_s(wanted) == OWN_S, "never more than the worker's own"
    assert leave.until_ns is not None
    changed = asyncio.create_task(leave.changed(leave.until_ns))
    await asyncio.sleep(0)
    assert not changed.done()
    leave.ask(None)
    async with asyncio.timeout(PATIENCE_S):
        await changed
    assert leave.until_ns is None
    again = asyncio.create_task(leave.wanted())
    await asyncio.sleep(0)
    leave.ask(1.0)
    assert await wanted_s(again) == 1


@pytest.mark.parametrize(("limit_s", "end_s"), [(2.0, 7.0), (20.0, 25.0), (100.0, 35.0)])
async def test_a_drain_that_is_asked_for_again_has_its_new_limit_from_then_on(
    clock: Clock, limit_s: float, end_s: float
) -> None:
    leave = Leave(asyncio.Event(), OWN_S)
    leave.ask(10.0)
    changed = asyncio.create_task(leave.changed(await leave.wanted()))
    await asyncio.sleep(0)
    clock.passes(5)
    leave.ask(limit_s)
    async with asyncio.timeout(PATIENCE_S):
        await changed
    assert until_s(leave) == end_s


@pytest.mark.parametrize(("limit_s", "end_s"), [(10.0, 10.0), (3600.0, 30.0)], ids=["its limit", "the worker's own"])
async def test_a_drain_that_is_said_again_on_the_next_connection_ends_when_it_would_have(
    clock: Clock, limit_s: float, end_s: float
) -> None:
    """The orchestrator says what is left of it; that took a while to arrive."""
    leave = Leave(asyncio.Event(), OWN_S)
    leave.ask(limit_s)
    for _ in range(3):
        clock.passes(2.25)
        leave.ask(None)
        limit_s -= 2.0
        leave.ask(limit_s)
    assert until_s(leave) == pytest.approx(end_s, abs=0.75)


async def test_another_drain_after_one_that_was_taken_back_has_all_its_time(clock: Clock) -> None:
    leave = Leave(asyncio.Event(), OWN_S)
    leave.ask(3600.0)
    clock.passes(20)
    leave.ask(None)
    leave.ask(3600.0)
    assert until_s(leave) == 50


async def test_nothing_that_is_asked_for_makes_a_signal_wait(clock: Clock) -> None:
    stop = asyncio.Event()
    stop.set()
    leave = Leave(stop, OWN_S)
    assert await leave.wanted() == (1 + OWN_S) * SECOND_NS
    clock.passes(20)
    leave.ask(25.0)
    assert until_s(leave) == OWN_S
