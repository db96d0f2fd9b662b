"""A core under fuzz, with what must hold after every event, whatever it is.

An event is taken or refused, and nothing but a declared refusal (`AntFarmError`) comes out; a refused one leaves the whole state as it was, to the byte;
what is recorded can be written down and read again, and a replay of it gives the durable state; the invariants hold; and what clients, workers and
jobs leave behind stays within the stated bounds.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import random
from typing import Any, ClassVar

from orchestrator_harness import SWEEP_NS, WALL_NS, durable_parts

from antfarm.model import SECOND_NS, BlobRef, Failure, JobSpec, TaskTemplate, VerdictCode
from services.orchestrator.core import effects, events, invariants
from services.orchestrator.core.effects import Effect
from services.orchestrator.core.machine import Core, Step
from services.orchestrator.core.records import Record
from services.orchestrator.core.state import State, Worker, may_have_backup
from services.orchestrator.core.turn import CoreConfig
from services.orchestrator.journal import codec

CONFIG = CoreConfig(
    orchestrator_id="me", payload_bytes_max=1 << 20, ended_tasks_max=60, workers_known_max=6, frame_tasks_max=3
)
TIMERS_MAX = 20_000
_COUNTS = {VerdictCode.ACCEPTED}
"""Verdicts on reports that change a task; no other may."""

_OF_A_SESSION = (events.Detach, events.Goodbye, events.Credit, events.Heartbeat, events.Running)
_TAKEN = (
    events.Tick, events.DiskLow, events.Recover, events.ParentsAssigned, events.ParentsRevoked, events.ParentsDrained, events.ParentExpanded, events.ParentsAcked,
)  # fmt: skip


class Broken(Exception):
    """A property does not hold."""


class _Dump(pickle.Pickler):
    """State as bytes: equal bytes, equal state. Values that cannot change go by their identity, which is a tenth of the work."""

    dispatch_table: ClassVar[dict[Any, Any]] = {
        **copyreg.dispatch_table,
        **{cls: lambda value: (id, (id(value),)) for cls in (JobSpec, TaskTemplate, Failure, BlobRef)},
    }


def dump(state: State) -> bytes:
    """All of a state, to be compared with another dump of the same process while neither is collected."""
    out = io.BytesIO()
    _Dump(out, pickle.HIGHEST_PROTOCOL).dump(state)
    return out.getvalue()


class World:
    """One core from its first event on."""

    def __init__(self, dice: random.Random, *, check_every: int = 16) -> None:
        self.dice = dice
        self.now = 1_000 * SECOND_NS
        self.wall_ns = WALL_NS
        self.records: list[tuple[int, Record]] = []
        self.issued: list[tuple[str, str, int, int, int]] = []
        """(worker, job, index, epoch, attempt) of every token that was sent."""
        self.refused = 0
        self._check_every = check_every
        self.given = 0
        """Events so far."""
        self.core = Core(CONFIG, random.Random(dice.random()))
        self.give(events.Recover(wall_ns=self.wall_ns))

    @property
    def state(self) -> State:
        """The core's state."""
        return self.core.state

    def give(self, event: Any) -> list[Effect]:
        """One event and the placement after it, checked. Returns what came of them."""
        worker = self.state.sessions.get(getattr(event, "session", ""))
        if worker is not None:
            worker.heard(self.now)  # any word renews the lease, also one that is refused
        # Those of a living session are never refused, nor what comes from the process itself or from above.
        safe = isinstance(event, _OF_A_SESSION) and worker is not None
        before = b"" if safe or isinstance(event, _TAKEN) else dump(self.state)
        counts = self._ends_backup(event) or self._has_stopped(event, worker)
        step = self.core.handle(event, self.now)
        if not counts and self._refuses(event, step, known=worker is not None):
            self.refused += 1
            if dump(self.state) != before or step.records:
                raise Broken(f"a refused message changed the state: {event}")
        found = self._take(step)
        found += self._take(self.core.place(self.now))
        self.given += 1
        if self.given % self._check_every == 0:
            self.check()
        return found

    def _ends_backup(self, event: Any) -> bool:
        """True for a report on what is a backup, or after a restart may have been: a failure is answered SUPERSEDED, ends it and counts for its worker."""
        job = self.state.by_id.get(event.job_id) if isinstance(event, events.Outcomes) else None
        if job is None:
            return False
        unknown = may_have_backup(job.template) and event.epoch < self.state.epoch
        return any(
            outcome.index in job.backups or (unknown and outcome.index in job.live) for outcome in event.outcomes
        )

    def _has_stopped(self, event: Any, worker: Worker | None) -> bool:
        """True for a report on what its worker was told to stop: it does not count, but the worker has that much less to stop."""
        if worker is None or not isinstance(event, events.Outcomes):
            return False
        tokens = {(event.job_id, outcome.index, event.epoch, outcome.attempt) for outcome in event.outcomes}
        return not tokens.isdisjoint(worker.stopping)

    def _refuses(self, event: Any, step: Step, *, known: bool) -> bool:
        """True when this event must not have changed anything."""
        match event:
            case events.Attach():
                return any(isinstance(e, effects.Refuse) and e.session == event.session for e in step.effects)
            case events.Outcomes() if known:
                return all(e.code not in _COUNTS for e in step.effects if isinstance(e, effects.SendVerdicts))
            case events.Detach() | events.Goodbye() | events.Credit() | events.Heartbeat() | events.Running():
                return not known
            case events.Outcomes():
                return True
        return any(isinstance(e, effects.Reply) and e.error is not None for e in step.effects)

    def _take(self, step: Step) -> list[Effect]:
        for seq, record in step.records:
            kind, body = codec.encode(record)
            if len(body) < 4096 and codec.encode(codec.decode(kind, body)) != (kind, body):
                raise Broken(f"record {seq} does not come back from the journal: {record}")
        self.records += step.records
        for effect in step.effects:
            if effect.after > self.state.seq:
                raise Broken(f"{effect} waits for a record that does not exist")
            if isinstance(effect, effects.SendTasks):
                self._sent(effect)
        return list(step.effects)

    def _sent(self, effect: effects.SendTasks) -> None:
        worker = self.state.sessions[effect.session]
        if len(worker.live) > max(worker.window, 0):
            raise Broken(f"I10: more than the credit of {worker.worker_id} is outstanding")
        for number, group in effect.groups:
            job_id = self.state.jobs[number].job_id
            self.issued += [(worker.worker_id, job_id, task.index, effect.epoch, task.attempt) for task in group]

    def check(self) -> None:
        """Invariants and bounds."""
        invariants.check(self.state)
        if len(self.state.timers) > TIMERS_MAX:
            raise Broken(f"{len(self.state.timers)} timers wait")
        if self.state.kept_bytes > CONFIG.payload_bytes_max + (1 << 20):
            raise Broken(f"{self.state.kept_bytes} bytes of payloads")

    def restart(self) -> None:
        """The process dies and another one replays what was recorded: it finds the same."""
        was = durable_parts(self.state)
        self.core = Core(CONFIG, random.Random(self.dice.random()))
        gone = {record.job for _, record in self.records if type(record).__name__ == "JobPurged"}
        for seq, record in self.records:
            number = codec.job_of(record)
            if number not in gone:
                self.core.replay(seq, codec.decode(*codec.encode(record)))
        is_now = durable_parts(self.state)
        for name, value in was.items():
            if is_now[name] != value:
                raise Broken(f"a replay gives other {name}: {is_now[name]} after {value}")
        self.give(events.Recover(wall_ns=self.wall_ns))

    def pass_time(self, ns: int) -> None:
        """Time passes in sweeps, as it does while the process is well; or in one leap, when it stood still."""
        for _ in range(min(ns // SWEEP_NS, 60)):
            self.now += SWEEP_NS
            self.give(events.Tick(wall_ns=self.wall_ns + self.now))
        self.now += ns
