"""How many assignments a worker asks for, or an orchestrator for those below it: what the slots can run, and enough waiting that no slot ever starves.

Too few waiting: a slot idles for a round trip after each task. Too many: tasks wait here while other workers idle. So the aim is a time, not
a number: LEAD_S of waiting work per slot.
"""

from __future__ import annotations

from antfarm.link.estimate import Estimate

LEAD_S = 0.25
"""Work that should wait per slot: what is fed to its child ahead, and the rest for as long as results and new assignments are on their way."""
LONG_S = 1.0
"""Tasks at least this long do not wait at the worker: the round trip costs them nothing."""
WAITING_MAX = 4_096
"""Assignments that may wait in all: what one agent brings through in LEAD_S, however many slots share it. Every heartbeat names all of them."""
WAITING_BYTES_MAX = 32 * 1024 * 1024
"""Payloads that may wait in all."""


def prefetch_per_slot(mean_s: float | None, payload_bytes: float, slots: int) -> int:
    """How many assignments should wait per slot for tasks that take `mean_s` (None: not known yet) with payloads of that mean size."""
    if mean_s is None:
        return 1
    if mean_s >= LONG_S:
        return 0
    by_time = LEAD_S / max(mean_s, 1e-6)
    in_all = min(WAITING_BYTES_MAX / max(payload_bytes, 1.0), WAITING_MAX)
    return max(1, int(min(by_time, in_all / max(slots, 1))))


def worth_a_frame(wanted: int, said: int) -> bool:
    """Whether the orchestrator should hear of a new window: small changes are not worth it."""
    return wanted == 0 or said == 0 or abs(wanted - said) > said // 8


class WindowSizer:
    """Learns from what arrives and ends; one for all task types, since the window is one number."""

    __slots__ = ("_bytes", "_cost", "_run")

    def __init__(self) -> None:
        self._run = Estimate()
        self._cost = 1.0  # slots that an assignment takes, weighted mean
        self._bytes = 0.0  # payload of an assignment, weighted mean

    def arrived(self, count: int, cost: float, payload_bytes: int) -> None:
        """`count` assignments of `cost` slots each came, with `payload_bytes` together."""
        # The last few arrivals decide: small tasks that run for long must fill the slots before the first of them ends.
        weight = 1.0 - 0.5**count
        self._cost += weight * (cost - self._cost)
        self._bytes += weight * (payload_bytes / count - self._bytes)

    def ended(self, total_us: int, count: int) -> None:
        """`count` runs took `total_us` together."""
        self._run.learn(total_us, count)

    def window(self, slots: int, oldest_run_s: float) -> int:
        """Assignments to have outstanding. `oldest_run_s`: mean age of the running ones, which tells of long tasks before one has ended."""
        mean_s = self._run.mean_s
        if oldest_run_s > (mean_s if mean_s is not None else LEAD_S):
            mean_s = oldest_run_s
        concurrency = max(round(slots / max(self._cost, 1e-3)), 1)
        return max(concurrency, slots) + prefetch_per_slot(mean_s, self._bytes, slots) * slots
