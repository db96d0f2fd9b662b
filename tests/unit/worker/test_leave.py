"""Whether a worker leaves, and in how long: a signal is final, what the orchestrator asks for it may take back."""

from __future__ import annotations

import asyncio

from services.worker.leave import Leave


async def test_a_signal_is_final() -> None:
    stop = asyncio.Event()
    leave = Leave(stop, 30.0)
    assert (leave.limit_s, leave.for_good) == (None, False)
    wanted = asyncio.create_task(leave.wanted())
    await asyncio.sleep(0)
    stop.set()
    assert await wanted == 30.0
    leave.ask(5.0)
    assert leave.limit_s == 5.0
    leave.ask(None)
    assert (leave.limit_s, leave.for_good) == (30.0, True)


async def test_what_the_orchestrator_asks_for_ends_when_it_says_so() -> None:
    leave = Leave(asyncio.Event(), 30.0)
    wanted = asyncio.create_task(leave.wanted())
    await asyncio.sleep(0)
    leave.ask(100.0)
    assert await wanted == 30.0, "never more than the worker's own"
    over = asyncio.create_task(leave.over())
    await asyncio.sleep(0)
    leave.ask(2.0)
    await asyncio.sleep(0.01)
    assert (over.done(), leave.limit_s) == (False, 2.0)
    leave.ask(None)
    await over
    assert leave.limit_s is None
    again = asyncio.create_task(leave.wanted())
    await asyncio.sleep(0)
    leave.ask(1.0)
    assert await again == 1.0
