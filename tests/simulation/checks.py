"""The checkers: what was promised, submitted, issued, started, reported and made durable, and which invariant an event breaks.

Nothing here is taken from a core but what it says aloud: what leaves it, and what is written to its disk. One ledger per orchestrator
holds over all its lives. A failure starts with the name of the invariant (semantics section 14).
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mypy_extensions import mypyc_attr

from antfarm.errors import AntFarmError, IncarnationLost, ProtocolUnsupported, WorkerIdInUse
from antfarm.link.session import UNACKED_MAX, Token
from antfarm.model import PROTOCOL_MAJOR, BlobRef, Ending, FailureClass, TaskState, VerdictCode
from services.orchestrator.core import effects, events, invariants, records
from services.orchestrator.core.events import Outcome
from services.orchestrator.core.lanes import PARENT_PREFIX
from services.orchestrator.core.machine import Step
from services.orchestrator.core.records import Record
from services.orchestrator.core.reports import QUARANTINED
from services.orchestrator.core.state import Job, State
from tests.simulation.kernel import MS

if TYPE_CHECKING:
    from tests.simulation.link import Link
    from tests.simulation.network import Wire
    from tests.simulation.orchestrator import Orchestrator
    from tests.simulation.worker import Worker
    from tests.simulation.world import World

Key = tuple[str, int]
ORCHESTRATOR = "orchestrator-"
"""What the names of down-stream orchestrators begin with, as workers."""
PROBES = (
    *("ACCEPTED", "DUPLICATE", "SUPERSEDED", "FENCED", "UNKNOWN_TASK"),
    *("SUCCEEDED", "FAILED", "DEAD_LETTER", "CANCELLED", "EXPIRED"),
    *("app failures", "crash failures", "infra failures", "losses", "late successes", "adopted successes"),
    *("late successes revoked", "restored backups", "detections", "drains", "purged", "cancels", "stages", "swept"),
    *("begun parents released", "undrained", "deserted"),
    *("audit lost", "audit refused", "audit fenced", "refused: WorkerIdInUse", "refused: IncarnationLost"),
    *("shut out: WorkerIdInUse", "shut out: ProtocolUnsupported"),
)
"""What some run of many must have done, or the simulation does not reach its rare branches."""


@mypyc_attr(native_class=False)  # compiled classes cannot be exceptions
class Violation(AssertionError):
    """An invariant does not hold."""


def demand(holds: bool, invariant: str, *what: object) -> None:
    """Fail with the invariant's name unless it holds."""
    if not holds:
        raise Violation(f"{invariant}: {' '.join(map(str, what))}")


@dataclass(slots=True)
class Task:
    """What is known of one task."""

    durable: bool = False
    state: TaskState | None = None
    """Terminal and durable."""
    winner: tuple[int, int] = (0, 0)
    counts: Counter[FailureClass] = field(default_factory=Counter)
    outputs: tuple[BlobRef, ...] = ()
    """The recorded manifest."""
    failed: dict[tuple[int, int], bool] = field(default_factory=dict)
    """(epoch, attempt) of durable failures -> whether it was only lost."""


