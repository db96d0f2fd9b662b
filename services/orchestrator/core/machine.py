"""The core: one function from an event to records and effects.

The caller hands in events in the order in which they happened with a clock that never goes back, makes the records durable in their
order, those of one step together, and releases each effect when the record that it names is durable. `place` is called after each batch of events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from antfarm.errors import AntFarmError
from services.orchestrator.core import (
    backups,
    events,
    jobs,
    leases,
    parents,
    placement,
    relay,
    reports,
    retention,
    workers,
)
from services.orchestrator.core.effects import Effect, Reply
from services.orchestrator.core.records import Record
from services.orchestrator.core.state import State
from services.orchestrator.core.turn import CoreConfig, Dice, Turn


@dataclass(frozen=True, slots=True)
class Step:
    """What came of an event."""

    records: Sequence[tuple[int, Record]]
    """With their sequence numbers; applied already. Durable together or not at all."""
    effects: Sequence[Effect]


_REQUESTS: dict[type[Any], Callable[[Turn, Any], None]] = {
    events.CreateJob: jobs.create,
    events.AppendTasks: jobs.append,
    events.CloseJob: jobs.close,
    events.PauseJob: jobs.pause,
    events.CancelJob: jobs.cancel,
    events.CancelTask: jobs.cancel_task,
    events.RetryJob: jobs.retry,
    events.PurgeJob: jobs.purge,
    events.DrainWorker: workers.drain,
}
"""Somebody waits for the answer, which may be a refusal."""
_REPORTS: dict[type[Any], Callable[[Turn, Any], None]] = {
    events.Outcomes: reports.outcomes,
    events.Running: reports.running,
    events.Heartbeat: workers.heartbeat,
    events.Credit: workers.credit,
    events.Detach: workers.detach,
    events.Goodbye: workers.goodbye,
    events.ParentsAssigned: parents.assigned,
    events.ParentsRevoked: parents.revoked,
    events.ParentsDrained: parents.drained,
    events.ParentExpanded: parents.expanded,
    events.ParentsAcked: parents.acked,
}
"""What happened elsewhere: taken as it is or passed over, never refused by an exception."""


class Core:
    """The orchestrator's decisions. Deterministic: the same events, times and dice give the same records and effects."""

    def __init__(self, config: CoreConfig, dice: Dice) -> None:
        self.config = config
        self.state = State()
        self._dice = dice
        self._wall_offset_ns = 0
        self._swept_ns = 0
        self._look_at_ended_ns = 0
        self._look_for_stragglers_ns = 0

    def replay(self, seq: int, record: Record) -> None:
        """Apply a record of the journal, before the first event."""
        self.state.apply(seq, record)

    def handle(self, event: events.Event, now: int) -> Step:
        """Decide about one event. A request that breaks a rule is answered with the error and changes nothing."""
        turn = Turn(self.state, self.config, self._dice, now, self._wall_offset_ns)
        match event:
            case events.Tick():
                self._wall_offset_ns = turn.wall_offset_ns = event.wall_ns - now
                self._tick(turn)
            case events.Attach():
                if workers.attach(turn, event):
                    parents.offered(turn)
                    leases.end_recovery(turn)
            case events.Recover():
                self._wall_offset_ns = turn.wall_offset_ns = event.wall_ns - now
                self._swept_ns = now
                leases.recover(turn)
                parents.resume(turn)
            case events.DiskLow():
                self.state.disk_low = event.low
            case _ if type(event) in _REPORTS:
                _REPORTS[type(event)](turn, event)
            case _:
                self._answer(turn, event)
        # A job that ended may begin a parent's next stage, which may be empty and end as well.
        while turn.ended_jobs:
            parents.job_ended(turn, turn.ended_jobs.pop())
        return _step(turn)

    def _answer(self, turn: Turn, event: Any) -> None:
        try:
            _REQUESTS[type(event)](turn, event)
        except AntFarmError as error:
            assert not turn.records, "a refused request must change nothing"
            # Without the frames that it went through: they hold the request, and all would stay until the next garbage collection.
            turn.effect(Reply(request=event.request, after=0, error=error.with_traceback(None)))

    def _tick(self, turn: Turn) -> None:
        gap_ns, self._swept_ns = turn.now - self._swept_ns, turn.now
        if gap_ns > 2 * self.config.sweep_ns:
            leases.extend(turn, gap_ns)
        if gap_ns > self.config.heartbeat_ns:
            # This process stood still: what others said meanwhile waits to be read, so nobody is judged by this tick.
            leases.fire(turn, unread=True)
            return
        workers.sweep(turn)
        leases.end_recovery(turn)
        leases.fire(turn)
        if turn.now >= self._look_at_ended_ns:
            self._look_at_ended_ns = retention.purge_due(turn)

    def place(self, now: int) -> Step:
        """Give ready tasks to workers with free credit: once per batch of events."""
        turn = Turn(self.state, self.config, self._dice, now, self._wall_offset_ns)
        placement.place(turn)
        if now >= self._look_for_stragglers_ns:
            self._look_for_stragglers_ns = now + self.config.heartbeat_ns
            backups.place(turn)
        return _step(turn)

    def next_timer_ns(self) -> int | None:
        """When the next back-off or deadline comes due; ticks should not be much later."""
        return self.state.timers[0][0] if self.state.timers else None


def _step(turn: Turn) -> Step:
    relay.tell_ended(turn)
    return Step(turn.records, turn.effects)
