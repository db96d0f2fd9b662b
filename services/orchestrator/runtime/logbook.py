"""What running tasks have logged: volatile, bounded, for people who look now. The tail of a failed attempt is in its record."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping

from antfarm.model import LOG_TAIL_BYTES_MAX
from services.orchestrator.core.state import Job

TASKS_MAX = 2_000
Key = tuple[str, int]
"""(job id, index) of a task."""


class Logbook:
    """The last 64 KiB of each of the tasks that logged most recently."""

    def __init__(self, jobs: Mapping[str, Job], tasks_max: int = TASKS_MAX) -> None:
        """`jobs` are those that are there now, by id: another job may come under the id of a purged one."""
        self._jobs = jobs
        self._texts: OrderedDict[tuple[int, int], tuple[int, str]] = OrderedDict()
        """(number of the job, index) -> (cursor behind the last character, tail)."""
        self._tasks_max = tasks_max
        self._first = 0
        """Where cursors of a task begin that is not kept: no task that was let go of had a higher one, so who followed it misses nothing of what comes."""
        self._news = asyncio.Event()

    def add(self, key: Key, text: str) -> None:
        """A task of a job that is there logged something."""
        place = (self._jobs[key[0]].number, key[1])
        total, tail = self._texts.pop(place, (self._first, ""))
        self._texts[place] = (total + len(text), (tail + text)[-LOG_TAIL_BYTES_MAX:])
        if len(self._texts) > self._tasks_max:
            _, (gone, _) = self._texts.popitem(last=False)
            self._first = max(self._first, gone)
        self._news.set()
        self._news = asyncio.Event()

    def read(self, key: Key, seen: int) -> tuple[int, str]:
        """(cursor, text after the cursor `seen`), as far as it is still kept."""
        job = self._jobs.get(key[0])
        total, tail = self._texts.get((job.number, key[1]), (0, "")) if job is not None else (0, "")
        missing = total - seen
        return total, tail[-missing:] if missing > 0 else ""

    @property
    def news(self) -> asyncio.Event:
        """Set when anybody logs next."""
        return self._news
