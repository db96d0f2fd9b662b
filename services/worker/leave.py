"""Whether a worker is to leave: for good when a signal says so, until further notice when its orchestrator asks.

Kept as the time at which what runs is stopped, so that a drain that is said again on another connection neither begins anew nor ends sooner.
"""

from __future__ import annotations

import asyncio

from antfarm.link.stream import now_ns
from antfarm.model import SECOND_NS

SAME_NS = SECOND_NS
"""A drain that is to end at the time of the last one, give or take this, is that one said again: what is left of it was on its way for a while."""


class Leave:
    """The wish that it leaves, and until when what runs may go on."""

    def __init__(self, stop: asyncio.Event, limit_s: float) -> None:
        """`stop` is set by a signal. `limit_s`: what running tasks get at most."""
        self._stop = stop
        self._limit_ns = int(limit_s * SECOND_NS)
        self._stop_until_ns: int | None = None
        """What the signal leaves, once it was noticed."""
        self._asked_until_ns: int | None = None
        """What the orchestrator leaves; None while it asks for nothing."""
        self._last_until_ns = 0
        """The end of the last drain as the orchestrator has it; kept when that is over."""
        self._own_until_ns = 0
        """The end of the own limit, from when that drain was first asked for."""
        self._news = asyncio.Event()

    def ask(self, limit_s: float | None) -> None:
        """The orchestrator wants it to leave within that time from now on; None: no more."""
        if limit_s is None:
            self._asked_until_ns = None
        else:
            now = now_ns()
            until_ns = now + int(limit_s * SECOND_NS)
            if abs(until_ns - self._last_until_ns) > SAME_NS:
                self._own_until_ns = now + self._limit_ns
            self._last_until_ns = until_ns
            self._asked_until_ns = min(until_ns, self._own_until_ns)
        self._news.set()

    @property
    def until_ns(self) -> int | None:
        """When what still runs is stopped; None while it is to stay."""
        return min((ns for ns in (self._asked_until_ns, self._stop_until_ns) if ns is not None), default=None)

    @property
    def for_good(self) -> bool:
        """True when nothing can make it stay."""
        return self._stop.is_set()

    async def wanted(self) -> int:
        """Wait until it is to leave; when what still runs then is stopped."""
        while (until_ns := self.until_ns) is None:
            await self._change()
        return until_ns

    async def changed(self, until_ns: int) -> None:
        """Wait until it is to leave at another time than that, or to stay."""
        while self.until_ns == until_ns:
            await self._change()

    async def _change(self) -> None:
        waits = [asyncio.create_task(self._news.wait())]
        if self._stop_until_ns is None:
            waits.append(asyncio.create_task(self._stop.wait()))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        self._news.clear()
        if self._stop_until_ns is None and self._stop.is_set():
            self._stop_until_ns = now_ns() + self._limit_ns
