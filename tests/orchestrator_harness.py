"""The orchestrator's core on a bench: a journal in memory, a clock that is moved by hand, seeded dice, workers that hold what they are sent.

`Harness` stands where the driver stands: it hands events in, commits records, and lets effects out when the records that they wait for are durable. After
every step it checks the invariants. What leaves the core must be claimed by the test (`claim`, `drop`); `close` fails when anything was not.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any, TypeVar

from antfarm.errors import AntFarmError
from antfarm.model import (
    SECOND_NS,
    Dependency,
    DependencyKind,
    Ending,
    Failure,
    FailureClass,
    JobId,
    JobSpec,
    RetryPolicy,
    SessionId,
    TaskState,
    TaskTemplate,
    VerdictCode,
    WorkerId,
)
from services.orchestrator.core import effects, events, invariants
from services.orchestrator.core.effects import Effect
from services.orchestrator.core.machine import Core
from services.orchestrator.core.records import Record
from services.orchestrator.core.state import Job, State
from services.orchestrator.core.turn import CoreConfig
from services.orchestrator.journal.memory import MemoryJournal

E = TypeVar("E")
Token = tuple[str, int, int, int]
SWEEP_NS = SECOND_NS // 4
WALL_NS = 1_700_000_000 * SECOND_NS


def template(task_type: str = "t", **fields: Any) -> TaskTemplate:
    """A template of one task type."""
    return TaskTemplate(type=task_type, **fields)


def retrying(attempts: int, pause_s: float = 1.0) -> RetryPolicy:
    """A retry policy with a constant pause."""
    return RetryPolicy(
        max_attempts=attempts, backoff_initial_ns=int(pause_s * SECOND_NS), backoff_max_ns=int(pause_s * SECOND_NS)
    )


def each(job_id: str, offset: int = 0) -> Dependency:
    """Task i waits for task i + offset of the job."""
    return Dependency(job_id=JobId(job_id), kind=DependencyKind.EACH, offset=offset)


def whole(job_id: str) -> Dependency:
    """Every task waits for the whole job."""
    return Dependency(job_id=JobId(job_id), kind=DependencyKind.ALL)


def failure(failure_class: FailureClass = FailureClass.APP, kind: str = "ValueError") -> Failure:
    """A failure of that class."""
    return Failure(failure_class=failure_class, kind=kind, message="it went wrong")


class Harness:
    """A core with everything around it, one step at a time."""

    def __init__(self, config: CoreConfig | None = None, seed: int = 1) -> None:
        self.config = config or CoreConfig()
        self.seed = seed
        self.journal = MemoryJournal()
        self.now = 1_000 * SECOND_NS
        self.wall_offset_ns = WALL_NS - self.now
        self.autocommit = True
        self.durable_seq = 0
        self.pending: list[tuple[int, Record]] = []
        self.held: list[Effect] = []
        self.sent: list[Effect] = []
        """Released and not claimed yet."""
        self.records: list[Record] = []
        """All that were ever made, for tests that look at them."""
        self.committed: list[Record] = []
        """Records that became durable, for whoever follows them; cleared by them."""
        self._numbers = iter(range(1, 1 << 30))
        self.core = self._make_core()
        self.do(events.Recover(wall_ns=self.wall_ns))

    def _make_core(self) -> Core:
        return Core(self.config, random.Random(self.seed))

    @property
    def state(self) -> State:
        """The core's state."""
        return self.core.state

    @property
    def wall_ns(self) -> int:
        """The wall clock."""
        return self.now + self.wall_offset_ns

    def job(self, job_id: str) -> Job:
        """The job of that id."""
        return self.state.by_id[job_id]

    def states(self, job_id: str) -> str:
        """The states of a job's tasks, a letter each: Waiting Queued Active Succeeded Failed Dead Cancelled Expired."""
        return "".join("?WQASFDCE"[state] for state in self.job(job_id).states)

    # ---- steps ------------------------------------------------------------------------------------------------------

    def do(self, event: events.Event) -> None:
        """One event, then placement, as the driver does it; then the commit unless it is held back."""
        self.now += 1_000
        self.feed(event)
        self.place()
        if self.autocommit:
            self.commit()

    def feed(self, event: events.Event) -> None:
        """One event of a batch; `place` ends the batch."""
        self._take(self.core.handle(event, self.now))

    def place(self) -> None:
        """The end of a batch."""
        step = self.core.place(self.now)
        self._take(step)
        for effect in step.effects:
            if isinstance(effect, effects.SendTasks):
                worker = self.state.sessions[effect.session]
                assert len(worker.live) <= worker.window, (
                    f"I10: more than the credit of {worker.worker_id} is outstanding"
                )
        invariants.check(self.state)

    def _take(self, step: Any) -> None:
        self.pending.extend(step.records)
        self.records.extend(record for _, record in step.records)
        for effect in step.effects:
            assert effect.after <= self.state.seq, f"{effect} waits for a record that does not exist"
            (self.sent if effect.after <= self.durable_seq else self.held).append(effect)

    def commit(self) -> None:
        """Make durable what was recorded, and let out what waited for it."""
        if self.pending:
            self.journal.append(self.pending)
            self.durable_seq = self.pending[-1][0]
            self.committed.extend(record for _, record in self.pending)
            self.pending.clear()
        waiting, self.held = self.held, []
        for effect in waiting:
            (self.sent if effect.after <= self.durable_seq else self.held).append(effect)

    def restart(self, *, after_s: float = 0.0) -> None:
        """SIGKILL and start: what was not committed is lost, and everything volatile with it; effects that had not left never do."""
        self.pending.clear()
        self.held.clear()
        self.now += int(after_s * SECOND_NS)
        self.core = self._make_core()
        for seq, record in self.journal.replay():
            self.core.replay(seq, record)
        invariants.check(self.state)
        self.durable_seq = self.state.seq
        self.do(events.Recover(wall_ns=self.wall_ns))

    def tick(self, seconds: float = 0.25) -> None:
        """Time passes at once, then one tick: more than a heartbeat looks as if the process had stood still."""
        self.now += int(seconds * SECOND_NS)
        self.do(events.Tick(wall_ns=self.wall_ns))

    def wait(self, seconds: float, beating: Iterable[Worker] = ()) -> None:
        """Time passes with a tick each sweep; the given workers beat and have their beats acknowledged."""
        until = self.now + int(seconds * SECOND_NS)
        beat_at = dict.fromkeys(beating, self.now)
        while self.now < until:
            self.now += min(SWEEP_NS, until - self.now)
            for worker, due in beat_at.items():
                if self.now >= due:
                    beat_at[worker] = due + self.config.heartbeat_ns // 2
                    worker.beat()
            self.do(events.Tick(wall_ns=self.wall_ns))

    # ---- effects ----------------------------------------------------------------------------------------------------

    def claim(self, cls: type[E], **fields: object) -> E:
        """The one effect of that class and those fields that has left; it counts as seen."""
        found = self.claim_all(cls, **fields)
        assert len(found) == 1, (
            f"{len(found)} of {cls.__name__} with {fields}, not 1: {found}; still there: {self.sent}"
        )
        return found[0]

    def claim_all(self, cls: type[E], **fields: object) -> list[E]:
        """All effects of that class and those fields that have left."""
        found: list[E] = []
        left: list[Effect] = []
        for effect in self.sent:
            if isinstance(effect, cls) and all(getattr(effect, name) == value for name, value in fields.items()):
                found.append(effect)
            else:
                left.append(effect)
        self.sent = left
        return found

    def drop(self, *classes: type[Any]) -> None:
        """Forget effects of those classes, all when none is given: the test is not about them."""
        self.sent = [effect for effect in self.sent if classes and not isinstance(effect, classes)]

    def close(self) -> None:
        """The end of a test: nothing may have left unseen."""
        assert not self.sent, f"left unclaimed: {self.sent}"
        assert not self.held, f"never released: {self.held}"

    # ---- clients ----------------------------------------------------------------------------------------------------

    def ask(self, make: Callable[[int], events.Event]) -> effects.Reply:
        """A request and its answer, which must come. Raises what it was refused with."""
        number = next(self._numbers)
        self.do(make(number))
        reply = self.claim(effects.Reply, request=number)
        if reply.error is not None:
            raise reply.error
        return reply

    def refusal(self, make: Callable[[int], events.Event]) -> AntFarmError:
        """A request that must be refused without a record; why it was."""
        before = self.state.seq
        number = next(self._numbers)
        self.do(make(number))
        reply = self.claim(effects.Reply, request=number)
        assert reply.error is not None, "it was not refused"
        assert self.state.seq == before, "a refused request must change nothing"
        return reply.error

    def create(
        self, job_id: str, payloads: int | Sequence[bytes] = 1, *, close: bool = True, **spec: Any
    ) -> effects.Reply:
        """CreateJob; `spec` takes fields of JobSpec, and those of TaskTemplate beside `type`."""
        return self.ask(lambda number: create_event(number, job_id, payloads, close=close, **spec))

    def append(self, job_id: str, first: int, payloads: int | Sequence[bytes], *, close: bool = False) -> effects.Reply:
        """AppendTasks."""
        return self.ask(lambda number: append_event(number, job_id, first, payloads, close=close))

    def cancel(self, job_id: str, cause: str = "") -> effects.Reply:
        """CancelJob."""
        return self.ask(lambda n: events.CancelJob(request=n, job_id=JobId(job_id), cause=cause))

    def cancel_task(self, job_id: str, index: int, cause: str = "") -> effects.Reply:
        """CancelTask."""
        return self.ask(lambda n: events.CancelTask(request=n, job_id=JobId(job_id), index=index, cause=cause))

    def close_job(self, job_id: str) -> effects.Reply:
        """CloseJob."""
        return self.ask(lambda n: events.CloseJob(request=n, job_id=JobId(job_id)))

    def purge(self, job_id: str) -> effects.Reply:
        """PurgeJob."""
        return self.ask(lambda n: events.PurgeJob(request=n, job_id=JobId(job_id)))

    def pause(self, job_id: str, *, paused: bool = True) -> effects.Reply:
        """PauseJob or ResumeJob."""
        return self.ask(lambda n: events.PauseJob(request=n, job_id=JobId(job_id), paused=paused))

    def retry(self, job_id: str, new_job_id: str) -> effects.Reply:
        """RetryJob."""
        return self.ask(lambda n: events.RetryJob(request=n, job_id=JobId(job_id), new_job_id=JobId(new_job_id)))

    # ---- workers ----------------------------------------------------------------------------------------------------

    def worker(self, worker_id: str = "w1", slots: int = 1, **fields: Any) -> Worker:
        """A worker that has attached. `fields` as in Attach; the window is the slots unless told otherwise."""
        worker = Worker(self, worker_id, slots, **fields)
        worker.attach()
        return worker


