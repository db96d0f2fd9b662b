"""The only place that reads clocks and makes ticks."""

from __future__ import annotations

import asyncio
import time

from services.orchestrator.runtime.driver import Driver


class SystemClock:
    """The machine's clocks. The monotonic one does not count suspend: a suspended orchestrator blames nobody."""

    def monotonic_ns(self) -> int:
        """Never goes back."""
        return time.monotonic_ns()

    def wall_ns(self) -> int:
        """As the machine tells it."""
        return time.time_ns()


async def tick_forever(driver: Driver) -> None:
    """Tick every sweep, earlier when a timer of the core is due before."""
    sweep_s = driver.core.config.sweep_ns / 1e9
    while True:
        pause_s = sweep_s
        due_ns = driver.core.next_timer_ns()
        if due_ns is not None and not driver.stalled:
            pause_s = min(pause_s, max((due_ns - driver.clock.monotonic_ns()) / 1e9, 0.002))
        await asyncio.sleep(pause_s)
        driver.tick()
