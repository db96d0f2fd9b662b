"""Simulated time: one heap of what happens next, one source of chance, and processes that can stand still or die.

Nothing here reads a clock or depends on the order of a set: the same seed gives the same bytes, whatever the machine.
"""

from __future__ import annotations

import heapq
import random
import zlib
from collections import deque
from collections.abc import Callable
from typing import Any

MS = 1_000_000
"""A millisecond in simulated nanoseconds."""
SECOND = 1_000 * MS
READING_NS_MAX = SECOND
"""In which a process that goes on has read what waited in its sockets."""

Call = Callable[..., None]


class Kernel:
    """True time, the heap of events, and the seeded dice."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        self.now = 0
        self.events = 0
        self.mark = 0
        """Checksum over all that happened, in order: two runs of a seed are equal when their marks are."""
        self.trace: Callable[[str], None] | None = None
        self._heap: list[tuple[int, int, Call, tuple[Any, ...]]] = []
        self._tie = 0

    def after(self, delay_ns: int, call: Call, *args: Any) -> None:
        """Have something happen `delay_ns` of true time from now."""
        self._tie += 1
        heapq.heappush(self._heap, (self.now + delay_ns, self._tie, call, args))

    def run(self, until_ns: int) -> None:
        """Let everything happen that is due before `until_ns`."""
        heap = self._heap
        while heap and heap[0][0] <= until_ns:
            self.now, _, call, args = heapq.heappop(heap)
            self.events += 1
            call(*args)
        self.now = max(self.now, until_ns)

    def note(self, *what: object) -> None:
        """Put something into the checksum, and into the trace when there is one."""
        line = f"{self.now} {what}"
        self.mark = zlib.crc32(line.encode(), self.mark)
        if self.trace is not None:
            self.trace(f"{self.now / SECOND:10.4f} {' '.join(map(str, what))}")

    def chance(self, probability: float) -> bool:
        """True that often."""
        return self.dice.random() < probability


class Process:
    """Something that lives on a machine: its timers die with it, and wait while it is stopped (SIGSTOP)."""

    def __init__(self, kernel: Kernel, name: str) -> None:
        self.kernel = kernel
        self.name = name
        self.alive = False
        self.life = 0
        """Grows with every start: what an earlier life has scheduled does not happen."""
        self.stopped = False
        self.clock_rate = 1.0
        self.clock_start_ns = 0
        self._backlog: list[tuple[Call, tuple[Any, ...]]] = []
        self._unread: deque[tuple[Call, tuple[Any, ...]]] = deque()
        """What waits in its sockets since it was stopped, in order; it is read until `_reading_ns`."""
        self._reading_ns = 0

    @property
    def clock_ns(self) -> int:
        """Its monotonic clock: starts anywhere, runs a little fast or slow, never goes back."""
        return self.clock_start_ns + int(self.kernel.now * self.clock_rate)

    def later(self, delay_ns: int, call: Call, *args: Any) -> None:
        """Set a timer of this life, by the process's own clock."""
        self.kernel.after(int(delay_ns / self.clock_rate), self.enter, self.life, call, *args)

    def enter(self, life: int, call: Call, *args: Any) -> None:
        """Run something of a life of this process: now, when it goes on, or never."""
        if life != self.life or not self.alive:
            return
        if self.stopped:
            self._backlog.append((call, args))
        elif self._unread and _is_read(call):
            self._unread.append((call, args))
            self.kernel.after(max(self._reading_ns - self.kernel.now, 0), self._read, life)
        else:
            call(*args)

    def _read(self, life: int) -> None:
        if life == self.life and not self.stopped and self._unread:
            call, args = self._unread.popleft()
            call(*args)

    def begin(self) -> None:
        """A new life."""
        self.alive, self.stopped = True, False
        self.life += 1
        self._backlog.clear()
        self._unread.clear()

    def end(self) -> None:
        """Dead: nothing that it scheduled happens any more."""
        self.alive = self.stopped = False
        self.life += 1
        self._backlog.clear()
        self._unread.clear()

    def stop(self) -> None:
        """Stand still."""
        self.stopped = True

    def go_on(self) -> None:
        """Go on with all that came meanwhile: timers at once, what waits in sockets little by little, in order."""
        if not self.alive or not self.stopped:
            return
        self.stopped = False
        backlog, self._backlog = self._backlog, []
        self._unread += [entry for entry in backlog if _is_read(entry[0])]
        # Sockets are read in much less than a lease, however much waits in them.
        read_ns = min(20 * MS, READING_NS_MAX // max(len(self._unread), 1))
        self._reading_ns = self.kernel.now
        for _ in self._unread:
            self._reading_ns += int(self.kernel.dice.random() * read_ns)
            self.kernel.after(self._reading_ns - self.kernel.now, self._read, self.life)
        for call, args in backlog:
            if not _is_read(call):
                self.enter(self.life, call, *args)


def _is_read(call: Call) -> bool:
    """True for what comes out of a socket."""
    return getattr(call, "__name__", "").startswith("_hear")