def payloads_of(payloads: int | Sequence[bytes], first: int = 0) -> list[bytes]:
    """That many distinct payloads, or those given."""
    return [b"%d" % i for i in range(first, first + payloads)] if isinstance(payloads, int) else list(payloads)


def spec_of(**fields: Any) -> JobSpec:
    """A JobSpec of fields of both JobSpec and TaskTemplate."""
    names = {"name", "priority", "dependencies", "max_failures"}
    of_job = {name: fields.pop(name) for name in names & fields.keys()}
    if "template" in fields:
        return JobSpec(template=fields.pop("template"), **of_job)
    return JobSpec(template=template(**{"task_type": fields.pop("type", "t"), **fields}), **of_job)


def create_event(
    number: int, job_id: str, payloads: int | Sequence[bytes] = 1, *, close: bool = True, **spec: Any
) -> events.CreateJob:
    """CreateJob as an event."""
    return events.CreateJob(
        request=number, job_id=JobId(job_id), spec=spec_of(**spec), payloads=payloads_of(payloads), close=close
    )


def append_event(
    number: int, job_id: str, first: int, payloads: int | Sequence[bytes], *, close: bool = False
) -> events.AppendTasks:
    """AppendTasks as an event."""
    return events.AppendTasks(
        request=number,
        job_id=JobId(job_id),
        first_index=first,
        payloads=payloads_of(payloads, first),
        close=close,
    )


