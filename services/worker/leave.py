"""Whether a worker is to leave: for good when a signal says so, until further notice when its orchestrator asks."""

from __future__ import annotations

import asyncio


class Leave:
    """The wish that it leaves, and the time for what runs."""

    def __init__(self, stop: asyncio.Event, limit_s: float) -> None:
        """`stop` is set by a signal. `limit_s`: what running tasks get at most."""
        self._stop = stop
        self._limit_s = limit_s
        self._asked_s: float | None = None
        self._news = asyncio.Event()

    def ask(self, limit_s: float | None) -> None:
        """The orchestrator wants it to leave within that time; None: no more."""
        self._asked_s = limit_s
        self._news.set()

    @property
    def limit_s(self) -> float | None:
        """Time for what runs, in seconds; None while it is to stay."""
        if self._asked_s is not None:
            return min(self._asked_s, self._limit_s)
        return self._limit_s if self._stop.is_set() else None

    @property
    def for_good(self) -> bool:
        """True when nothing can make it stay."""
        return self._stop.is_set()

    async def wanted(self) -> float:
        """Wait until it is to leave; the time for what runs."""
        stopping = asyncio.create_task(self._stop.wait())
        try:
            while (limit_s := self.limit_s) is None:
                await self._change(stopping)
            return limit_s
        finally:
            stopping.cancel()

    async def over(self) -> None:
        """Wait until it is to stay again."""
        while self.limit_s is not None:
            await self._change()

    async def _change(self, *others: asyncio.Task[object]) -> None:
        news = asyncio.create_task(self._news.wait())
        await asyncio.wait({news, *others}, return_when=asyncio.FIRST_COMPLETED)
        news.cancel()
        self._news.clear()
