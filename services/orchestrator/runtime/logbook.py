"""What running tasks have logged: volatile, bounded, for people who look now. The tail of a failed attempt is in its record."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from antfarm.model import LOG_TAIL_BYTES_MAX

TASKS_MAX = 2_000
Key = tuple[str, int]


class Logbook:
    """The last 64 KiB of each of the tasks that logged most recently."""

    def __init__(self, tasks_max: int = TASKS_MAX) -> None:
        self._texts: OrderedDict[Key, tuple[int, str]] = OrderedDict()
        """(characters ever written, tail)."""
        self._tasks_max = tasks_max
        self._news = asyncio.Event()

    def add(self, key: Key, text: str) -> None:
        """A task logged something."""
        total, tail = self._texts.pop(key, (0, ""))
        self._texts[key] = (total + len(text), (tail + text)[-LOG_TAIL_BYTES_MAX:])
        if len(self._texts) > self._tasks_max:
            self._texts.popitem(last=False)
        self._news.set()
        self._news = asyncio.Event()

    def read(self, key: Key, seen: int) -> tuple[int, str]:
        """(cursor, text after the cursor `seen`), as far as it is still kept."""
        total, tail = self._texts.get(key, (0, ""))
        missing = total - seen
        return total, tail[-missing:] if missing > 0 else ""

    @property
    def news(self) -> asyncio.Event:
        """Set when anybody logs next."""
        return self._news