class Worker:
    """A worker process as the core sees it: it holds what it was sent until a final verdict, as the protocol says."""

    def __init__(self, harness: Harness, worker_id: str, slots: int, types: Sequence[str] = ("t",), **fields: Any):
        self.harness = harness
        self.worker_id = worker_id
        self.slots = slots
        self.window = fields.pop("window", slots)
        self.types = frozenset(types)
        self.fields = fields
        self.incarnation = f"{worker_id}-1".encode()
        self.session = SessionId("")
        self.attached = 0
        self.frames = 0
        self.beats = 0
        self.held: dict[Token, bytes] = {}
        """Token -> payload, of all that it answers for."""
        self.finished: Container[Token] = ()
        """Those of the held ones whose report has no final verdict yet, as its hellos say."""
        self.reports: dict[int, Token] = {}
        self.next_report = 1

    def hello(self) -> events.Attach:
        """Its next hello, on a new stream."""
        self.attached += 1
        self.frames = 0
        self.session = SessionId(f"{self.worker_id}.{self.attached}")
        return events.Attach(
            session=self.session,
            worker_id=WorkerId(self.worker_id),
            incarnation=self.incarnation,
            protocol_major=self.fields.get("protocol_major", 1),
            slots=self.slots,
            window=self.window,
            task_types=self.types,
            held=list(self.held),
            unacked=[token for token in self.held if token in self.finished],
            **{
                "dial": self.attached,
                **{name: value for name, value in self.fields.items() if name != "protocol_major"},
            },
        )

    def attach(self) -> effects.Welcome:
        """Hello and Welcome; what the welcome revokes is forgotten."""
        self.harness.do(self.hello())
        welcome = self.harness.claim(effects.Welcome, session=self.session)
        self.forget(welcome.revoked)
        return welcome

    def refused(self) -> AntFarmError:
        """A hello that is refused; why."""
        self.harness.do(self.hello())
        self.harness.claim(effects.Audit)
        return self.harness.claim(effects.Refuse, session=self.session).error

    def die(self) -> None:
        """Its process is killed, and another one starts in its place with nothing."""
        self.detach()
        self.reborn()
        self.attach()

    def reborn(self) -> None:
        """The process is another one, with the same id, which found the outbox of the last one empty."""
        self.incarnation = self.incarnation + b"+"
        self.held.clear()

    def forget(self, tokens: Iterable[Token]) -> None:
        """Stop and forget."""
        for token in tokens:
            self.held.pop(token, None)

    def detach(self) -> None:
        """Its stream breaks."""
        self.harness.do(events.Detach(session=self.session))

    def goodbye(self) -> None:
        """It leaves."""
        self.harness.do(events.Goodbye(session=self.session))

    def credit(self, window: int) -> None:
        """It sets its window."""
        self.window = window
        self.harness.do(events.Credit(session=self.session, window=window))

    def take(self) -> list[Token]:
        """Claims all Tasks frames for this session; the tokens in them, which it holds from now on."""
        taken: list[Token] = []
        for frame in self.harness.claim_all(effects.SendTasks, session=self.session):
            self.frames += 1
            for number, assigned in frame.groups:
                if number not in self.harness.state.jobs:
                    continue  # purged while the frame waited
                job_id = self.harness.state.jobs[number].job_id
                for task in assigned:
                    token = (job_id, task.index, frame.epoch, task.attempt)
                    self.held[token] = task.payload
                    taken.append(token)
        return taken

    def beat(self, held: Iterable[Token] | None = None, frames: int | None = None) -> list[Token]:
        """A heartbeat and its acknowledgement; what that revokes, which is forgotten."""
        self.beats += 1
        self.harness.do(
            events.Heartbeat(
                session=self.session,
                number=self.beats,
                frames_received=self.frames if frames is None else frames,
                held=list(self.held if held is None else held),
            )
        )
        ack = self.harness.claim(effects.AckHeartbeat, session=self.session)
        assert ack.number == self.beats
        self.forget(ack.revoked)
        return list(ack.revoked)

    def outcome(self, token: Token, ending: Ending = Ending.SUCCEEDED, **fields: Any) -> events.Outcome:
        """An outcome of an attempt under a new report number."""
        number, self.next_report = self.next_report, self.next_report + 1
        self.reports[number] = token
        if ending is Ending.SUCCEEDED:
            fields.setdefault("result", b"result of %d" % token[1])
        return events.Outcome(report_no=number, index=token[1], attempt=token[3], ending=ending, **fields)

    def send(self, job_id: str, epoch: int, outcomes: Sequence[events.Outcome]) -> dict[int, VerdictCode]:
        """Outcomes of one job and epoch; the verdicts by report number. What has a final one is forgotten."""
        self.harness.do(events.Outcomes(session=self.session, job_id=job_id, epoch=epoch, outcomes=outcomes))
        return self.verdicts()

    def verdicts(self) -> dict[int, VerdictCode]:
        """Claims the verdicts that have come."""
        verdicts: dict[int, VerdictCode] = {}
        for effect in self.harness.claim_all(effects.SendVerdicts, session=self.session):
            for number in effect.report_nos:
                assert number not in verdicts, "two verdicts on one report"
                verdicts[number] = effect.code
                self.held.pop(self.reports[number], None)
        return verdicts

    def report(self, token: Token, ending: Ending = Ending.SUCCEEDED, **fields: Any) -> VerdictCode:
        """The end of one attempt; the verdict on it."""
        outcome = self.outcome(token, ending, **fields)
        return self.send(token[0], token[2], [outcome])[outcome.report_no]

    def fail(self, token: Token, failure_class: FailureClass = FailureClass.APP) -> VerdictCode:
        """An attempt failed."""
        return self.report(token, Ending.FAILED, failure=failure(failure_class))

    def release(self, token: Token, *, never_started: bool = True) -> VerdictCode:
        """An attempt is handed back."""
        return self.report(token, Ending.RELEASED, never_started=never_started)

    def running(self, token: Token, running_for_s: float = 0.25, **fields: Any) -> None:
        """A word from a running attempt."""
        self.harness.do(
            events.Running(
                session=self.session,
                job_id=token[0],
                index=token[1],
                epoch=token[2],
                attempt=token[3],
                running_for_ns=int(running_for_s * SECOND_NS),
                **fields,
            )
        )

    def run(self, tokens: Iterable[Token] | None = None) -> None:
        """Succeeds with all that it holds, or with those given."""
        for token in list(self.held if tokens is None else tokens):
            assert self.report(token) is VerdictCode.ACCEPTED


