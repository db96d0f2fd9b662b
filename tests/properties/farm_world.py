"""The world around a core: clients, workers, an orchestrator above, a disk, clocks; and all that each of them can do wrong.

`ACTIONS` lists what can happen with its parameters and how often it should; Hypothesis and plain seeds both draw from it. After each action everything
that left the core is delivered, and held against the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from farm_model import Key, Model, Token
from orchestrator_harness import Harness, Worker, append_event, create_event, durable_parts, each, failure, whole

from antfarm.errors import IncarnationLost
from antfarm.model import (
    SECOND_NS,
    ConcurrencyLimit,
    Ending,
    FailureClass,
    JobId,
    RetryPolicy,
    SessionId,
    TaskState,
    TaskTemplate,
    Timeouts,
    VerdictCode,
    WorkerId,
)
from services.orchestrator.core import effects, events, explain, records, story
from services.orchestrator.core.state import Job, Probation
from services.orchestrator.core.state import Worker as KnownWorker
from services.orchestrator.core.turn import CoreConfig
from services.orchestrator.core.waiting import Scene

CONFIG = CoreConfig(
    heartbeat_ns=SECOND_NS,
    orphan_hold_ns=30 * SECOND_NS,
    orchestrator_lease_ns=8 * SECOND_NS,
    probe_first_ns=3 * SECOND_NS,
    probe_max_ns=10 * SECOND_NS,
)
WORKERS = ["w1", "w2", "w3"]
TYPES = ("t", "r", "s:plan", "s:summarise", "child")
SMALL = list(range(8))

ACTIONS: list[tuple[int, str, dict[str, list[Any]]]] = [
    (3, "create", {
        "count": [0, 1, 2, 3, 4], "close": [True, False], "once": [False, False, False, True], "fence": [False, False, True],
        "twice": [True, False], "cpu": [None, None, None, 2.0],
        "attempts": [1, 2, 3], "total_s": [None, None, None, None, 10], "queue_s": [None, None, None, None, 5],
        "limit": [None, None, None, 1], "needs": ["", "", "", "each", "whole"], "on": SMALL,
    }),
    (1, "append", {"job": SMALL, "count": [1, 2, 3], "close": [True, False], "back": [0, 1, 2]}),
    (2, "manage", {"job": SMALL, "index": [0, 1, 2, 3, 4], "what": ["close", "close", "cancel", "task", "pause", "resume", "resume", "purge", "purge"]}),
    (1, "assign_parent", {"index": [0, 1, 1], "again": [True, False, False]}),
    (1, "revoke_parent", {"index": [0, 1], "really": [True, False, False]}),
    (1, "drain_from_above", {"over": [False, False, True]}),
    (1, "answer_parent", {"children": [0, 1, 2], "good": [True, True, False]}),
    (4, "attach", {"name": WORKERS}),
    (2, "come_and_go", {"name": WORKERS, "what": ["detach", "detach", "crash", "crash", "wipe", "goodbye", "drain", "undrain"]}),
    (1, "credit", {"name": WORKERS, "window": [0, 1, 3, 3, 4]}),
    (3, "beat", {"name": WORKERS}),
    (1, "lose_an_assignment", {"name": WORKERS, "which": SMALL}),
    (6, "finish", {"name": WORKERS, "how": ["ok", "ok", "ok", "app", "permanent", "crash", "infra", "release", "unstarted"], "times": [1, 1, 2]}),
    (4, "finish_all", {"name": WORKERS}),
    (3, "run_for_long", {"name": WORKERS, "which": SMALL, "seconds": [0, 30, 60]}),
    (1, "straggle", {"seconds": [30, 60]}),
    (2, "fail_all", {"name": WORKERS, "how": ["app", "infra", "infra"]}),
    (1, "resend", {"name": WORKERS, "turn": SMALL}),
    (1, "report_a_strangers_token", {"name": WORKERS, "which": list(range(50)), "good": [True, False]}),
    (1, "report_a_token_from_nowhere", {"name": WORKERS, "job": SMALL, "index": [0, 1, 5], "attempt": [0, 1, 2, 9]}),
    (4, "wait", {"sweeps": [1, 2, 4, 12]}),
    (1, "stand_still", {"seconds": [2, 10, 30]}),
    (1, "wall_clock_jumps", {"seconds": [-100, -1, 1, 100]}),
    (2, "disk", {"slow": [True, False, False]}),
    (1, "restart", {"committed": [True, False]}),
]  # fmt: skip
"""(how often, name of a method of World, parameter -> what it may be)."""


class Process:
    """A worker process with everything that the protocol makes it do."""

    def __init__(self, harness: Harness, worker_id: str) -> None:
        self.worker = Worker(harness, worker_id, 2, types=TYPES, window=3, host=worker_id)
        self.attached = False
        self.outbox: dict[Token, tuple[Ending, dict[str, Any]]] = {}
        """Token -> how it ended, until its final verdict (I6)."""
        self.worker.finished = self.outbox
        self.births = 0
        self.new_incarnation()

    def new_incarnation(self) -> None:
        """Another process, or one that was told to be."""
        self.births += 1
        self.worker.incarnation = f"{self.worker.worker_id}/{self.births}".encode()

    @property
    def unreported(self) -> list[Token]:
        """Attempts that it works on."""
        return [token for token in self.worker.held if token not in self.outbox]

    def forget(self, tokens: Iterable[Token]) -> None:
        """Stop and forget, reports included."""
        for token in tokens:
            self.worker.held.pop(token, None)
            self.outbox.pop(token, None)


class World:
    """One farm and its model."""

    def __init__(self) -> None:
        self.harness = Harness(CONFIG, seed=7)
        self.model = Model()
        self.processes: dict[str, Process] = {}
        self.asked: dict[int, Callable[[], None]] = {}
        """Request number -> what its answer proves."""
        self.requests = 1_000
        self.names = 0
        self.plans: list[tuple[Key, int]] = []
        """Parents whose plan waits to be read."""
        self.tokens_from_above: dict[int, tuple[int, int]] = {}
        self.reports_above: dict[Key, tuple[int, int]] = {}
        self.revoked: set[Token] = set()
        """What workers were asked to stop: no report of it counts (I8)."""
        self.settle()

    # ---- delivery ---------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Everything that left the core reaches whom it was meant for."""
        for effect in (*self.harness.sent, *self.harness.held):
            if isinstance(effect, effects.SendRevoke):
                self.revoked.update(effect.tokens)
        for record in self.harness.committed:
            self.model.became_durable(record)
        self.harness.committed.clear()
        for reply in self.harness.claim_all(effects.Reply):
            proves = self.asked.pop(reply.request, None)
            if proves is not None and reply.error is None:
                proves()
        for process in self.processes.values():
            self._deliver(process)
        self._deliver_above()
        for audit in self.harness.claim_all(effects.Audit):
            self.model.worked[audit.text.partition(":")[0]] += 1
        self.model.worked["alone"] += any(alone.running for alone in self.harness.state.alone.values())
        # Frames that came before their welcome wait for it; the rest was meant for streams that are no more.
        waiting = {process.worker.session for process in self.processes.values() if not process.attached}
        self.harness.sent = [effect for effect in self.harness.sent if getattr(effect, "session", None) in waiting]

    def _deliver(self, process: Process) -> None:
        harness, worker = self.harness, process.worker
        for welcome in harness.claim_all(effects.Welcome, session=worker.session):
            assert welcome.epoch in self.model.epochs, "I5: a welcome under an epoch that is not durable"
            process.attached = True
            process.forget(welcome.revoked)
        for ack in harness.claim_all(effects.AckHeartbeat, session=worker.session):
            process.forget(ack.revoked)
        if process.attached:
            for token in worker.take():
                self.model.assigned(worker.worker_id, token)
        for verdicts in harness.claim_all(effects.SendVerdicts, session=worker.session):
            for number in verdicts.report_nos:
                token = worker.reports[number]
                self.model.worked[verdicts.code.name] += 1
                holder = self.model.holder(token)
                if verdicts.code is VerdictCode.ACCEPTED:
                    assert holder == worker.worker_id, f"I8: a stranger's report of {token} counted"
                if verdicts.code is VerdictCode.SUPERSEDED and holder == worker.worker_id:
                    self._superseded(process, token)
                if holder in (worker.worker_id, None):
                    process.forget([token])
        for refuse in harness.claim_all(effects.Refuse, session=worker.session):
            process.attached = False
            worker.session = SessionId("")
            if isinstance(refuse.error, IncarnationLost):
                process.new_incarnation()

    def _superseded(self, process: Process, token: Token) -> None:
        """A success that no longer counts: its task has another end. (What a hello or a heartbeat revoked is not in the outbox any more.)"""
        job = self.harness.state.by_id.get(token[0])
        ending = process.outbox.get(token)
        if job is not None and ending is not None and ending[0] is Ending.SUCCEEDED:
            ended = job.states[token[1]] >= TaskState.SUCCEEDED
            fenced = token in self.revoked or job.template.fence_late_results
            assert ended or fenced, f"I6: the late success {token} was turned away"

    def _deliver_above(self) -> None:
        self.plans.extend((read.parent, read.job) for read in self.harness.claim_all(effects.ReadPlan))
        ends = [effect.token for effect in self.harness.claim_all(effects.FailParent)]
        for report in self.harness.claim_all(effects.ReportParents):
            assert report.seq <= report.after <= self.harness.durable_seq, "I5: reported above before it is durable"
            for _, record in self.harness.journal.read([report.seq]):  # none: purged meanwhile
                assert records.ended_tasks(record, [end.local for end in report.ends]), "I19: no end was reported"
            ends += [end.token for end in report.ends]
        for job_id, index, epoch, attempt in ends:
            self.reports_above[job_id, index] = (epoch, attempt)
            self.model.worked["reported above"] += 1

    def do(self, event: events.Event) -> None:
        """One event, and all that comes of it."""
        self.harness.do(event)
        self.settle()

    def ask(self, make: Callable[[int], events.Event], proves: Callable[[], None] = lambda: None) -> None:
        """A request; `proves` runs when it was answered without an error."""
        self.requests += 1
        self.asked[self.requests] = proves
        self.do(make(self.requests))

    # ---- clients ----------------------------------------------------------------------------------------------------

    def create(self, count: int, needs: str, on: int, **wanted: Any) -> None:
        """A job of a new name, or of one that was purged."""
        self.names += 1
        name = f"job{self.names % 12}"
        if name in self.harness.state.by_id:
            return
        others = [job_id for job_id in self.harness.state.by_id if not job_id.startswith("up/")]
        needed = [(each if needs == "each" else whole)(others[on % len(others)])] if others and needs else []
        limit = wanted["limit"]
        spec: dict[str, Any] = {
            "at_most_once": wanted["once"],
            "fence_late_results": wanted["fence"],
            "idempotent": wanted["twice"],
            "resources": {"cpu": wanted["cpu"]} if wanted["cpu"] is not None else {},
            "retry": RetryPolicy(
                max_attempts=wanted["attempts"], backoff_initial_ns=SECOND_NS, backoff_max_ns=2 * SECOND_NS
            ),
            "timeouts": Timeouts(
                total_ns=wanted["total_s"] and wanted["total_s"] * SECOND_NS,
                queue_ns=wanted["queue_s"] and wanted["queue_s"] * SECOND_NS,
            ),
            "limit": ConcurrencyLimit(name="web", max_active=limit) if limit is not None else None,
            "dependencies": tuple(needed),
        }
        self.model.depends(name, [(other.job_id, needs == "whole") for other in needed])
        keys = [(name, index) for index in range(count)]
        for key in keys:
            self.model.promise(key, at_most_once=wanted["once"])
        self.ask(lambda n: create_event(n, name, count, close=wanted["close"], **spec), lambda: self.acknowledge(keys))

    def acknowledge(self, keys: list[Key]) -> None:
        """The client was told that these are safe."""
        for task in (self.model.tasks[key] for key in keys if key in self.model.tasks):  # others were purged meanwhile
            assert task.durable, f"I5: {keys} were acknowledged before they are durable"
            task.acknowledged = True

    def job_id(self, job: int) -> str | None:
        """One of the clients' jobs."""
        names = [job_id for job_id in self.harness.state.by_id if not job_id.startswith("up/")]
        return names[job % len(names)] if names else None

    def append(self, job: int, count: int, close: bool, back: int) -> None:
        """More tasks, the last of which may be there already."""
        job_id = self.job_id(job)
        if job_id is None:
            return
        there = self.harness.job(job_id)
        first = max(there.task_count - back, 0)
        keys = [(job_id, index) for index in range(first, first + count)]
        if not (there.closed or there.cancelled):
            for key in keys:
                self.model.promise(key, at_most_once=there.template.at_most_once)
        self.ask(lambda n: append_event(n, job_id, first, count, close=close), lambda: self.acknowledge(keys))

    def manage(self, job: int, index: int, what: str) -> None:
        """What a client does with a job that is there."""
        name = self.job_id(job)
        if name is None:
            return
        job_id = JobId(name)
        match what:
            case "close":
                self.ask(lambda n: events.CloseJob(request=n, job_id=job_id))
            case "cancel":
                number = self.harness.job(name).number
                self.ask(
                    lambda n: events.CancelJob(request=n, job_id=job_id, cause="tired"),
                    lambda: self.model.cancelled.add(number),
                )
            case "task":
                self.ask(lambda n: events.CancelTask(request=n, job_id=job_id, index=index, cause=""))
            case "purge":
                self.ask(lambda n: events.PurgeJob(request=n, job_id=job_id))
            case _:
                self.ask(lambda n: events.PauseJob(request=n, job_id=job_id, paused=what == "pause"))

    # ---- the orchestrator above -------------------------------------------------------------------------------------

    def assign_parent(self, index: int, again: bool) -> None:
        """A task comes from above: under a newer token, or as a repetition; with neighbours where it is not planned here."""
        epoch = 1
        tasks = []
        for task in (index,) if index else (0, 50, 51):
            _, attempt = self.tokens_from_above.get(task, (epoch, 0))
            attempt += 0 if again and attempt else 1
            self.tokens_from_above[task] = (epoch, attempt)
            tasks.append(events.ParentTask(task, attempt, b"[]"))
        template = TaskTemplate(type="s" if index else "r", retry=RetryPolicy(max_attempts=2))
        self.do(events.ParentsAssigned(job_id="top", epoch=epoch, template=template, tasks=tasks))

    def revoke_parent(self, index: int, really: bool) -> None:
        """It is taken away again, or what is taken away is an older token."""
        token = self.tokens_from_above.get(index)
        if token is not None:
            attempt = token[1] if really else token[1] - 1
            self.do(events.ParentsRevoked(tokens=[("top", index, token[0], attempt)], cause=""))

    def drain_from_above(self, over: bool) -> None:
        """What has not begun goes back, or everything; what is given back was bound, and is so no more."""
        bound = {parent.token for parent in self.harness.state.parents.values()}
        self.do(events.ParentsDrained(over=over))
        for effect in self.harness.claim_all(effects.ReleaseParents):
            assert effect.after <= self.harness.durable_seq, "I5: given back before it is durable"
            assert bound.issuperset(effect.tokens), "I19: what is given back was held"
            assert not {parent.token for parent in self.harness.state.parents.values()} & set(effect.tokens), (
                "and is not any more"
            )
            self.model.worked["given back above"] += len(effect.tokens)

    def answer_parent(self, children: int, good: bool) -> None:
        """A plan is read, and a report acknowledged."""
        if self.plans:
            parent, plan = self.plans.pop(0)
            self.do(
                events.ParentExpanded(
                    parent=parent,
                    plan=plan,
                    template=TaskTemplate(type="child") if good else None,
                    payloads=[b"%d" % number for number in range(children)],
                    failure=None if good else failure(FailureClass.PERMANENT),
                )
            )
        for key, token in list(self.reports_above.items()):
            del self.reports_above[key]
            self.do(events.ParentsAcked(tokens=[(*key, *token)]))

    # ---- workers ----------------------------------------------------------------------------------------------------

    def attach(self, name: str) -> None:
        """A hello on a new stream."""
        process = self.processes.setdefault(name, Process(self.harness, name))
        process.attached = False
        self.do(process.worker.hello())

    def attached(self, name: str) -> Process | None:
        """The process, when it is attached."""
        process = self.processes.get(name)
        return process if process is not None and process.attached else None

    def come_and_go(self, name: str, what: str) -> None:
        """Streams break, processes die with or without their disk, leave in order, are drained."""
        process = self.processes.get(name)
        if what in ("drain", "undrain"):
            self.ask(
                lambda n: events.DrainWorker(request=n, worker_id=WorkerId(name), drain=what == "drain", limit_ns=1)
            )
        elif process is not None and what == "goodbye":
            if process.attached and not process.worker.held:
                process.attached = False
                process.new_incarnation()
                session, process.worker.session = process.worker.session, SessionId("")
                self.do(events.Goodbye(session=session))
        elif process is not None:
            process.attached = False
            if what != "detach":
                process.new_incarnation()
                process.worker.held = dict.fromkeys(process.outbox, b"") if what == "crash" else {}
            if what == "wipe":
                process.outbox.clear()
            session, process.worker.session = process.worker.session, SessionId("")
            self.do(events.Detach(session=session))

    def credit(self, name: str, window: int) -> None:
        """Another window."""
        process = self.attached(name)
        if process is not None:
            process.worker.window = window
            self.do(events.Credit(session=process.worker.session, window=window))

    def beat(self, name: str) -> None:
        """A heartbeat with what is held."""
        process = self.attached(name)
        if process is not None:
            worker = process.worker
            worker.beats += 1
            beat = events.Heartbeat(
                session=worker.session, number=worker.beats, frames_received=worker.frames, held=list(worker.held)
            )
            self.do(beat)

    def lose_an_assignment(self, name: str, which: int) -> None:
        """An assignment is lost inside the worker before anything was done: it does not hold it any more."""
        process = self.attached(name)
        if process is not None and process.unreported:
            token = process.unreported[which % len(process.unreported)]
            del process.worker.held[token]
            self.model.never_started.add(token)
            self.beat(name)

    # ---- reports ----------------------------------------------------------------------------------------------------

    def finish(self, name: str, how: str, times: int) -> None:
        """An attempt ends, and is reported when the worker is attached."""
        process = self.processes.get(name)
        if process is not None and process.unreported:
            token = process.unreported[0]
            process.outbox[token] = self._ending(token, how)
            self._report(process, [token] * times)

    def run_for_long(self, name: str, which: int, seconds: int) -> None:
        """A word of a running attempt. One that runs for long may be given a backup."""
        process = self.attached(name)
        if process is not None and process.unreported:
            job_id, index, epoch, attempt = process.unreported[which % len(process.unreported)]
            self.do(
                events.Running(
                    session=process.worker.session,
                    job_id=job_id,
                    index=index,
                    epoch=epoch,
                    attempt=attempt,
                    running_for_ns=seconds * SECOND_NS,
                )
            )

    def straggle(self, seconds: int) -> None:
        """All tasks of a new job succeed but one, which runs for long."""
        self.create(4, "", 0, close=True, once=False, fence=False, twice=True, cpu=None, attempts=2, total_s=None, queue_s=None, limit=None)  # fmt: skip
        job_id = f"job{self.names % 12}"
        for _ in range(4):
            for name, process in self.processes.items():
                for token in [token for token in process.unreported if token[0] == job_id]:
                    if token[1] == 3:
                        self.run_for_long(name, process.unreported.index(token), seconds)
                    else:
                        process.outbox[token] = self._ending(token, "ok")
                        self._report(process, [token])
        self.wait(sweeps=6)

    def finish_all(self, name: str) -> None:
        """All that it holds succeeds."""
        process = self.processes.get(name)
        if process is not None:
            for token in process.unreported:
                process.outbox[token] = self._ending(token, "ok")
            self._report(process, list(process.outbox))

    def fail_all(self, name: str, how: str) -> None:
        """All that it holds fails."""
        process = self.processes.get(name)
        if process is not None:
            for token in process.unreported:
                process.outbox[token] = self._ending(token, how)
            self._report(process, list(process.outbox))

    def _ending(self, token: Token, how: str) -> tuple[Ending, dict[str, Any]]:
        match how:
            case "ok":
                self.model.results[token] = b"%r" % (token,)
                return Ending.SUCCEEDED, {"result": self.model.results[token]}
            case "release":
                return Ending.RELEASED, {"never_started": False}
            case "unstarted":
                self.model.never_started.add(token)
                return Ending.RELEASED, {"never_started": True}
            case _:
                return Ending.FAILED, {"failure": failure(FailureClass[how.upper()])}

    def _report(self, process: Process, tokens: list[Token]) -> None:
        if not process.attached:
            return
        groups: dict[tuple[str, int], list[Token]] = {}
        for token in tokens:
            groups.setdefault((token[0], token[2]), []).append(token)
        for (job_id, epoch), members in groups.items():
            outcomes = [
                process.worker.outcome(token, process.outbox[token][0], **process.outbox[token][1]) for token in members
            ]
            session = process.worker.session
            self.harness.do(events.Outcomes(session=session, job_id=job_id, epoch=epoch, outcomes=outcomes))
        self.settle()

    def resend(self, name: str, turn: int) -> None:
        """Everything without a verdict again, in another order."""
        process = self.attached(name)
        if process is not None and process.outbox:
            tokens = list(process.outbox)
            cut = turn % len(tokens)
            self._report(process, (tokens[cut:] + tokens[:cut])[::-1])

    def report_a_strangers_token(self, name: str, which: int, good: bool) -> None:
        """A worker reports what was issued to another one in this epoch. (Of an earlier one the credential must tell.)"""
        process = self.attached(name)
        epoch = self.harness.state.epoch
        foreign = [token for token, owner in self.model.issued.items() if owner != name and token[2] == epoch]
        if process is not None and foreign:
            self._changes_nothing(process, foreign[which % len(foreign)], Ending.SUCCEEDED if good else Ending.RELEASED)

    def report_a_token_from_nowhere(self, name: str, job: int, index: int, attempt: int) -> None:
        """A worker reports what was issued to nobody."""
        process, job_id = self.attached(name), self.job_id(job)
        if process is None or job_id is None:
            return
        token = (job_id, index, self.harness.state.epoch, attempt)
        there = self.harness.job(job_id)
        live, note = there.live.get(index), there.notes.get(index)
        made = (live is not None and live.token == token) or (note is not None and token[2:] in note.past)
        if token not in self.model.issued and not made:  # what was made may be on its way, or never have got there
            self._changes_nothing(process, token, Ending.SUCCEEDED)

    def _changes_nothing(self, process: Process, token: Token, ending: Ending) -> None:
        before = durable_parts(self.harness.state)
        states = {job.job_id: bytes(job.states) for job in self.harness.state.jobs.values()}
        outcome = process.worker.outcome(token, ending)
        session = process.worker.session
        self.harness.feed(events.Outcomes(session=session, job_id=token[0], epoch=token[2], outcomes=[outcome]))
        assert durable_parts(self.harness.state) == before, (
            f"I8: {token} from {process.worker.worker_id} changed something"
        )
        assert {job.job_id: bytes(job.states) for job in self.harness.state.jobs.values()} == states, f"I8: {token}"
        self.harness.place()
        self.settle()

    # ---- time, disk, crashes ----------------------------------------------------------------------------------------

    def wait(self, sweeps: int) -> None:
        """Time passes."""
        for _ in range(sweeps):
            self.harness.now += CONFIG.sweep_ns
            self.do(events.Tick(wall_ns=self.harness.wall_ns))

    def stand_still(self, seconds: int) -> None:
        """The process is stopped for a while; nobody is lost for it, neither at once nor by the next sweep."""
        workers = self.harness.state.workers
        well = [w for w in workers.values() if self.harness.now - w.heard_ns + 2 * CONFIG.sweep_ns < w.lease_ns]
        well = [worker for worker in well if not worker.lost]
        self.harness.now += seconds * SECOND_NS
        self.do(events.Tick(wall_ns=self.harness.wall_ns))
        self.wait(1)
        for worker in well:
            assert not worker.lost, f"{worker.worker_id} was lost while the orchestrator stood still"

    def wall_clock_jumps(self, seconds: int) -> None:
        """Somebody sets the clock."""
        self.harness.wall_offset_ns += seconds * SECOND_NS

    def disk(self, slow: bool) -> None:
        """While it is slow nothing becomes durable, and nothing that waits for that leaves."""
        self.harness.autocommit = not slow
        if not slow:
            self.harness.commit()
            self.settle()

    def restart(self, committed: bool) -> None:
        """SIGKILL and start, with or without what was on its way to the disk; replay makes what live handling made."""
        live = None
        if committed:
            self.harness.commit()
            self.settle()
            live = durable_parts(self.harness.state)
        for process in self.processes.values():
            process.attached, process.worker.session = False, SessionId("")
        self.asked.clear()
        self.plans.clear()
        self.reports_above.clear()
        self.model.crashed()
        self.harness.restart()
        if live is not None:
            replayed = durable_parts(self.harness.state)
            assert (replayed.pop("epoch"), replayed.pop("seq")) == (live.pop("epoch") + 1, live.pop("seq") + 1)
            assert replayed == live, "replay does not equal live"
        self.model.worked["restarts"] += 1
        self.settle()

    # ---- checks -----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """What holds in every state, beside the core's own invariants, which the harness checks."""
        state = self.harness.state
        for job in state.jobs.values():
            for backup in job.backups.values():
                self.model.runs_beside_another(backup.token)
        going = {record.job for _, record in self.harness.pending if isinstance(record, records.JobPurged)}
        numbers = {job_id: number for number, job_id in self.model.jobs.items() if number not in going}
        for (job_id, index), task in self.model.tasks.items():
            if job_id not in numbers:
                continue
            job = state.jobs.get(numbers[job_id])
            if task.acknowledged:
                assert job is not None, f"I1: {job_id} is lost"
                assert index < job.task_count, f"I1: {job_id}/{index} is lost"
            if task.recorded and job is not None:
                assert TaskState(job.states[index]).name == task.recorded, f"I3: {job_id}/{index} has changed"
        for job in state.jobs.values():
            for index, note in job.notes.items():
                where = f"{job.job_id}/{index}"
                assert note.app_failures < job.template.retry.max_attempts, f"I17: app retries of {where}"
                unproven = note.suspected_on.values()
                assert note.crashes < CONFIG.crashes_max + 1 + sum(unproven), f"I17: crashes of {where}"
                assert note.infra_failures <= CONFIG.infra_failures_max, f"I17: losses of {where}"

        for worker in state.quarantined.values():
            self._probes_in_time(worker.quarantine)
        for probation in state.paused_types.values():
            self._probes_in_time(probation)
        if self._left_over_anywhere():
            # What one worker leaves to the next because it failed there may take a second pass: at the latest with the next tick.
            self.harness.do(events.Tick(wall_ns=self.harness.wall_ns))
            self.settle()
            left = self._left_over_anywhere()
            assert not left, f"L6: these wait although a fit worker is free: {left}"
        self._explain_everything()

    def _explain_everything(self) -> None:
        """Whatever a task waits for has words."""
        harness = self.harness
        scene = Scene(state=harness.state, config=harness.config, now=harness.now, wall_ns=harness.wall_ns)
        for job in harness.state.jobs.values():
            assert explain.job(scene, job) is not None
            for index, state in enumerate(job.states):
                if state < TaskState.SUCCEEDED:
                    text = str(explain.bounded(explain.task(scene, job, index)))
                    assert text, f"nothing is said of {job.job_id}/{index}"
                    assert "Nothing keeps it" not in text, f"nothing explains why {job.job_id}/{index} waits"
                elif state == TaskState.FAILED and not job.winners[index]:
                    story.culprit(job, index)

    def _probes_in_time(self, probation: Probation | None) -> None:
        assert probation is not None
        assert probation.due_ns <= self.harness.now + CONFIG.probe_max_ns, "L8: the next probe comes too late"

    def _left_over_anywhere(self) -> list[tuple[str, str, int]]:
        state = self.harness.state
        return [
            (worker.worker_id, job.job_id, index)
            for worker in state.workers.values()
            if worker.assignable and len(worker.live) < worker.window
            for job in state.jobs.values()
            for index in self._left_over(worker, job)
        ]

    def _left_over(self, worker: KnownWorker, job: Job) -> list[int]:
        """Ready tasks of the job that the worker could have been given."""
        template, limit = job.template, job.lane.limit
        if (
            job.paused
            or template.type in self.harness.state.paused_types
            or template.type not in worker.task_types
            or (limit is not None and limit.room_for(job.lane) == 0)
        ):
            return []
        kept_for = self.harness.state.kept_for
        if kept_for is not None and kept_for.worker is worker and kept_for.lane is not job.lane:
            return []
        if worker.live and worker.taken + job.lane.slots > worker.window:
            return []
        spread = [i for start, end in job.ready._ranges for i in range(start, end)] + list(job.ready._returned)
        others = [
            other.worker_id
            for other in self.harness.state.workers.values()
            if other.assignable and template.type in other.task_types
        ]
        return [
            index
            for index in spread
            if job.states[index] == TaskState.QUEUED
            and not (
                index in job.notes
                and self.harness.now < job.notes[index].avoid_until_ns
                and worker.worker_id in job.notes[index].failed_on
                and any(other not in job.notes[index].failed_on for other in others)
            )
        ]

    def heal(self) -> None:
        """The faults stop: everything must come to its end (L1), no slot leak (L3), no report stay without a verdict."""
        self.disk(slow=False)
        for job_id in [job_id for job_id in self.harness.state.by_id if not job_id.startswith("up/")]:
            self.ask(lambda n, job_id=job_id: events.PauseJob(request=n, job_id=job_id, paused=False))  # type: ignore[misc]
            self.ask(lambda n, job_id=job_id: events.CloseJob(request=n, job_id=job_id))  # type: ignore[misc]
        for name in WORKERS:
            self.attach(name)
            self.come_and_go(name, "undrain")
            self.credit(name, 3)
        for _ in range(400):
            self._work()
            if not self.model.unended and not self.model.parents:
                break
            self.harness.now += CONFIG.sweep_ns
            self.do(events.Tick(wall_ns=self.harness.wall_ns))
        else:
            raise AssertionError(
                f"L1: these never end: {[self._why(key) for key in self.model.unended]} {self.model.parents}"
            )
        self._work()
        for name in WORKERS:
            self.beat(name)
            assert not self.harness.state.workers[name].live, f"L3: slots of {name} leak"
            assert not self.processes[name].outbox, f"L4: reports of {name} without a verdict"
        assert all(limit.live == 0 for limit in self.harness.state.limits.values()), "L3: limits leak"

    def _work(self) -> None:
        """Everybody does what is right."""
        for name in WORKERS:
            if self.attached(name) is None:
                self.attach(name)
            self.credit(name, 3)
            self.beat(name)
            self.finish_all(name)
        self.answer_parent(children=1, good=True)

    def _why(self, key: Key) -> str:
        job = self.harness.job(key[0])
        attempt = job.live.get(key[1])
        held = f"{attempt.worker.worker_id} {attempt.token}" if attempt is not None else "nobody"
        return f"{key} {TaskState(job.states[key[1]]).name} held by {held}, note {job.notes.get(key[1])}"
