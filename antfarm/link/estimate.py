"""How long tasks of a type take, learned from those that ended; decides how many wait where."""

from __future__ import annotations

DECAY = 0.98
"""What one more run leaves of the weight of all before it."""


class Estimate:
    """An exponentially weighted mean of run durations of one task type, in seconds; None until one has ended."""

    __slots__ = ("mean_s",)

    def __init__(self) -> None:
        self.mean_s: float | None = None

    def learn(self, total_us: int, count: int) -> None:
        """Take `count` runs that took `total_us` microseconds together."""
        mean_s = total_us / count / 1e6
        if self.mean_s is None:
            self.mean_s = mean_s
        else:
            self.mean_s += (1.0 - DECAY**count) * (mean_s - self.mean_s)
