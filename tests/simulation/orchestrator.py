"""An orchestrator process: the real core, with the driver, the sessions and the tie to the one above modelled around it.

Events are handled in batches and placed once; all records that gathered while a commit was under way go into the next one; an effect
leaves when the record that it names is durable. This repeats `services.orchestrator.runtime.driver` without asyncio, in the same order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from antfarm.errors import AntFarmError
from antfarm.link.session import Token
from antfarm.model import Ending, Failure, FailureClass, SessionId, TaskState, TaskTemplate
from services.orchestrator.core import effects, events, invariants, records
from services.orchestrator.core.effects import Effect, Reply
from services.orchestrator.core.machine import Core, Step
from services.orchestrator.core.records import Record
from services.orchestrator.core.turn import CoreConfig
from services.orchestrator.core.workers import offers
from tests.simulation.checks import ORCHESTRATOR, demand
from tests.simulation.disk import Disk
from tests.simulation.kernel import MS, SECOND, Process
from tests.simulation.link import Group, Link
from tests.simulation.network import REPORT, WORK, Wire

if TYPE_CHECKING:
    from tests.simulation.world import World

WINDOW = 8
"""Parents that an orchestrator asks for."""
WALL_NS = 1_700_000_000 * SECOND
CHECK_EVERY = 50
"""Batches between two looks at the core's own invariants, which cost as much as the state is large."""
Answer = Callable[[AntFarmError | None, bool], None]


