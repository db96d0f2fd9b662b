"""One turn of the core: the state, the time, and what has come of the event so far.

Handlers make records through `record`, which applies them at once, so that a handler always reads the state as it will be; and effects, which
name the record that must be durable before they leave.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from antfarm.model import SECOND_NS
from services.orchestrator.core.effects import Effect
from services.orchestrator.core.records import Record
from services.orchestrator.core.state import Job, State


class Dice(Protocol):
    """The randomness that the core is given."""

    def random(self) -> float:
        """Evenly drawn from [0, 1)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreConfig:
    """Numbers of semantics section 3; durations in nanoseconds."""

    orchestrator_id: str = ""
    """Its own name among orchestrators: who is above and below itself at once would be fed its own tasks."""
    first_epoch: int = 1
    """Epoch that a new journal begins with."""
    heartbeat_ns: int = 3 * SECOND_NS
    """H. Workers beat this often. The lease is four of them: one lost beat, one late one and a pause do not kill."""
    orchestrator_lease_ns: int = 60 * SECOND_NS
    """Lease of a down-stream orchestrator, when L is not longer: its restart is cheaper than repeating its work."""
    orphan_hold_ns: int = 300 * SECOND_NS
    """How long the holder of an at-most-once token may be silent before its task is given up."""
    infra_failures_max: int = 5
    crashes_max: int = 3
    """Crashes after which a task is poison, when the last was alone, on two workers when there are two."""
    suspicions_max: int = 2
    """Deaths of processes and workers that a task may have brought about before it runs alone."""
    empty_patience_ns: int = 60 * SECOND_NS
    """How long a worker that is to run a task alone may take to become empty before another is tried; doubles with each round."""
    ailing_min: int = 3
    """Different tasks that failed in a worker's last endings: it is quarantined, or their type is paused when others have the same trouble."""
    probe_first_ns: int = 30 * SECOND_NS
    """How long a quarantine or a pause lasts before one task is tried; doubles as long as that fails."""
    probe_max_ns: int = 1800 * SECOND_NS
    """And the longest time until the next is tried (L8)."""
    avoid_ns: int = 30 * SECOND_NS
    """How long a retry waits for a worker that has not failed the task; then any will do."""
    room_patience_ns: int = 30 * SECOND_NS
    """How long tasks that need more of a worker than ever ends at once wait, before one is kept for them."""
    payload_bytes_max: int = 4 << 30
    """What tasks that have not succeeded take (`state.task_bytes`), in all; more are refused OVERLOADED."""
    frame_bytes_max: int = 1 << 20
    """Payload bytes in one Tasks frame."""
    frame_tasks_max: int = 1024
    """Assignments in one Tasks frame."""
    keep_ended_ns: int = 7 * 24 * 3600 * SECOND_NS
    """How long an ended job is kept with its results; then it is purged."""
    keep_crowded_ns: int = 24 * 3600 * SECOND_NS
    """The same at most, when ended jobs have too many tasks or the disk is low. Until then late reports find their task."""
    ended_tasks_max: int = 10_000_000
    """Tasks that ended jobs may have together before they are kept for less long."""
    workers_known_max: int = 10_000
    """Workers that are remembered; beyond it those who left or were lost are forgotten, oldest first."""

    @property
    def lease_ns(self) -> int:
        """L."""
        return 4 * self.heartbeat_ns

    def lease_of(self, *, orchestrator: bool) -> int:
        """Lease of a worker, or of a down-stream orchestrator: never shorter than a worker's, or a raised heartbeat would come too late for it."""
        return max(self.orchestrator_lease_ns, self.lease_ns) if orchestrator else self.lease_ns

    @property
    def sweep_ns(self) -> int:
        """S. How often leases are looked at; well below a heartbeat, or a sweep would look like a pause of the process."""
        return min(SECOND_NS // 4, self.heartbeat_ns // 4)


class Turn:
    """What handlers work with while one event is handled."""

    __slots__ = ("config", "dice", "effects", "ended_jobs", "now", "records", "state", "wall_offset_ns")

    def __init__(self, state: State, config: CoreConfig, dice: Dice, now: int, wall_offset_ns: int) -> None:
        self.state = state
        self.config = config
        self.dice = dice
        self.now = now
        self.wall_offset_ns = wall_offset_ns
        self.records: list[tuple[int, Record]] = []
        self.effects: list[Effect] = []
        self.ended_jobs: list[Job] = []
        """Jobs whose last task ended in this turn."""

    @property
    def wall_ns(self) -> int:
        """Now by the wall clock, for records that people read or a restart measures by."""
        return self.now + self.wall_offset_ns

    def moment_ns(self, wall_ns: int) -> int:
        """When a recorded moment of the wall clock was, on this turn's clock. One that the wall clock places in the future is now."""
        return self.now - max(self.wall_ns - wall_ns, 0)

    def record(self, record: Record) -> int:
        """Make a fact: applied now, durable later. Returns its sequence number."""
        seq = self.state.seq + 1
        self.state.apply(seq, record)
        self.records.append((seq, record))
        return seq

    def effect(self, effect: Effect) -> None:
        """Want something done."""
        self.effects.append(effect)
