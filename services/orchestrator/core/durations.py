"""How long tasks of a job take, from a bounded sample of those that succeeded."""

from __future__ import annotations

from statistics import median

SAMPLE_MAX = 256
"""Durations that are kept of a job; when there are more, every second one goes and from then on half as many are taken."""


class Durations:
    """An even sample over the whole life of a job, whatever its length; adding to it takes constant time, and no dice."""

    __slots__ = ("_kept", "_seen", "_stride")

    def __init__(self) -> None:
        self._kept: list[int] = []
        self._seen = 0
        self._stride = 1

    def add(self, duration_ns: int) -> None:
        """One more task has succeeded."""
        self._seen += 1
        if self._seen % self._stride:
            return
        self._kept.append(duration_ns)
        if len(self._kept) == SAMPLE_MAX:
            del self._kept[::2]
            self._stride *= 2

    @property
    def median_ns(self) -> float | None:
        """The median; None while nothing is known."""
        return median(self._kept) if self._kept else None
