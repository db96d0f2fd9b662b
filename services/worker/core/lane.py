"""Lanes: one child process each, and what was fed to it.

A plain lane runs its tasks in order, one at a time; the first one fed is the running one. A loop lane runs all of its tasks at once. A lane
holds the resources of what it runs: a plain one of one task, since all it was fed cost the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

from services.worker.core.attempt import Attempt

HANDLING_S = 20e-6
"""What the shortest of tasks takes a child besides its run."""


class Lane:
    """State of one child. Changed by the board only, but for `ready` and `doomed`, which the driver sets."""

    __slots__ = ("bytes_fed", "cost", "doomed", "fed", "is_loop", "next_seq", "number", "ready", "since_ns")

    def __init__(self, number: int, *, is_loop: bool) -> None:
        self.number = number
        self.is_loop = is_loop
        self.ready = False  # its apps are loaded
        self.doomed = False  # it was sent a deadly signal: nothing is fed to it any more
        self.next_seq = 1
        self.fed: deque[Attempt] = deque()
        """Plain: in order, the first one running. Loop: all running, in order of their seq."""
        self.cost: Mapping[str, float] = {}  # plain: what it holds; empty while idle
        self.since_ns = 0  # plain: when the running one began, as far as the agent can tell
        self.bytes_fed = 0

    @property
    def usable(self) -> bool:
        """May be fed."""
        return self.ready and not self.doomed

    @property
    def stopping(self) -> bool:
        """Plain: its running task is being stopped."""
        return not self.is_loop and bool(self.fed) and self.fed[0].stop is not None

    @property
    def running(self) -> Iterable[Attempt]:
        """The attempts that run, as far as the agent can tell."""
        if self.is_loop:
            return self.fed
        return (self.fed[0],) if self.fed else ()

    @property
    def waiting_s(self) -> float:
        """Plain: how long what waits behind the running task takes, as far as is known. 0: nothing waits, or nobody knows."""
        waiting = len(self.fed) - 1
        if self.is_loop or waiting <= 0:
            return 0.0
        return waiting * max(self.fed[-1].group.estimate.mean_s or 0.0, HANDLING_S)

    def feed(self, attempt: Attempt, now_ns: int) -> None:
        """Note that the attempt goes to the child."""
        attempt.seq = self.next_seq
        self.next_seq += 1
        if not self.fed:
            self.since_ns = now_ns
        if self.is_loop:
            attempt.started_ns = now_ns
        self.fed.append(attempt)
        self.bytes_fed += len(attempt.payload)

    def finish(self, seq: int) -> Attempt | None:
        """The attempt of that seq, which has ended; None when it is not this lane's any more."""
        fed = self.fed
        if fed and fed[0].seq == seq:
            attempt = fed.popleft()
        else:
            found = self.find(seq)
            if found is None:
                return None
            attempt = found
            fed.remove(attempt)
        self.bytes_fed -= len(attempt.payload)
        return attempt

    def find(self, seq: int) -> Attempt | None:
        """The attempt of that seq, if it is this lane's."""
        for attempt in self.fed:
            if attempt.seq == seq:
                return attempt
        return None

    def take_back(self, started_seq: int) -> list[Attempt]:
        """Plain: what the child has not started (seq above `started_seq`) is not its any more, but for the first."""
        kept: deque[Attempt] = deque()
        behind = []
        for position, attempt in enumerate(self.fed):
            if position == 0 or attempt.seq <= started_seq:
                kept.append(attempt)
            else:
                behind.append(attempt)
        self.fed = kept
        self.bytes_fed = sum(len(attempt.payload) for attempt in kept)
        return behind