def keep_busy(farm: Harness, *workers: Worker) -> None:
    """Each of them, the only ones in the farm, takes a task of job `busy` and wants no more."""
    for worker in workers:
        worker.credit(1)
    farm.create("busy", len(workers))
    for worker in workers:
        worker.take()
        worker.credit(0)


def crowd_out(farm: Harness, worker: Worker) -> None:
    """Narrow tasks of job `narrow` end there one at a time, until it is kept for others, and one more."""
    while farm.state.kept_for is None:
        worker.take()
        worker.run([next(iter(worker.held))])
        farm.wait(1, beating=[worker])
    worker.take()
    worker.run([next(iter(worker.held))])


def straggler(farm: Harness, run_s: int = 1, **spec: Any) -> tuple[Worker, Token]:
    """w1 on host a has done three of the four tasks of job j, each in so many seconds, and runs the last: (w1, that one)."""
    worker = farm.worker("w1", slots=4, host="a")
    farm.create("j", 4, **{"idempotent": True, **spec})
    *short, last = worker.take()
    worker.running(last, 0.0)
    for token in short:
        assert worker.report(token, run_us=run_s * 1_000_000) is VerdictCode.ACCEPTED
    return worker, last


def durable_parts(state: State) -> dict[str, Any]:
    """What replay must make of the records: everything that is not rebuilt from workers and clocks."""
    return {
        "seq": state.seq,
        "epoch": state.epoch,
        "history_gap": state.history_gap,
        "lost_epochs": list(state.lost_epochs),
        "next_job": state.next_job,
        "seen": dict(state.seen),
        "kept_bytes": state.kept_bytes,
        "parents": [
            (p.token, p.template, p.payload, p.seq, p.job, p.local, p.bound_wall_ns) for p in state.parents.values()
        ],
        "jobs": {number: _durable_job(job) for number, job in state.jobs.items()},
    }


def _durable_job(job: Job) -> dict[str, Any]:
    plain = ("number", "job_id", "spec", "retry_of", "created_wall_ns", "closed", "paused", "cancelled", "cancelled_seq", "cause",
             "ended_wall_ns", "ended_seq", "retried", "kept_bytes")  # fmt: skip
    return {
        **{name: getattr(job, name) for name in plain},
        "payloads": list(job.payloads),
        "digests": list(job.digests),
        "outcomes": list(job.outcome_seqs),
        "winners": list(job.winners),
        "result_seqs": list(job.result_seqs),
        "batches": list(job.batches),
        "ended": {index: state for index, state in enumerate(job.states) if state >= TaskState.SUCCEEDED},
        "counts": {
            index: (
                note.app_failures,
                note.crashes,
                note.infra_failures,
                note.suspected,
                dict(note.suspected_on),
                note.last_failure,
                set(note.failed_on),
                note.failed_wall_ns,
                note.pause_ns,
            )
            for index, note in job.notes.items()
            if note.app_failures or note.crashes or note.infra_failures
        },
    }