@dataclass
class Ledger:
    """Everything about one orchestrator's queue."""

    tasks: dict[Key, Task] = field(default_factory=dict)
    jobs: dict[int, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    specs: dict[str, Any] = field(default_factory=dict)
    births: dict[Key, int] = field(default_factory=dict)
    """Task -> epoch in which it was added: tokens of earlier epochs are of one of that name that is no more, or never became durable."""
    issued: dict[Token, str] = field(default_factory=dict)
    content: dict[Token, bytes] = field(default_factory=dict)
    """What was to be done under a token."""
    payloads: dict[Key, bytes] = field(default_factory=dict)
    """What is to be done for a task."""
    stopped_ns: dict[Token, int] = field(default_factory=dict)
    """Attempt -> when its worker said that upon which it was decided that it should stop and forget it."""
    recalled: dict[Token, int] = field(default_factory=dict)
    """Tokens that were taken back from a worker in quarantine: no report of them counts."""
    newest: dict[Key, tuple[int, int]] = field(default_factory=dict)
    journaled: dict[Token, str] = field(default_factory=dict)
    """At-most-once tokens whose record is durable."""
    sent: dict[Token, Outcome] = field(default_factory=dict)
    """What the holder of a token reported first."""
    starts: dict[Key, list[int]] = field(default_factory=dict)
    """Epochs of attempts of at-most-once tasks that were begun."""
    unstarted: dict[Token, None] = field(default_factory=dict)
    """At-most-once tokens whose holder said that it never started, or does not hold it."""
    accepted: dict[Token, None] = field(default_factory=dict)
    purged: dict[Key, tuple[int, int] | None] = field(default_factory=dict)
    """Tasks that ended and were purged since -> their winners, None of those that did not succeed."""
    purged_jobs: dict[str, None] = field(default_factory=dict)
    cancelled: dict[str, None] = field(default_factory=dict)
    """Jobs whose cancel was acknowledged."""
    epoch: int = 0
    parents: dict[Key, tuple[int, int]] = field(default_factory=dict)
    relays: dict[Key, tuple[int, int]] = field(default_factory=dict)
    """Parents that one task here stands for -> (job number, index) of that."""
    let_go: dict[Token, tuple[int, int]] = field(default_factory=dict)
    """The same of tokens of those for which it stands no more."""
    restored: int = 0
    restored_ns: int = 0
    restored_epoch: int = 0
    undone: list[tuple[int, int]] = field(default_factory=list)
    """First and last of each row of epochs that a restored backup has undone."""

    def is_undone(self, token: Token) -> bool:
        """Whether nobody knows any more of which job it was."""
        return any(first <= token[2] <= last for first, last in self.undone)


class Checks:
    """All checkers, and what the run did: a run in which little happened proves nothing."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ledgers: defaultdict[str, Ledger] = defaultdict(Ledger)
        self.did: Counter[str] = Counter()
        self.open_reports: dict[Link, dict[Token, Outcome]] = {}
        self.lost_ns: dict[tuple[str, str], int] = {}
        """(orchestrator, worker) -> when it was last declared lost."""
        self.strangers: dict[bytes, None] = {}
        """Incarnations of twins."""
        self.reported_ns: dict[tuple[str, Token], int] = {}
        """(orchestrator, attempt) -> when its end was first reported."""
        self.told: dict[tuple[str, int, int], Token] = {}
        """(orchestrator, record of an end, index of its task) -> the parent that was told this failure."""
        self.began_ns: dict[tuple[str, Token], int] = {}
        """(orchestrator, attempt) -> when a worker began to run it."""
        self.purging_ns: dict[tuple[str, int], int] = {}
        """(orchestrator, number of a job) -> when its purge was decided."""
        self.purged_ns: dict[tuple[str, str], int] = {}
        """(orchestrator, job) -> when the last purge of one of that id was decided that is durable."""
        self.obeyed: dict[Link, int] = {}
        self.died_with: dict[tuple[str, Token], int] = {}
        """Attempt -> how many ran on its worker when that died: it, and those that were not told to stop."""

    def ledger(self, owner: str) -> Ledger:
        """The ledger of an orchestrator."""
        return self.ledgers[owner]

    # ---- clients ----------------------------------------------------------------------------------------------------

    def submission_acked(self, owner: str, job_id: str, first: int, count: int) -> None:
        """A client was told that these tasks are taken."""
        ledger = self.ledger(owner)
        if job_id in ledger.purged_jobs:
            return
        demand(ledger.sizes.get(job_id, -1) >= first + count, "I5", job_id, "was acknowledged before it was durable")

    def cancel_acked(self, owner: str, job_id: str) -> None:
        """A client was told that a job is cancelled."""
        ledger = self.ledger(owner)
        if job_id in ledger.purged_jobs:
            return  # perhaps made anew in the same commit, by a client that repeats itself
        for index in range(ledger.sizes.get(job_id, 0)):
            demand(
                ledger.tasks[job_id, index].state is not None, "I16", job_id, index, "goes on after its cancel was told"
            )
        ledger.cancelled[job_id] = None
        self.did["cancels"] += 1

    # ---- what leaves an orchestrator ----------------------------------------------------------------------------------

    def issued(
        self,
        owner: Orchestrator,
        worker_id: str,
        job: Job,
        epoch: int,
        assignments: Sequence[tuple[int, int, bytes, int | None, int]],
    ) -> None:
        """Assignments leave for a worker."""
        ledger = self.ledger(owner.name)
        demand(epoch <= ledger.epoch, "I12", "an assignment of epoch", epoch, "leaves before that is durable")
        for index, attempt, payload, _, _ in assignments:
            token, key = (job.job_id, index, epoch, attempt), (job.job_id, index)
            demand(token not in ledger.issued, "I7", token, "is issued twice")
            newest = ledger.newest.get(key, (0, 0))
            demand((epoch, attempt) > newest, "I7", token, "is not above", newest)
            if job.job_id.startswith(PARENT_PREFIX):
                demand(key in ledger.tasks, "I19", token, "leaves before its expansion is durable")
            if job.backups.get(index) is not None and job.backups[index].token == token:
                self.did["backups"] += 1
            elif newest[0] >= ledger.births.get(key, epoch):
                self._repeats(owner, ledger, key, newest)
            if job.template.at_most_once:
                demand(token in ledger.journaled, "I11", token, "leaves before it is durable")
                others = [t for t in ledger.journaled if t[:2] == key and t != token and t not in ledger.unstarted]
                demand(not others, "I11", token, "although these may have started:", others)
            for dependency in job.spec.dependencies:
                self._needs(ledger, dependency, index, token)
            ledger.issued[token], ledger.content[token] = worker_id, payload
            ledger.newest[key] = (epoch, attempt)
        self.did["assigned"] += len(assignments)

    def _repeats(self, owner: Orchestrator, ledger: Ledger, key: Key, older: tuple[int, int]) -> None:
        """Section 1: what a worker in contact still holds is not given to another."""
        spec = ledger.specs.get(key[0])
        if spec is not None and spec.template.idempotent:
            return  # it may have a backup
        token, task = (*key, *older), ledger.tasks.get(key)
        where = self.world.worker_by_name.get(ledger.issued.get(token, ""))
        if where is not None and where.process.alive and where.link.minor == 0:
            return  # its late hello cannot be told from its last one
        holder = self.world.worker_by_name.get(ledger.issued.get(token, ""))
        if holder is None or not holder.process.alive or token not in holder.link.session.held or task is None:
            return
        if (
            token in ledger.recalled
            or token[2:] in task.failed
            or token in ledger.sent
            or older[0] < ledger.restored_epoch
        ):
            return
        known = owner.core.state.workers.get(holder.name)
        if known is not None and known.incarnation != holder.link.session.incarnation:
            return  # while it was away another process came in its name, which is taken for its successor
        silent_ns = self.world.kernel.now - self.world.network.arrived_ns.get((holder.name, owner.name), 0)
        in_contact = holder.link.attached and silent_ns < owner.config.lease_ns // 2
        demand(not in_contact, "L5", key, "is repeated while", holder.name, "holds it as", token)

    def _needs(self, ledger: Ledger, dependency: Any, index: int, token: Token) -> None:
        needed = dependency.job_id
        if needed not in ledger.sizes:
            return  # purged: then it had ended
        whole = dependency.kind.name == "ALL"
        indexes = range(ledger.sizes[needed]) if whole else [index + dependency.offset]
        states = [task.state if (task := ledger.tasks.get((needed, i))) else None for i in indexes]
        demand(all(state is not None for state in states), "I5", token, "leaves before what it needs is durable")
        demand(
            whole or states == [TaskState.SUCCEEDED], "I13", token, "leaves although what it needs has not succeeded"
        )

    def decided(self, owner: Orchestrator, step: Step) -> None:
        """An event was handled. What a quarantine takes back is nobody's from now on, also before its worker knows."""
        for _, record in step.records:
            if isinstance(record, records.JobPurged):
                self.purging_ns[owner.name, record.job] = self.world.kernel.now
        for effect in step.effects:
            if isinstance(effect, effects.SendRevoke) and effect.cause == QUARANTINED:
                self.ledger(owner.name).recalled.update(dict.fromkeys(effect.tokens, owner.process.life))
                self.did["recalled"] += len(effect.tokens)
            elif isinstance(effect, (effects.Welcome, effects.AckHeartbeat)):
                for token in effect.revoked:
                    self.ledger(owner.name).stopped_ns.setdefault(token, owner.said_ns(effect))

    def placed(self, owner: Orchestrator, step: Step) -> None:
        """A placement pass is over."""
        ledger, state = self.ledger(owner.name), owner.core.state
        for effect in step.effects:
            if isinstance(effect, effects.SendTasks):
                for number, assigned in effect.groups:
                    if number not in ledger.jobs:
                        continue  # not durable yet, perhaps made anew under the id of another
                    for key in ((state.jobs[number].job_id, given.index) for given in assigned):
                        task = ledger.tasks.get(key)
                        demand(task is None or task.state is None, "I3", key, "is given out though it has ended")
                worker = state.sessions.get(effect.session)
                demand(
                    worker is None or len(worker.live) <= worker.window,
                    "I10",
                    effect.session,
                    "got more than its credit",
                )

    def session_ends(self, owner: Orchestrator, wire: Wire) -> None:
        """A session of a worker ends by the orchestrator's will: not for an older hello of the same worker, which is late."""
        link: Any = wire.ends[0]
        if not hasattr(link, "session"):
            return  # a stranger's
        for session, other in owner.open_sessions():
            newer = other.ends[0] is link and other.opened_ns < wire.opened_ns and session in owner.core.state.sessions
            demand(not (newer and link.minor), "I9", link.worker_id, "loses its session to a hello of before")

    def verdict_leaves(self, owner: Orchestrator, effect: effects.SendVerdicts, wire: Wire) -> None:
        """Verdicts leave for a worker: what they say must be durable."""
        if wire.lives[0] != wire.ends[0].process.life:
            return
        link: Any = wire.ends[0]
        if not hasattr(link, "session"):
            return
        ledger = self.ledger(owner.name)
        unacked = dict(link.session.unacked())
        for number in effect.report_nos:
            if number in unacked:
                token, outcome = unacked[number]
                self._verdict(ledger, effect.code, token, outcome)

    def _verdict(self, ledger: Ledger, code: VerdictCode, token: Token, outcome: Outcome) -> None:
        self.did[code.name] += 1
        if token[2] < ledger.births.get(token[:2], 0):
            return  # of a job of that id that was purged since
        task = ledger.tasks.get((token[0], token[1]))
        won = task is not None and task.state is TaskState.SUCCEEDED and task.winner == token[2:]
        gone = task is None and token[:2] in ledger.purged
        won = won or (gone and ledger.purged[token[:2]] == token[2:])
        if outcome.ending is Ending.SUCCEEDED:
            match code:
                case VerdictCode.ACCEPTED:
                    demand(won, "I5", token, "was told ACCEPTED before its success is durable")
                case VerdictCode.DUPLICATE:
                    demand(won, "I5", token, "was told DUPLICATE, but its success is not recorded")
                case VerdictCode.SUPERSEDED:
                    spec = ledger.specs.get(token[0])
                    given_up = task is not None and task.failed.get(token[2:]) is False
                    fenced = (
                        token in ledger.recalled
                        or token in ledger.stopped_ns
                        or (spec is not None and spec.template.fence_late_results)
                    )
                    demand(
                        task is None or task.state is not None or given_up or fenced,
                        "I9",
                        token,
                        "succeeded, nothing else stands, and it was told SUPERSEDED",
                    )
                    demand(not won, "I9", token, "won and was told SUPERSEDED")
                case VerdictCode.FENCED:
                    demand(token not in ledger.issued, "I8", token, "was issued and is FENCED")
                case VerdictCode.UNKNOWN_TASK:
                    demand(task is None or ledger.is_undone(token), "I1", token, "was told that its task is unknown")
        elif outcome.ending in (Ending.FAILED, Ending.TIMED_OUT) and code is VerdictCode.ACCEPTED:
            ended = gone or (task is not None and (task.state is not None or token[2:] in task.failed))
            spec = ledger.specs.get(token[0])
            beside_a_backup = spec is not None and spec.template.idempotent  # such an end costs nothing
            ran_out = outcome.failure is not None and outcome.failure.failure_class is FailureClass.EXPIRED
            demand(
                ended or beside_a_backup or ran_out, "I5", token, "failed and was told ACCEPTED before that is durable"
            )
            if ended:  # what costs nothing is not recorded, and may be accepted again after a restart
                demand(token not in ledger.accepted, "I9", token, "failed once and was accepted twice")
                ledger.accepted[token] = None

    def parent_reported(self, owner: Orchestrator, seq: int, end: effects.ParentEnd, ended: records.EndedTask) -> None:
        """A parent's end is told up-stream: one failure under one token, or it is counted twice; a success of this task, not of one that had its name."""
        if ended.state is not TaskState.SUCCEEDED:
            before = self.told.setdefault((owner.name, seq, end.local), end.token)
            demand(before == end.token, "I9", end.token, "is told the failure of", before)
            return
        upper, key = owner.upper or "", end.token[:2]
        above, here = self.ledger(upper), self.ledger(owner.name)
        if above.restored or key not in above.tasks or end.token[2] < above.births[key]:
            return
        for _, record in owner.disk.read([seq]):
            job_id = here.jobs.get(getattr(record, "job", 0), "")
            began_ns = self.began_ns.get((owner.name, (job_id, end.local, ended.epoch, ended.attempt)))
            purged_ns = self.purged_ns.get((upper, key[0]), 0)
            demand(
                began_ns is None or began_ns >= purged_ns, "I2", end.token, "is told the success of a task of its name"
            )

    def audited(self, owner: Orchestrator, text: str) -> None:
        """A line of the audit log."""
        self.did[f"audit {text.split(':')[0]}"] += 1
        words = text.split()
        if words[0] == "quarantine:":
            able = sum(known.able for known in owner.core.state.workers.values())
            away = sum(known.able for known in owner.core.state.quarantined.values())
            demand(3 * away <= max(able, 3), "section 8", away, "of", able, "workers are in quarantine")
        if words[0] == "lost:":
            self.lost_ns[owner.name, words[2]] = self.world.kernel.now
            self._false_expiry(owner, words[2])

    def _false_expiry(self, owner: Orchestrator, worker_id: str) -> None:
        """Section 5: nobody whose word has arrived within its lease is declared lost, read or not."""
        kernel, worker = self.world.kernel, owner.core.state.workers[worker_id]
        link = self.world.link_of(worker_id)
        if link is None or link.session.incarnation != worker.incarnation:
            return  # another process of it knocks, and is refused while the old one may live
        network, direction = self.world.network, (worker_id.removeprefix(ORCHESTRATOR), owner.name)
        # A word that waits in the socket came too late when the silence before it was longer than the lease.
        silent_ns = max(kernel.now - network.arrived_ns.get(direction, 0), network.silence_ns.get(direction, 0))
        if kernel.now - owner.undisturbed_since_ns < worker.lease_ns:
            silent_ns += owner.config.sweep_ns + owner.config.heartbeat_ns // 2  # a pause is noticed by its end
        demand(
            silent_ns * 1.02 + 60 * MS > worker.lease_ns,
            "section 5",
            worker_id,
            "is declared lost, heard",
            silent_ns,
            "ns ago",
        )

    # ---- what becomes durable -----------------------------------------------------------------------------------------

    def durable(self, owner: Orchestrator, record: Record) -> None:
        """A record was written."""
        ledger = self.ledger(owner.name)
        match record:
            case records.EpochStarted():
                demand(record.epoch > ledger.epoch, "I12", "epoch", record.epoch, "after", ledger.epoch)
                if record.history_gap:
                    ledger.undone.append((ledger.epoch + 1, record.epoch - 1))
                ledger.epoch = record.epoch
                self.did["history gaps"] += record.history_gap
            case records.JobCreated():
                demand(record.job_id not in ledger.sizes, "I19", "there are two jobs", record.job_id)
                ledger.jobs[record.job], ledger.sizes[record.job_id] = record.job_id, 0
                ledger.specs[record.job_id] = record.spec
                if record.job_id.startswith(PARENT_PREFIX):
                    self.did["stages"] += 1
            case records.TasksAdded():
                self._added(ledger, record)
            case records.TasksEnded():
                job_id = ledger.jobs[record.job]
                for ended in record.ended:
                    self._ended(owner, ledger, job_id, record.worker_id, ended)
            case records.JobCancelled():
                job_id = ledger.jobs[record.job]
                for index in range(ledger.sizes[job_id]):
                    task = ledger.tasks[job_id, index]
                    if task.state is None:
                        task.state = TaskState.CANCELLED
                        self.did["CANCELLED"] += 1
            case records.AttemptFailed():
                self._attempt_failed(owner, ledger, record)
            case records.AttemptIssued():
                token = (ledger.jobs[record.job], record.index, record.epoch, record.attempt)
                ledger.journaled[token] = record.worker_id
            case records.AttemptReturned():
                job_id = ledger.jobs[record.job]
                for token in [t for t in ledger.journaled if t[:2] == (job_id, record.index)]:
                    # The core took the holder's word; what was started nevertheless is found where it starts.
                    ledger.unstarted[token] = None
            case records.JobPurged():
                job_id = ledger.jobs.get(record.job, "")
                self.purged_ns[owner.name, job_id] = self.purging_ns.get((owner.name, record.job), 0)
                self._purged(ledger, record)
            case records.ParentBound():
                parent, bound = (record.job_id, record.index), (record.epoch, record.attempt)
                demand(bound > ledger.parents.get(parent, (0, 0)), "I19", parent, "is bound by an older token", bound)
                ledger.parents[parent] = bound
            case records.ParentDone():
                ledger.parents.pop((record.job_id, record.index), None)
            case records.ParentsRelayed():
                self._relayed(ledger, record)
            case records.RelaysDone():
                for index in record.indices:
                    parent = (record.job_id, index)
                    under, here = ledger.parents.pop(parent, None), ledger.relays.pop(parent, None)
                    if under is not None and here is not None:
                        ledger.let_go[(*parent, *under)] = here
            case _:
                pass

    def _relayed(self, ledger: Ledger, record: records.ParentsRelayed) -> None:
        """A parent is one task here, bound by ever newer tokens, and no task is two parents."""
        for step in range(record.count):
            parent, here = (record.job_id, record.index + step), (record.job, record.local + step)
            demand(here[1] < ledger.sizes[ledger.jobs[record.job]], "I19", parent, "is a task that is not there", here)
            demand(ledger.relays.get(parent, here) == here, "I19", parent, "is two tasks", here)
            bound = (record.epoch, record.attempt)
            demand(bound > ledger.parents.get(parent, (0, 0)), "I19", parent, "is bound by an older token", bound)
            self.did["relays bound again" if parent in ledger.relays else "relayed"] += 1
            ledger.parents[parent], ledger.relays[parent] = bound, here

    def _added(self, ledger: Ledger, record: records.TasksAdded) -> None:
        job_id = ledger.jobs[record.job]
        demand(record.first_index == ledger.sizes[job_id], "I1", job_id, "has a gap at", record.first_index)
        demand(job_id not in ledger.cancelled, "I16", job_id, "takes tasks after its cancel was told")
        ledger.sizes[job_id] += len(record.payloads)
        for index, payload in enumerate(record.payloads, record.first_index):
            ledger.tasks.setdefault((job_id, index), Task()).durable = True
            ledger.births[job_id, index], ledger.payloads[job_id, index] = ledger.epoch, payload
            self.did["submitted"] += 1

    def _ended(
        self, owner: Orchestrator, ledger: Ledger, job_id: str, worker_id: str, ended: records.EndedTask
    ) -> None:
        key, token = (job_id, ended.index), (job_id, ended.index, ended.epoch, ended.attempt)
        task = ledger.tasks.get(key)
        demand(task is not None and task.durable, "I2", "a record names", key, "which nobody submitted")
        assert task is not None
        demand(task.state is None, "I3", key, "was", task.state, "and is", ended.state)
        if ended.state is TaskState.SUCCEEDED:
            demand(job_id not in ledger.cancelled, "I16", token, "succeeded after its cancel was told")
            demand(token in ledger.issued, "I2", token, "succeeded and was never issued")
            demand(ledger.issued[token] == worker_id, "I8", token, "is not of", worker_id)
            demand(
                ledger.content[token] == ledger.payloads[key], "I8", token, "was issued for another task of its name"
            )
            demand(task.failed.get((ended.epoch, ended.attempt)) is not False, "I8", token, "had failed already")
            taken_back = ledger.recalled.get(token) == owner.process.life
            demand(not taken_back, "I8", token, "was taken back from a worker in quarantine")
            sent = ledger.sent.get(token)
            demand(sent is not None and sent.ending is Ending.SUCCEEDED, "I4", token, "never sent a success")
            demand(sent is not None and sent.result == ended.result, "I4", token, "sent another result")
            self.did["late successes"] += (ended.epoch, ended.attempt) in task.failed
            self.did["adopted successes"] += ended.epoch < ledger.epoch
        if ended.state is TaskState.DEAD_LETTER and ended.failure is not None:
            self._dead_letter(owner, ledger, task, key, ended)
        if ended.state is TaskState.FAILED and ended.failure is not None:
            demand(ended.failure.failure_class is not FailureClass.BENIGN, "I17", key, "failed by a benign end")
        task.state, task.winner, task.outputs = ended.state, (ended.epoch, ended.attempt), ended.outputs
        self.did[ended.state.name] += 1

    def _dead_letter(self, owner: Orchestrator, ledger: Ledger, task: Task, key: Key, ended: records.EndedTask) -> None:
        failure, config, token = ended.failure, owner.config, (*key, ended.epoch, ended.attempt)
        assert failure is not None
        sent = ledger.sent.get(token)
        reported = sent is not None and sent.ending is Ending.FAILED
        below = ledger.issued.get(token, "").startswith(ORCHESTRATOR)
        if ledger.specs[key[0]].template.at_most_once or (reported and below):
            return  # what was given up below was counted there
        if failure.failure_class is FailureClass.CRASH:
            crashes = task.counts[FailureClass.CRASH] + 1
            demand(crashes >= config.crashes_max, "I18", key, "is called poison after", crashes, "crashes")
            beside = self.died_with.get((owner.name, token), 1)
            demand(beside == 1, "I18", key, "is called poison, and", beside, "tasks ran on the worker that died last")
        elif failure.failure_class is FailureClass.INFRA:
            losses = task.counts[FailureClass.INFRA] + 1
            demand(losses > config.infra_failures_max, "I17", key, "was given up after", losses, "losses")

    def _attempt_failed(self, owner: Orchestrator, ledger: Ledger, record: records.AttemptFailed) -> None:
        job_id = ledger.jobs[record.job]
        key, token = (job_id, record.index), (job_id, record.index, record.epoch, record.attempt)
        task = ledger.tasks[key]
        demand(task.state is None, "I3", token, "fails after its task ended")
        before = task.failed.get(token[2:])
        # An attempt that was lost, came back and failed counts for both; one that failed cannot fail again.
        demand(before is not False, "I17", token, "failed twice")
        failure_class = record.failure.failure_class
        demand(failure_class is not FailureClass.BENIGN, "I17", token, "a benign end is counted")
        sent, template = ledger.sent.get(token), ledger.specs[job_id].template
        below = 0
        if not record.lost and sent is not None and record.worker_id.startswith(ORCHESTRATOR):
            below = min(sent.app_failures, template.retry.max_attempts - 1 - task.counts[FailureClass.APP])
        if not record.lost and sent is not None and record.failure.kind != "timeout":
            demand(
                sent.ending in (Ending.FAILED, Ending.TIMED_OUT) or below > 0,
                "I17",
                token,
                "ended",
                sent.ending.name,
                "and is counted",
            )
        task.failed[token[2:]] = record.lost
        if record.lost and failure_class is FailureClass.CRASH:
            beside = self.died_with.get((owner.name, token), 1)
            demand(
                beside == 1, "I18", token, "has crashed, it is said, and", beside, "tasks ran on the worker that died"
            )
        task.counts[failure_class] += below or 1
        counted = (record.app_failures, record.crashes, record.infra_failures)
        seen = tuple(task.counts[c] for c in (FailureClass.APP, FailureClass.CRASH, FailureClass.INFRA))
        demand(counted == seen, "I17", token, "counts say", counted, "and its failures", seen)
        if not record.lost:
            given_back = below > 0 or not record.worker_id.startswith(ORCHESTRATOR)
            demand(given_back, "I17", token, "had its retries below and goes on")
        demand(record.app_failures < template.retry.max_attempts, "I17", token, "goes on beyond its retries")
        demand(record.infra_failures <= owner.config.infra_failures_max, "I17", token, "goes on beyond its budget")
        demand(record.crashes < 2 * owner.config.crashes_max, "I17", token, "goes on after", record.crashes, "crashes")
        self.did[f"{failure_class.name.lower()} failures"] += 1
        self.did["losses"] += record.lost
        self.did["given back with failures"] += below > 0

    def _purged(self, ledger: Ledger, record: records.JobPurged) -> None:
        job_id = ledger.jobs.pop(record.job, None)
        if job_id is None:
            return  # its records went with the purge, and a restored journal is read again
        for index in range(ledger.sizes.pop(job_id)):
            task = ledger.tasks.pop((job_id, index))
            ledger.purged[job_id, index] = task.winner if task.state is TaskState.SUCCEEDED else None
            demand(task.state is not None, "I1", job_id, index, "was purged before it ended")
            ledger.starts.pop((job_id, index), None)
        ledger.cancelled.pop(job_id, None)
        ledger.specs.pop(job_id)
        ledger.purged_jobs[job_id] = None
        for token in [t for t in ledger.journaled if t[0] == job_id]:
            del ledger.journaled[token]
        self.did["purged"] += 1

    # ---- restarts -----------------------------------------------------------------------------------------------------

    def crashed(self, owner: Orchestrator) -> None:
        """The process died; what was not durable is gone, and was never acknowledged."""
        self.world.kernel.note(owner.name, "died")

    def replayed(self, owner: Orchestrator) -> None:
        """A new process has replayed its journal."""
        self.did["starts"] += 1
        ledger, state = self.ledger(owner.name), owner.core.state
        invariants.check(state)
        demand(state.epoch == ledger.epoch or ledger.restored > 0, "I12", "replay finds epoch", state.epoch)
        for (job_id, index), task in ledger.tasks.items():
            job = state.by_id.get(job_id)
            demand(job is not None and index < job.task_count, "I1", job_id, index, "is lost")
            assert job is not None
            found = TaskState(job.states[index])
            if task.state is not None:
                demand(found is task.state, "I3", job_id, index, "was", task.state, "and is", found, "after a restart")
            else:
                demand(not found.terminal, "I21", job_id, index, "is", found, "after a restart")

    def restored(self, owner: Orchestrator) -> None:
        """An operator put an old backup back: what came after it is forgotten by his will, tokens are not."""
        ledger = self.ledger(owner.name)
        fresh = Ledger(
            issued=ledger.issued,
            content=ledger.content,
            newest=ledger.newest,
            sent=ledger.sent,
            starts=ledger.starts,
            restored=ledger.restored + 1,
            restored_ns=self.world.kernel.now,
        )
        self.ledgers[owner.name] = fresh
        did = self.did.copy()
        for _, record in owner.disk.replay():
            self.durable(owner, record)
        self.did = did
        fresh.restored_epoch = fresh.epoch
        self.did["restored backups"] += 1

    # ---- workers ------------------------------------------------------------------------------------------------------

    def refusal_due(self, owner: Orchestrator, event: events.Attach) -> type[AntFarmError] | None:
        """How a hello must be refused, if it must: I23."""
        if event.protocol_major != PROTOCOL_MAJOR:
            return ProtocolUnsupported
        worker = owner.core.state.workers.get(event.worker_id)
        if worker is not None and event.incarnation in worker.former:
            return IncarnationLost
        if worker is not None and worker.session is not None and not (worker.suspect or worker.lost or worker.gone):
            return WorkerIdInUse if worker.incarnation != event.incarnation else None
        if event.incarnation in self.strangers:  # taken for its successor: what it ran is lost
            self.lost_ns[owner.name, event.worker_id] = self.world.kernel.now
        return None

    def shut_out(self, step: Step, due: type[AntFarmError]) -> None:
        """Somebody knocked who must stay outside: the answer is a refusal, and nothing has changed."""
        answers = [effect for effect in step.effects if not isinstance(effect, effects.Audit)]
        refused = len(answers) == 1 and isinstance(answers[0], effects.Refuse) and isinstance(answers[0].error, due)
        demand(refused and not step.records, "I23", "instead of", due.__name__, "came", step)
        self.did[f"shut out: {due.__name__}"] += 1

    def welcomed(self, owner: str, worker_id: str, epoch: int, seen: int) -> None:
        """A Welcome reached a worker."""
        self.did["welcomes"] += 1

    def refused(self, link: Link, error: AntFarmError) -> None:
        """A worker was refused, or its session was ended."""
        self.did[f"refused: {type(error).__name__}"] += 1

    def taken(
        self, link: Link, epoch: int, job_id: str, assignments: Sequence[tuple[int, int, bytes, int | None, int]]
    ) -> None:
        """A worker took assignments."""
        demand(epoch >= self.obeyed.get(link, 0), "I12", link.worker_id, "obeys epoch", epoch)
        self.obeyed[link] = epoch
        ledger = self.ledger(link.upper)
        for index, attempt, _, _, _ in assignments:
            token = (job_id, index, epoch, attempt)
            demand(ledger.issued.get(token) == link.worker_id, "I2", link.worker_id, "took", token)

    def started(self, worker: Worker, token: Token) -> None:
        """A worker begins to run an attempt."""
        self.did["started"] += 1
        self.began_ns[worker.upper, token] = self.world.kernel.now
        ledger = self.ledger(worker.upper)
        demand(ledger.issued.get(token) == worker.name, "I2", worker.name, "runs", token)
        spec = ledger.specs.get(token[0])
        of_purged = token[2] < ledger.births.get(token[:2], 0)  # a job of that name, given up since
        if spec is not None and spec.template.at_most_once and not of_purged:
            starts = ledger.starts.setdefault(token[:2], [])
            starts.append(token[2])
            # Those of before the task was born are of a job that had its name: when that ran it may not have been known yet that there is another.
            born = ledger.births.get(token[:2], 0)
            # Going back in time forgets tokens: this promise cannot outlive it.
            demand(sum(epoch >= born for epoch in starts) == 1 or ledger.restored > 0, "I11", token, "starts again")

    def reported(self, link: Link, token: Token, outcome: Outcome) -> None:
        """A worker reports an outcome, perhaps once more after a restart."""
        ledger = self.ledger(link.upper)
        ledger.sent.setdefault(token, outcome)
        self.open_reports.setdefault(link, {})[token] = outcome
        self.reported_ns.setdefault((link.upper, token), self.world.kernel.now)
        if outcome.never_started:
            ledger.unstarted[token] = None
        self.did["reports"] += 1
        demand(link.session.unacked_count <= 2 * UNACKED_MAX, "I22", link.worker_id, "keeps too many reports")

    def judged(self, link: Link, code: int, tokens: Sequence[Token]) -> None:
        """A worker got verdicts."""
        reports = self.open_reports.setdefault(link, {})
        if VerdictCode(code).final:
            for token in tokens:
                reports.pop(token, None)
        self._owes(link, reports)

    def forgotten(self, link: Link, tokens: Sequence[Token]) -> None:
        """A worker was told to forget attempts, with their reports."""
        reports = self.open_reports.setdefault(link, {})
        ledger = self.ledger(link.upper)
        for token in tokens:
            outcome = reports.pop(token, None)
            task = ledger.tasks.get((token[0], token[1]))
            if outcome is None or outcome.ending is not Ending.SUCCEEDED or task is None or task.state is not None:
                continue
            if token[2] < ledger.births.get(token[:2], 0):
                continue
            # A worker of the minor version before does not say what it has finished.
            # What ends while the answer to a hello is on its way has been taken back by it.
            stopped_ns = ledger.stopped_ns.get(token, 0)
            newer = link.minor == 0 or 0 < stopped_ns <= self.reported_ns.get((link.upper, token), 0)
            given_up = task.failed.get(token[2:]) is False
            # A restored backup does not know the token of an at-most-once task, and takes it for forged.
            template = ledger.specs[token[0]].template
            unknown = ledger.restored > 0 and template.at_most_once
            # Of an at-most-once task no other attempt can stand: only a loss takes its fenced success away.
            kept = template.at_most_once and self.lost_ns.get((link.upper, link.worker_id), 0) == 0
            fenced = token in ledger.recalled or (template.fence_late_results and not kept)
            # What was written before a backup was restored stands for what the operator took back.
            before = link.wire is not None and link.wire.opened_ns < ledger.restored_ns
            allowed = newer or given_up or unknown or fenced or before or ledger.is_undone(token)
            demand(allowed, "I6", link.worker_id, "is told to forget the success of", token)
            self.did["late successes revoked"] += 1
        self._owes(link, reports)

    def _owes(self, link: Link, reports: dict[Token, Outcome]) -> None:
        demand(
            link.session.unacked_count == len(reports),
            "I6",
            link.worker_id,
            "owes",
            len(reports),
            "reports and keeps",
            link.session.unacked_count,
        )

    def worker_died(self, worker: Worker, held: Sequence[Token]) -> None:
        """A worker's process died. If nothing else happens, its tasks are queued again within L + S + d."""
        kernel = self.world.kernel
        kernel.note(worker.name, "died")
        going = {token for token, run in worker.running.items() if run.stopping is None}
        for token in worker.running:
            self.died_with[worker.upper, token] = len(going | {token})
        self.open_reports.pop(worker.link, None)
        owner = self.world.orchestrators[worker.upper]
        lease_ns = owner.config.lease_ns
        # A clock that runs fast or slow by a hundredth, and a commit under way.
        limit_ns = int((lease_ns + owner.config.sweep_ns) * 1.02) + owner.config.heartbeat_ns // 2
        kernel.after(
            limit_ns, self._is_lost, worker, worker.process.life, owner, owner.process.life, kernel.now, held, limit_ns
        )

    def _is_lost(
        self,
        worker: Worker,
        life: int,
        owner: Orchestrator,
        owner_life: int,
        since_ns: int,
        held: Sequence[Token],
        limit_ns: int,
    ) -> None:
        kernel = self.world.kernel
        last_ns = self.world.network.last_arrival_ns.get((worker.name, owner.name), 0)
        if kernel.now < last_ns + limit_ns:  # what it had sent was still on its way
            wait_ns = last_ns + limit_ns - kernel.now
            kernel.after(wait_ns, self._is_lost, worker, life, owner, owner_life, since_ns, held, limit_ns)
            return
        undisturbed = owner.process.life == owner_life and owner.undisturbed_since_ns < since_ns
        if worker.process.life != life or not undisturbed or owner.process.stopped or not owner.process.alive:
            return
        for job_id, index, epoch, attempt in held:
            job = owner.core.state.by_id.get(job_id)
            live = job.live.get(index) if job is not None else None
            demand(
                live is None or (live.epoch, live.attempt) != (epoch, attempt) or live.worker.worker_id != worker.name,
                "L2",
                (job_id, index, epoch, attempt),
                "is still with",
                worker.name,
                "which died long ago",
            )
        self.did["detections"] += 1

    def drained(self, worker: Worker) -> None:
        """A worker left after a drain."""
        self.did["drains"] += 1

    def released(self, owner: Orchestrator, effect: effects.ReleaseParents) -> None:
        """A drained orchestrator gives parents back, with what each has used of its retries there."""
        ledger = self.ledger(owner.name)
        self.did["parents released" if effect.never_started else "begun parents released"] += len(effect.tokens)
        for token in effect.tokens:
            number, local = ledger.let_go.get(token, (0, 0))
            task = ledger.tasks.get((ledger.jobs.get(number, ""), local))
            failures = task.counts[FailureClass.APP] if task is not None else 0
            told = effect.app_failures.get(token, 0)
            demand(told == failures, "I17", token, "goes back with", told, "failures and has", failures)

    # ---- Storage ------------------------------------------------------------------------------------------------------

    def blob_written(self, key: str, before: tuple[bytes, int] | None, content: bytes) -> None:
        """An attempt writes an output."""
        demand(before is None or before[0] == content, "I14", key, "is written twice with different bytes")
        self.did["blobs"] += 1

    def swept(self, key: str) -> None:
        """The sweeper deletes a blob."""
        for owner, ledger in self.ledgers.items():
            for task, known in ledger.tasks.items():
                named = known.state is TaskState.SUCCEEDED and any(blob.key == key for blob in known.outputs)
                demand(not named, "I15", key, "of the record of", task, "at", owner, "is swept")
                own = key.startswith(f"tasks/{task[0]}/{task[1]}/")
                demand(not own or known.state is not None, "I15", key, "of", task, "which goes on, is swept")
        self.did["swept"] += 1

    def _manifests(self) -> None:
        """Every output of a record is there."""
        blobs = self.world.storage.blobs
        for ledger in self.ledgers.values():
            for key, task in ledger.tasks.items():
                for blob in task.outputs if not ledger.restored else ():
                    found = blobs.get(blob.key)
                    same = found is not None and hashlib.sha256(found[0]).digest() == blob.sha256
                    demand(same, "I13", key, "succeeded, and", blob.key, "is not what its attempt wrote")

    # ---- the end --------------------------------------------------------------------------------------------------------

    def unended(self) -> list[tuple[str, Key]]:
        """Durable tasks that have not ended, of all orchestrators."""
        return [
            (owner, key)
            for owner, ledger in self.ledgers.items()
            for key, task in ledger.tasks.items()
            if task.durable and task.state is None
        ]

    def healed(self) -> None:
        """All faults have stopped long ago: everything must have come to its end, and nothing may be left over."""
        for name, key in self.unended():
            owner = self.world.orchestrators[name]
            job = owner.core.state.by_id[key[0]]
            attempt = job.live.get(key[1])
            state = TaskState(job.states[key[1]]).name
            holder = (
                f"held by {attempt.worker.worker_id} as {attempt.token}" if attempt else f"note {job.notes.get(key[1])}"
            )
            demand(False, "L1", name, key, "never ends:", state, holder)
        self._manifests()
        for owner in self.world.orchestrators.values():
            invariants.check(owner.core.state)
            for worker in owner.core.state.workers.values():
                demand(not worker.live, "L3", "slots of", worker.worker_id, "leak:", list(worker.live))
            demand(not owner.core.state.parents, "L1", owner.name, "keeps parents", list(owner.core.state.parents))
            self.replays_equal(owner)
        for simulated in self.world.workers:
            demand(simulated.idle, "L3", simulated.name, "is busy with nothing that counts")
            unacked = simulated.link.session.unacked_count
            demand(not unacked, "L4", simulated.name, "still owes", unacked, "reports")
            demand(
                not simulated.link.session.held, "L3", simulated.name, "still holds", list(simulated.link.session.held)
            )

    def replays_equal(self, owner: Orchestrator) -> None:
        """What is on disk says of every task what the ledger says."""
        state = State()
        for seq, record in owner.disk.replay():
            state.apply(seq, record)
        for (job_id, index), task in self.ledger(owner.name).tasks.items():
            job = state.by_id.get(job_id)
            demand(job is not None, "I1", job_id, "is not on the disk of", owner.name)
            assert job is not None
            demand(TaskState(job.states[index]) is task.state, "I3", job_id, index, "replays as another state")
