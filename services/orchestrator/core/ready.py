"""Which tasks of a job are ready to be given out, in the order in which they should be.

A million fresh tasks are one range, not a million entries. Entries are not removed when a task is cancelled or adopted: whoever takes them skips
what is no longer QUEUED, so that every operation is cheap and a duplicate entry is harmless.
"""

from __future__ import annotations

from collections import deque

from antfarm.model import TaskState

_QUEUED = int(TaskState.QUEUED)


class Ready:
    """Returned tasks first, then ranges of fresh ones."""

    __slots__ = ("_ranges", "_returned")

    def __init__(self) -> None:
        self._ranges: deque[tuple[int, int]] = deque()
        self._returned: deque[int] = deque()

    def __bool__(self) -> bool:
        """True when something may be ready; what is there may turn out not to be QUEUED any more."""
        return bool(self._ranges or self._returned)

    def add_range(self, start: int, end: int) -> None:
        """Fresh tasks start..end-1, behind all others."""
        if start >= end:
            return
        if self._ranges and self._ranges[-1][1] == start:
            start = self._ranges.pop()[0]
        self._ranges.append((start, end))

    def add_returned(self, index: int) -> None:
        """A task that was out already: before all fresh ones."""
        self._returned.append(index)

    def prepend(self, other: Ready) -> None:
        """All of `other` before all of this; `other` is empty afterwards."""
        self._returned.extendleft(reversed(other._returned))
        self._ranges.extendleft(reversed(other._ranges))
        other._returned.clear()
        other._ranges.clear()

    def take(self, count: int, states: bytearray) -> list[int]:
        """Up to `count` QUEUED tasks, removed from here. Fewer only when there are no more."""
        back: dict[int, None] = {}
        returned = self._returned
        while returned and len(back) < count:
            index = returned.popleft()
            if states[index] == _QUEUED:
                back[index] = None
        taken = list(back)
        ranges = self._ranges
        while ranges and len(taken) < count:
            start, end = ranges.popleft()
            start = states.find(_QUEUED, start, end)  # past what was cancelled, expired or adopted
            if start < 0:
                continue
            stop = min(end, start + count - len(taken))
            if stop < end:
                ranges.appendleft((stop, end))
            if not taken and states.count(_QUEUED, start, stop) == stop - start:
                taken = list(range(start, stop))
            else:
                seen = set(taken)
                taken.extend(i for i in range(start, stop) if states[i] == _QUEUED and i not in seen)
        return taken

    def size(self, limit: int) -> int:
        """How many entries there are, counted up to `limit`; an upper bound of what `take` can give."""
        total = len(self._returned)
        for start, end in self._ranges:
            if total >= limit:
                break
            total += end - start
        return min(total, limit)