class Orchestrator:
    """One orchestrator over all its lives. `upper` names the one above, if any."""

    def __init__(self, world: World, name: str, config: CoreConfig, upper: str | None, types: frozenset[str]) -> None:
        self.world, self.name, self.config, self.upper, self.types = world, name, config, upper, types
        self.process = Process(world.kernel, name)
        self.disk = Disk()
        self.wall_jump_ns = 0
        self.core: Core
        self.durable_seq = 0
        self.link: Link | None = None
        self.undisturbed_since_ns = 0
        """Since when it has neither died nor stood still nor waited for its disk."""

    # ---- life -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """A new process: replay, take over, serve."""
        kernel = self.world.kernel
        self.process.begin()
        self.process.clock_start_ns = kernel.dice.randrange(1, 10**6) * SECOND
        self._pending: list[tuple[int, Record]] = []
        self._held: list[Effect] = []
        self._inbox: list[events.Event] = []
        self._scheduled = self._tick_due = self._committing = self._stalled = False
        self._to_dial = False
        self._batches = 0
        self._sessions: dict[str, Wire] = {}
        self._early: dict[str, list[tuple[int, Any]]] = {}
        self._said_ns: dict[str, int] = {}
        """When each hello was sent, of connections too that have ended before it is read."""
        self._requests: dict[int, Answer] = {}
        self._reported: dict[Token, None] = {}
        self._said: dict[Token, None] = {}
        self._draining = self._drain_over = False
        self._fit_ns = 0
        """When somebody was attached last who can run what comes from above."""
        self._drains = 0
        """Which of them the next end of a drain is of."""
        self.undisturbed_since_ns = kernel.now
        self.core = Core(self.config, random.Random(kernel.dice.getrandbits(64)))
        for seq, record in self.disk.replay():
            self.core.replay(seq, record)
        self.durable_seq = self.core.state.seq
        self.world.checks.replayed(self)
        self._post_first()
        self._tick()

    def _post_first(self) -> None:
        if self.upper is not None:
            about: dict[str, Any] = {
                "slots": 4,
                "window": WINDOW,
                "task_types": self.types,
                "orchestrator": True,
                "descendants": (self.name,),
                "protocol_major": 1,
            }
            self.link = Link(self.world, self.process, self.upper, f"{ORCHESTRATOR}{self.name}", self, about)
            for parent in self.core.state.parents.values():
                self.link.session.hold(parent.token)
            self._to_dial, self._fit_ns = True, self.process.clock_ns
            self.process.later(200 * MS, self._watch_acks)
        self.post(events.Recover(wall_ns=self.wall_ns))

    def die(self, *, silent: bool = False) -> None:
        """SIGKILL or loss of power: a commit under way is there or not."""
        if not self.process.alive:
            return
        if self._committing and self.world.kernel.chance(0.5):
            self._write(self._in_flight)
        self.process.end()
        self.world.network.reset_all(self.process, silent=silent)
        self.world.checks.crashed(self)

    @property
    def wall_ns(self) -> int:
        """The wall clock, which may jump."""
        return WALL_NS + self.world.kernel.now + self.wall_jump_ns

    def disturb(self) -> None:
        """Note that its time does not run as it should."""
        self.undisturbed_since_ns = self.world.kernel.now

    # ---- driver -----------------------------------------------------------------------------------------------------

    def post(self, event: events.Event) -> None:
        """Hand in an event."""
        self._inbox.append(event)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self.process.later(50_000, self._turn)

    def _tick(self) -> None:
        low = self.disk.low or self._stalled
        if low != self.core.state.disk_low:
            self.post(events.DiskLow(low=low))
        if not self._stalled:
            self._tick_due = True
            self._schedule()
        due_ns = self.core.next_timer_ns()
        pause_ns = self.config.sweep_ns
        if due_ns is not None and not self._stalled:
            pause_ns = min(pause_ns, max(due_ns - self.process.clock_ns, 2 * MS))
        self.process.later(pause_ns, self._tick)

    def _turn(self) -> None:
        self._scheduled = False
        batch, self._inbox = self._inbox, []
        if self._tick_due:
            self._tick_due = False
            batch.append(events.Tick(wall_ns=self.wall_ns))
        now = self.process.clock_ns
        core, checks = self.core, self.world.checks
        for event in batch:
            due = checks.refusal_due(self, event) if isinstance(event, events.Attach) else None
            step = core.handle(event, now)
            checks.decided(self, step)
            if due is not None:
                checks.shut_out(step, due)
            self._take(step)
        step = core.place(now)
        checks.placed(self, step)
        self._take(step)
        self._batches += 1
        if self._batches % CHECK_EVERY == 0:
            invariants.check(core.state)
        if self._pending and not self._committing:
            self._begin_commit()

    def _take(self, step: Step) -> None:
        self._pending.extend(step.records)
        for effect in step.effects:
            assert effect.after <= self.core.state.seq, f"I5: {effect} waits for a record that does not exist"
            if effect.after <= self.durable_seq:
                self._release(effect)
            else:
                self._held.append(effect)

    def _begin_commit(self) -> None:
        self._committing = True
        self._in_flight, self._pending = self._pending, []
        self._try_commit()

    def _try_commit(self) -> None:
        if self.disk.full:
            self._stalled = True
            self.disturb()
            self._dial_first()
            self.process.later(SECOND, self._try_commit)
            return
        if self._stalled:
            self._stalled = False
            self.disturb()
        delay = int(self.disk.commit_ns * (0.5 + self.world.kernel.dice.random()))
        if delay > self.config.heartbeat_ns // 2:
            self.disturb()
        self.process.later(delay, self._committed)

    def _write(self, batch: Sequence[tuple[int, Record]]) -> None:
        self.disk.commit(batch)
        for _, record in batch:
            self.world.checks.durable(self, record)

    def _committed(self) -> None:
        batch = self._in_flight
        self._write(batch)
        self._committing = False
        self.durable_seq = batch[-1][0]
        held, self._held = self._held, []
        for effect in held:
            if effect.after <= self.durable_seq:
                self._release(effect)
            else:
                self._held.append(effect)
        self._dial_first()
        if self._pending:
            self._begin_commit()

    def _dial_first(self) -> None:
        """Once what ended in an earlier life has been reported to the link."""
        if self._to_dial and self.link is not None:
            self._to_dial = False
            self.link.dial()

    def io_error(self) -> None:
        """A failed fsync: what it left is unknown, the process stops and is started again."""
        self.world.kernel.note(self.name, "EIO")
        self.die()

    # ---- out --------------------------------------------------------------------------------------------------------

    def _release(self, effect: Effect) -> None:
        match effect:
            case Reply():
                answer = self._requests.pop(effect.request, None)
                if answer is not None:
                    answer(effect.error, effect.existed)
            case effects.Audit():
                self.world.checks.audited(self, effect.text)
            case effects.ReadPlan() | effects.FailParent() | effects.ReleaseParents() | effects.ReportParents():
                self._serve_parent(effect)
            case _:
                self._to_session(effect)

    def _to_session(self, effect: Any) -> None:
        wire = self._sessions.get(effect.session)
        if wire is None:
            return
        lane = WORK
        message: Any = None
        match effect:
            case effects.Welcome():
                owner, revoked = self.process.life, tuple(effect.revoked)
                message = ("welcome", owner, effect.epoch, effect.heartbeat_ns, effect.lease_ns, revoked)
            case effects.SendTasks():
                message = self._tasks_frame(effect)
            case effects.SendVerdicts():
                self.world.checks.verdict_leaves(self, effect, wire)
                lane, message = REPORT, ("verdicts", int(effect.code), list(effect.report_nos))
            case effects.SendRevoke():
                message = ("revoke", list(effect.tokens))
            case effects.AckHeartbeat():
                message = ("ack", effect.number, list(effect.revoked))
            case effects.SendDrain():
                message = ("drain", effect.limit_ns)
            case effects.Refuse():
                message = ("refuse", effect.error)
        early = self._early.get(effect.session)
        if isinstance(effect, effects.Welcome):
            wire.send(1, lane, message)
            for other_lane, other in self._early.pop(effect.session, ()):
                wire.send(1, other_lane, other)
        elif isinstance(effect, effects.Refuse):
            self.world.checks.session_ends(self, wire)
            wire.send(1, lane, message)
            self._close(wire)
        elif early is not None:
            early.append((lane, message))
        else:
            wire.send(1, lane, message)

    def open_sessions(self) -> list[tuple[SessionId, Wire]]:
        """Sessions that have not ended, with their wires."""
        return [(SessionId(session), wire) for session, wire in self._sessions.items()]

    def said_ns(self, effect: effects.Welcome | effects.AckHeartbeat) -> int:
        """When that was said which is answered here: a hello may have been on its way for long, and what has ended since no heartbeat says."""
        return self._said_ns[effect.session]

    def _tasks_frame(self, effect: effects.SendTasks) -> tuple[str, int, list[Group]]:
        groups: list[Group] = []
        for number, assigned in effect.groups:
            job = self.core.state.jobs.get(number)
            if job is None:
                continue
            assignments = [
                (task.index, task.attempt, task.payload, task.remaining_ns, task.app_failures) for task in assigned
            ]
            groups.append((job.job_id, job.template, assignments, job.batches[0].epoch))
            worker = self.core.state.sessions.get(effect.session)
            holder = worker.worker_id if worker is not None else ""
            self.world.checks.issued(self, holder, job, effect.epoch, assignments)
        return ("tasks", effect.epoch, groups)

    def _close(self, wire: Wire) -> None:
        session = wire.session
        wire.hang_up(1)
        if session is not None:
            self._end_session(session)

    def _end_session(self, session: str) -> None:
        if self._sessions.pop(session, None) is not None:
            self._early.pop(session, None)
            self.post(events.Detach(session=SessionId(session)))

    # ---- in ---------------------------------------------------------------------------------------------------------

    def heard(self, wire: Any, lane: int, message: Any) -> None:
        """A frame of a worker, or a request of a client."""
        match message:
            case ("request", make, answer):
                number = len(self._requests) + 1
                while number in self._requests:
                    number += 1
                self._requests[number] = answer
                self.post(make(number))
            case ("hello", hello):
                session = f"{self.name}.{self.world.next_number()}"
                wire.session = session
                self._sessions[session] = wire
                self._early[session] = []
                self._said_ns[session] = wire.opened_ns
                self.post(events.Attach(session=SessionId(session), **hello))
            case ("beat", number, frames, held) if wire.session:
                self.post(
                    events.Heartbeat(session=SessionId(wire.session), number=number, frames_received=frames, held=held)
                )
            case ("credit", window) if wire.session:
                self.post(events.Credit(session=SessionId(wire.session), window=window))
            case ("goodbye",) if wire.session:
                self.post(events.Goodbye(session=SessionId(wire.session)))
                self._end_session(wire.session)
            case ("reports", job_id, epoch, outcomes) if wire.session in self._sessions:
                self.post(
                    events.Outcomes(
                        session=SessionId(wire.session), job_id=job_id, epoch=epoch, outcomes=list(outcomes)
                    )
                )
            case ("running", word) if wire.session in self._sessions:
                self.post(events.Running(session=SessionId(wire.session), **word))

    def hung_up(self, wire: Wire) -> None:
        """A worker's or client's connection has ended."""
        if wire.session is not None:
            self._end_session(wire.session)

    # ---- as a worker of the one above -------------------------------------------------------------------------------

    def on_tasks(self, epoch: int, groups: list[Group]) -> None:
        """Parents to expand; while it is drained, to give back."""
        self._tell_acked()
        for job_id, template, assignments, since_epoch in groups:
            if self._draining:
                for index, attempt, _, _, _ in assignments:
                    if (job_id, index) not in self.core.state.parents:
                        self._give_back((job_id, index, epoch, attempt), never_started=True)
                assignments = [one for one in assignments if (job_id, one[0]) in self.core.state.parents]
                if not assignments:
                    continue
            left_ns = [remaining_ns for _, _, _, remaining_ns, _ in assignments if remaining_ns is not None]
            self.post(
                events.ParentsAssigned(
                    job_id=job_id,
                    epoch=epoch,
                    template=self.world.passed_down(template, max(left_ns, default=None)),
                    tasks=[
                        events.ParentTask(index, attempt, payload, app_failures)
                        for index, attempt, payload, _, app_failures in assignments
                    ],
                    since_epoch=since_epoch,
                )
            )
            if self._draining:
                self.post(events.ParentsDrained(over=self._drain_over))

    def on_revoke(self, tokens: list[Token], *, forgotten: bool) -> None:
        """Parents to give up."""
        assert self.link is not None
        self.post(events.ParentsRevoked(tokens=tokens, cause="revoked"))
        for token in tokens if not forgotten else ():
            _, index, _, attempt = token
            self._report(token, events.Outcome(report_no=0, index=index, attempt=attempt, ending=Ending.REVOKED))

    def on_welcome(self) -> None:
        """A drain is over, or is asked for again."""
        assert self.link is not None
        self._drains += 1
        self._draining = self._drain_over = False
        self.link.want(WINDOW)

    def on_drain(self, limit_ns: int) -> None:
        """Take no more, give back what has not begun, later everything."""
        assert self.link is not None
        self.link.want(0)
        self._drains += 1
        self._draining, self._drain_over = True, False
        self.post(events.ParentsDrained(over=False))
        self.process.later(limit_ns, self._end_drain, self._drains)

    def _end_drain(self, number: int) -> None:
        if number == self._drains:
            self._drain_over = True
            self.post(events.ParentsDrained(over=True))

    def on_judged(self, tokens: Sequence[Token]) -> None:
        """Acks are looked at from time to time, as the real one does."""

    def _serve_parent(self, effect: Any) -> None:
        if self.link is None:
            return
        match effect:
            case effects.ReadPlan():
                self.process.later(self._storage_ns(), self._read_plan, effect)
            case effects.FailParent():
                _, index, _, attempt = effect.token
                failed = events.Outcome(report_no=0, index=index, attempt=attempt, ending=Ending.FAILED)
                failed.failure = effect.failure
                self._report(effect.token, failed)
            case effects.ReleaseParents():
                self.world.checks.released(self, effect)
                for token in effect.tokens:
                    used = effect.app_failures.get(token, 0)
                    self._give_back(token, never_started=effect.never_started, app_failures=used)
            case effects.ReportParents():
                self._report_ends(effect)

    def _storage_ns(self) -> int:
        return int(MS + self.world.kernel.dice.random() * self.world.storage_ns)

    def _ended_tasks(self, seq: int, indices: Sequence[int]) -> dict[int, records.EndedTask] | None:
        return next((records.ended_tasks(record, indices) for _, record in self.disk.read([seq])), None)

    def _read_plan(self, effect: effects.ReadPlan) -> None:
        ended = self._ended_tasks(effect.result_seq, [0])
        template: TaskTemplate | None = None
        payloads: list[bytes] = []
        failure: Failure | None = None
        if ended is None:
            failure = Failure(failure_class=FailureClass.PERMANENT, kind="plan", message="it was purged")
        else:
            template, payloads = self.world.parse_plan(ended[0].result)
        self.post(
            events.ParentExpanded(
                parent=effect.parent, plan=effect.job, template=template, payloads=payloads, failure=failure
            )
        )

    def _report_ends(self, effect: effects.ReportParents) -> None:
        ended = self._ended_tasks(effect.seq, [end.local for end in effect.ends])
        for end in effect.ends:
            if ended is None:  # taken away from us and purged in the same commit
                parent = self.core.state.parents.get(end.token[:2])
                bound = parent is not None and (parent.epoch, parent.attempt) == end.token[2:]
                demand(not bound, "I13", end.token, "ended, and its record is not there")
                continue
            task = ended[end.local]
            self.world.checks.parent_reported(self, effect.seq, end, task)
            outcome = events.Outcome(
                report_no=0, index=end.token[1], attempt=end.token[3], ending=Ending.FAILED, failure=task.failure
            )
            if task.state is TaskState.SUCCEEDED:
                outcome.ending, outcome.result = Ending.SUCCEEDED, task.result
            elif outcome.failure is None:
                outcome.failure = Failure(failure_class=FailureClass.APP, kind="unknown", message="no failure")
            self._report(end.token, outcome)

    def _give_back(self, token: Token, *, never_started: bool, app_failures: int = 0) -> None:
        _, index, _, attempt = token
        outcome = events.Outcome(report_no=0, index=index, attempt=attempt, ending=Ending.RELEASED)
        outcome.never_started, outcome.app_failures = never_started, app_failures
        self._report(token, outcome)

    def _report(self, token: Token, outcome: events.Outcome) -> None:
        link = self.link
        assert link is not None
        if token in self._reported or token not in link.session.held:
            return
        self._reported[token] = None
        link.report(token, outcome)

    def _tell_acked(self) -> None:
        assert self.link is not None
        acked = [token for token in self._reported if token not in self.link.session.held]
        for token in acked:
            del self._reported[token]
        if acked:
            self.post(events.ParentsAcked(tokens=acked))

    def _is_fit(self) -> bool:
        """True when somebody attached can run or plan what comes from above."""
        below = [worker for worker in self.core.state.sessions.values() if not worker.orchestrator or worker.window]
        return any(offers(below, name) for own in self.types for name in (own, f"{own}:plan"))

    def _watch_acks(self) -> None:
        link = self.link
        assert link is not None
        below = {
            name for worker in self.core.state.sessions.values() if worker.orchestrator for name in worker.descendants
        }
        descendants = (self.name, *sorted(below - {self.name}))
        if descendants != link.about["descendants"]:
            link.about["descendants"] = descendants
        self._tell_acked()
        if self._is_fit():
            self._fit_ns = self.process.clock_ns
        deserted = self.process.clock_ns - self._fit_ns > self.config.lease_ns
        if self._draining or deserted:  # what turned out not to have begun
            self.post(events.ParentsDrained(over=self._drain_over))
        self.world.checks.did["deserted"] += deserted
        link.want(0 if self._draining or deserted or self.core.state.disk_low else WINDOW)
        for parent in self.core.state.parents.values():
            token = parent.token
            if (
                link.attached
                and parent.seq <= self.durable_seq
                and token not in self._said
                and token not in self._reported
            ):
                self._said[token] = None
                link.say_running(token, 0)
        self.process.later(200 * MS, self._watch_acks)
