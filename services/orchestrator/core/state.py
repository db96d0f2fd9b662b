"""The state of the farm, and `apply`: the only way in which its durable part changes.

Durable is what follows from the records: jobs, their tasks' states and outcomes, the epoch, the parents of a down-stream orchestrator. Volatile is
what is rebuilt from workers and clocks: attempts, leases, credit, ready sets. A queued task costs one byte of state, 20 bytes of bookkeeping and its
payload; objects exist only for what is under way or went wrong.
"""

from __future__ import annotations

import heapq
import zlib
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple, assert_never

from antfarm.model import (
    DependencyKind,
    Failure,
    FailureClass,
    JobId,
    JobSpec,
    JobState,
    SessionId,
    TaskState,
    TaskTemplate,
    WorkerId,
)
from services.orchestrator.core import records
from services.orchestrator.core.durations import Durations
from services.orchestrator.core.events import HeldToken
from services.orchestrator.core.lanes import PARENT_PREFIX, RELAY_STAGE, Lane, LaneKey, Limit, Share, key_of
from services.orchestrator.core.ready import Ready

_QUEUED = int(TaskState.QUEUED)
_WAITING = int(TaskState.WAITING)
_ACTIVE = int(TaskState.ACTIVE)
_SUCCEEDED = int(TaskState.SUCCEEDED)
_TERMINAL = _SUCCEEDED
FORMER_MAX = 8
"""Former incarnations of a worker that are remembered."""
TASK_BYTES = 100
"""What a queued task takes beside its payload, about (`make bench` measures it)."""
ENDINGS_MAX = 10
"""Last endings of its attempts by which a worker is judged."""


class Attempt:
    """A live attempt: assigned to a worker under a running lease."""

    __slots__ = (
        "assigned_ns",
        "attempt",
        "epoch",
        "frame",
        "index",
        "job",
        "progress",
        "progress_text",
        "started",
        "started_ns",
        "worker",
    )

    def __init__(self, job: Job, index: int, epoch: int, attempt: int, worker: Worker, frame: int, now: int) -> None:
        self.job = job
        self.index = index
        self.epoch = epoch
        self.attempt = attempt
        self.worker = worker
        self.frame = frame
        """Number of the Tasks frame of the session that carries it; 0 when the worker is known to have it."""
        self.assigned_ns = now
        self.started = False
        self.started_ns = 0
        """When it started, by its worker's word. Meaningless before."""
        self.progress: float | None = None
        self.progress_text = ""

    @property
    def token(self) -> tuple[str, int, int, int]:
        """The token as the worker knows it."""
        return (self.job.job_id, self.index, self.epoch, self.attempt)


class Past(IntEnum):
    """How an attempt that is no longer live ended, as far as its task, which has not, is concerned."""

    FAILED = 1
    LOST = 2
    RELEASED = 3
    REVOKED = 4
    ISSUED = 5
    """The journal says that it was issued, and nothing else is known: its holder may go on with it."""


TIMERS_MIN = 1_000
"""Timers that are kept without asking whether they still matter."""
PAST_MAX = 1_000
"""Earlier attempts of one task that are remembered. A report of one that is not, nobody can tell from a forged one."""


@dataclass(slots=True, kw_only=True)
class TaskNote:
    """What is remembered of a task that did not go straight through. Gone when the task ends."""

    app_failures: int = 0
    crashes: int = 0
    infra_failures: int = 0
    epoch: int = 0
    """Epoch of the newest token known of, that of a live attempt apart."""
    attempt: int = 0
    """Attempt number of the same."""
    past: dict[tuple[int, int], tuple[str, Past]] = field(default_factory=dict)
    """(epoch, attempt) -> (worker it was issued to, how it ended)."""
    failed_on: set[str] = field(default_factory=set)
    """Workers that failed the task: a retry goes elsewhere while there is an elsewhere."""
    avoid_until_ns: int = 0
    """How long it waits for another worker than those. Volatile."""
    suspected: int = 0
    """Deaths of processes and workers that it may have brought about, its crashes among them."""
    suspected_on: dict[str, bool] = field(default_factory=dict)
    """Workers where that was -> whether it crashed there; False: others shared the suspicion."""
    last_failure: Failure | None = None
    failed_wall_ns: int = 0
    """When the last failure was, by the wall clock, and the back-off that began then: a restart measures by them what is left."""
    pause_ns: int = 0
    after: int = 0
    """Record that the next attempt waits for: the one before, taken back, may still wait for it, and must not leave later. Volatile."""
    backed_up: bool = False
    """A backup was begun: one is enough. Volatile."""
    wait_until_ns: int | None = None
    """End of what it waits for beside dependencies: WAITING, its back-off; ACTIVE without an attempt, the orphan hold of its token."""

    def remember(self, epoch: int, attempt: int, worker_id: str, how: Past) -> None:
        """How an attempt ended. Of very many the oldest are forgotten (I22): each hand-over back is one, and they cost a task nothing."""
        self.past[epoch, attempt] = (worker_id, how)
        if len(self.past) > PAST_MAX:
            del self.past[min(self.past)]


@dataclass(slots=True, kw_only=True)
class Alone:
    """A suspected task on its way to run alone on a worker. Volatile; see `isolation`."""

    worker: Worker | None = None
    """Reserved for it: gets no other work."""
    running: bool = False
    """It runs there, and nothing else does. Until then the worker becomes empty."""
    choice: str = ""
    """Worker that it waits for, reserved for it or for another suspect."""
    patience_ns: int = 0
    until_ns: int = 0
    """When that is given up for another worker."""
    tried: set[str] = field(default_factory=set)
    """Workers that did not become empty in time."""


@dataclass(slots=True, kw_only=True)
class Probation:
    """A worker in quarantine, or a task type that is paused, until one task succeeds. Volatile; see `health`."""

    cause: str
    pause_ns: int
    due_ns: int
    """When one task is tried."""
    canary: tuple[int, int] | None = None
    """(job number, index) of that task, while it is out."""
    canary_on: str = ""
    """Worker that has it."""
    canary_token: int = 0
    """epoch << 32 | attempt of its attempt there."""
    tried: set[str] = field(default_factory=set)
    """Workers that had one in this round."""


class Trouble(NamedTuple):
    """An attempt that failed on a worker, as far as the worker is judged by it."""

    task: tuple[int, int]
    """(job number, index)"""
    type: str
    infra: bool
    """The infrastructure failed, not the task."""


class Batch(NamedTuple):
    """Tasks that were added together."""

    first: int
    size: int
    wall_ns: int
    """When their queue and total timeouts began."""
    epoch: int
    """In which they came: tokens of earlier ones are of other tasks, of a job of that id that was purged or never became durable."""


class Job:
    """A job and its tasks. Invariant: all per-task arrays have the same length, and `counts` counts `states`."""

    __slots__ = (
        "added_seq", "backups", "batches", "begun_ns", "cancelled", "cancelled_seq", "cause", "closed", "counts", "created_seq", "created_wall_ns", "dependencies", "dependents", "digests", "durations",
        "ended_ns", "ended_seq", "ended_wall_ns", "job_id", "kept_bytes", "lane", "live", "notes", "number", "offered", "outcome_seqs", "paused",
        "payloads", "rank",
        "ready", "recovered", "result_seqs", "retried", "retry_of", "share", "spec", "states", "winners",
    )  # fmt: skip

    share: Share
    """Set by its lane, with `rank`."""
    rank: int

    def __init__(self, number: int, job_id: JobId, spec: JobSpec, wall_ns: int, retry_of: str, lane: Lane) -> None:
        self.number = number
        self.job_id = job_id
        self.spec = spec
        self.created_wall_ns = wall_ns
        self.created_seq = 0
        """Record that made it: none of its others is older."""
        self.retry_of = retry_of
        self.closed = False
        self.paused = False
        self.cancelled = False
        self.cancelled_seq = 0
        """Record that cancelled it."""
        self.cause = ""
        self.ended_wall_ns = 0
        self.ended_ns = 0
        """When it ended, on the clock of this process. Volatile: retention counts from it."""
        self.ended_seq = 0
        """Record that says that it ended."""
        self.added_seq = 0
        """Record that added its last tasks."""
        self.states = bytearray()
        self.payloads: list[bytes | None] = []
        """None once the task succeeded: only unsuccessful ones can be retried."""
        self.kept_bytes = 0
        self.digests = array("I")
        """CRC-32 of each payload: tells a repeated submission from another one."""
        self.outcome_seqs = array("Q")
        """Record that holds the outcome of each task; 0 while there is none."""
        self.winners = array("Q")
        """epoch << 32 | attempt of the recorded attempt; 0 while there is none."""
        self.result_seqs = array("Q")
        """Records that end tasks of this job, in order: what StreamResults walks through."""
        self.batches: list[Batch] = []
        self.begun_ns: list[int] = []
        """When each batch came, on the clock of this process, which nobody sets. Volatile; made anew after replay."""
        self.counts = [0] * (max(TaskState) + 1)
        self.retried = 0
        self.ready = Ready()
        self.recovered = Ready()
        """Tasks that were assignable before a restart; they join `ready` when it is clear who still holds which."""
        self.live: dict[int, Attempt] = {}
        self.backups: dict[int, Attempt] = {}
        """Second live attempts; each beside one in `live`, which it takes the place of when that ends."""
        self.durations = Durations()
        """Of tasks that may have backups; of others nothing is kept."""
        self.notes: dict[int, TaskNote] = {}
        self.dependencies: list[tuple[Job, DependencyKind, int]] = []
        self.dependents: list[tuple[Job, DependencyKind, int]] = []
        self.lane = lane
        self.offered = False
        """True while it is in its lane's heap."""
        lane.add(self)

    @property
    def task_count(self) -> int:
        """Tasks it has."""
        return len(self.states)

    @property
    def ended_count(self) -> int:
        """Tasks that are terminal."""
        return sum(self.counts[_TERMINAL:])

    @property
    def failed_count(self) -> int:
        """Tasks that ended without success."""
        return sum(self.counts[_TERMINAL + 1 :])

    @property
    def ended(self) -> bool:
        """True when it is closed (or cancelled) and every task is terminal."""
        return (self.closed or self.cancelled) and self.ended_count == len(self.states)

    @property
    def state(self) -> JobState:
        """Where it stands, for people."""
        if not self.ended:
            return JobState.RUNNING if self.closed or self.cancelled else JobState.OPEN
        if self.cancelled:
            return JobState.CANCELLED
        return JobState.FAILED if self.failed_count else JobState.SUCCEEDED

    @property
    def template(self) -> TaskTemplate:
        """What its tasks have in common."""
        return self.spec.template

    def batch_number(self, index: int) -> int:
        """Position of the batch that a task came with."""
        return bisect_right(self.batches, index, key=lambda batch: batch.first) - 1

    def batch(self, index: int) -> Batch:
        """The batch that a task came with."""
        return self.batches[self.batch_number(index)]

    def note(self, index: int) -> TaskNote:
        """The task's note, made when there is none."""
        note = self.notes.get(index)
        if note is None:
            note = self.notes[index] = TaskNote()
        return note

    def attempts_of(self, index: int) -> list[Attempt]:
        """The live attempts of a task: none, one, or two while a backup runs."""
        return [where[index] for where in (self.live, self.backups) if index in where]

    def find_live(self, index: int, epoch: int, attempt: int) -> Attempt | None:
        """The live attempt of that token."""
        for live in self.attempts_of(index):
            if (live.epoch, live.attempt) == (epoch, attempt):
                return live
        return None

    def all_live(self) -> list[Attempt]:
        """All live attempts, backups too."""
        return [*self.live.values(), *self.backups.values()]

    def is_queued(self, index: int) -> bool:
        """True when the task may be given out."""
        return self.states[index] == _QUEUED

    def set_state(self, index: int, state: int) -> None:
        """Change a task's state and the counts with it."""
        self.counts[self.states[index]] -= 1
        self.counts[state] += 1
        self.states[index] = state


class Worker:
    """A worker identity and its present incarnation. Volatile; `seen` in State is what a restart remembers."""

    __slots__ = (
        "alone_for",
        "descendants",
        "dial",
        "drain_limit_ns",
        "drain_until_ns",
        "failed",
        "former",
        "frames",
        "frames_after",
        "gone",
        "heard_ns",
        "host",
        "incarnation",
        "labels",
        "lanes",
        "lease_ns",
        "live",
        "lost",
        "orchestrator",
        "quarantine",
        "recent",
        "resources",
        "session",
        "slots",
        "software",
        "spared",
        "stopping",
        "succeeded",
        "suspect",
        "task_types",
        "used",
        "virtual_time",
        "wide",
        "window",
        "worker_id",
    )  # fmt: skip

    def __init__(self, worker_id: WorkerId) -> None:
        self.worker_id = worker_id
        self.incarnation = b""
        self.former: deque[bytes] = deque(maxlen=FORMER_MAX)
        """Incarnations that others have taken the place of: they are lost and stay so."""
        self.dial = 0
        """Of its last hello."""
        self.session: SessionId | None = None
        self.slots = 0
        self.window = 0
        self.task_types: frozenset[str] = frozenset()
        self.labels: Mapping[str, str] = {}
        self.resources: Mapping[str, float] = {}
        self.descendants: tuple[str, ...] = ()
        self.orchestrator = False
        self.host = ""
        self.software = ""
        self.heard_ns = 0
        self.lease_ns = 0
        self.suspect = False
        self.drain_limit_ns: int | None = None
        """How long what runs may take when an operator drains it; outlives the process. None: it works."""
        self.drain_until_ns = 0
        """When that is over."""
        self.lost = False
        self.gone = False
        self.frames = 0
        """Tasks frames of the session so far."""
        self.frames_after = 0
        """Record that the last of them waits for."""
        self.live: dict[tuple[int, int], Attempt] = {}
        self.spared: set[HeldToken] = set()
        """Lost attempts that had finished when it attached: it keeps them until their late reports are judged. Of this session."""
        self.stopping: dict[HeldToken, int] = {}
        """Attempts that it was told to stop and may run still, with the frame in which each went out; until a beat no longer names them."""
        self.used: dict[str, float] = {}
        """Resources, other than slots, that live attempts take."""
        self.wide = 0.0
        """Slots that live attempts take beyond one each."""
        self.lanes: dict[LaneKey, float] = {}
        """Lanes that it was given work of -> the lane's virtual time here; forgotten at each attach."""
        self.virtual_time = 0.0
        self.succeeded = 0
        self.failed = 0
        self.recent: deque[Trouble | None] = deque(maxlen=ENDINGS_MAX)
        """Its last endings since the first failure among them; None: a success. Empty while nothing fails."""
        self.quarantine: Probation | None = None
        self.alone_for: tuple[int, int] | None = None
        """(job number, index) of the suspected task that it is reserved for."""

    def heard(self, now: int) -> None:
        """It said something: the lease runs anew."""
        self.heard_ns = now
        self.suspect = False

    @property
    def taken(self) -> float:
        """How much of its slots and window live attempts take."""
        return len(self.live) + self.wide

    @property
    def is_empty(self) -> bool:
        """True when nothing runs on it, nor is being stopped there."""
        return not (self.live or self.stopping)

    @property
    def draining(self) -> bool:
        """True when it gets no more work until an operator says otherwise."""
        return self.drain_limit_ns is not None

    @property
    def able(self) -> bool:
        """True when it can take work, as far as it and its operator are concerned."""
        return self.session is not None and not (self.suspect or self.draining or self.lost or self.gone)

    @property
    def assignable(self) -> bool:
        """True when any task may be given to it."""
        return self.alone_for is None and self.quarantine is None and self.able

    def succeed(self, count: int = 1) -> None:
        """Attempts succeeded here."""
        self.succeeded += count
        recent = self.recent
        if recent:
            recent.extend([None] * min(count, ENDINGS_MAX))
            while recent and recent[0] is None:
                recent.popleft()


@dataclass(slots=True, kw_only=True)
class Parent:
    """A task of the up-stream orchestrator that is expanded here."""

    job_id: str
    index: int
    epoch: int
    attempt: int
    template: TaskTemplate
    payload: bytes
    """Empty for one that is relayed: the job's task has it."""
    seq: int
    """Record that binds the present token."""
    job: int = 0
    """Number of the job here that has it as one of its tasks, and which; 0: it has jobs of its own."""
    local: int = 0
    bound_wall_ns: int = 0
    """When it was bound, for one with jobs of its own."""
    bound_ns: int = 0
    """When it was bound in this life, for one with jobs of its own. Volatile."""

    @property
    def key(self) -> tuple[str, int]:
        """Names the task."""
        return (self.job_id, self.index)

    @property
    def token(self) -> HeldToken:
        """The token under which it is held."""
        return (self.job_id, self.index, self.epoch, self.attempt)


@dataclass(slots=True)
class Relay:
    """A job whose task i stands for task first + i of an up-stream job."""

    job_id: str
    """The up-stream job."""
    first: int
    bound: int = 0
    """Tasks that stand for a parent still."""


@dataclass(slots=True, kw_only=True)
class Kept:
    """A worker that is kept for tasks of a lane, until one of them was given out. Volatile; see `room`."""

    worker: Worker
    lane: Lane
    until_ns: int
    """When another worker is tried."""
    patience_ns: int
    tried: set[str]
    """Workers that were kept in this round."""


class State:
    """Everything. Handlers read it freely and change volatile parts; durable parts change in `apply` alone."""

    def __init__(self) -> None:
        self.seq = 0
        """Sequence number of the last record."""
        self.epoch = 0
        self.epoch_seq = 0
        """Record that began the epoch."""
        self.own_epochs: list[tuple[int, int]] = []
        """First and last of each row of epochs that this life has begun: what was issued in them is known."""
        self.lost_epochs: list[tuple[int, int]] = []
        """First and last of each row of epochs of a history that a restored backup has undone: which jobs had which names in them is not known."""
        self.purged: set[str] = set()
        """Ids of jobs that were purged in this epoch."""
        self.jobs: dict[int, Job] = {}
        self.by_id: dict[str, Job] = {}
        self.next_job = 1
        self.ended: dict[int, None] = {}
        """Jobs that have ended, in the order of their ends."""
        self.ended_tasks = 0
        """Tasks of these."""
        self.backed: dict[int, Job] = {}
        """Jobs that have not ended whose tasks may have backups."""
        self.seen: dict[str, bool] = {}
        """Workers that attached and neither left nor were lost, oldest first -> whether it is an orchestrator."""
        self.parents: dict[tuple[str, int], Parent] = {}
        """In the order of the records that bind their present tokens."""
        self.relays: dict[int, Relay] = {}
        """Jobs with tasks that stand for parents."""
        # Volatile from here on.
        self.workers: dict[str, Worker] = {}
        self.sessions: dict[str, Worker] = {}
        self.alone: dict[tuple[int, int], Alone] = {}
        """(job number, index) of suspected tasks that wait for a worker of their own or run on it, in the order in which they came."""
        self.quarantined: dict[str, Worker] = {}
        """Workers in quarantine, the oldest first."""
        self.paused_types: dict[str, Probation] = {}
        self.waiting_parents: dict[tuple[str, int], None] = {}
        """Those for which nobody here could do anything so far."""
        self.of_done_parents: dict[int, None] = {}
        """Jobs of parents whose end is recorded above, in the order in which that was heard: kept for people to look at."""
        self.lanes: dict[LaneKey, Lane] = {}
        self.limits: dict[str, Limit] = {}
        self.kept_for: Kept | None = None
        self.kept_before: dict[Lane, Kept] = {}
        """What others gave way to, of lanes that still wait, longest ago first."""
        self.look_for_room_ns = 0
        """Not before this time."""
        self.timers: list[tuple[int, int, str, tuple[int, ...]]] = []
        """Heap of (due_ns, tie, kind, arguments); entries are checked when they come due, and those of what has ended go when there are many."""
        self.timers_max = TIMERS_MIN
        self.timer_tie = 0
        self.recovering_until_ns: int | None = None
        self.awaited: set[str] = set()
        """Workers of the last epoch that have not come back."""
        self.kept_bytes = 0
        self.disk_low = False
        self.touched: dict[int, None] = {}
        """Jobs that changed since the views last looked."""

    def parent_of(self, job: Job) -> Parent | None:
        """The parent that a job was made for, as long as it is bound; any of them where one job has tasks of many."""
        if not job.job_id.startswith(PARENT_PREFIX):
            return None
        relay = self.relays.get(job.number)
        if relay is not None:
            keys = ((relay.job_id, relay.first + local) for local in range(job.task_count))
            return next(parent for key in keys if (parent := self.parents.get(key)) and parent.job == job.number)
        key, _, stage = job.job_id.removeprefix(PARENT_PREFIX).rpartition("/")
        parent_job, _, index = key.rpartition("/")
        if stage.startswith(RELAY_STAGE) or not index.isdigit():
            return None
        parent = self.parents.get((parent_job, int(index)))
        return parent if parent is not None and not parent.job else None

    # ---- volatile helpers shared by handlers --------------------------------------------------------------------------

    def arm(self, due_ns: int, kind: str, *arguments: int) -> None:
        """Set a timer."""
        self.timer_tie += 1
        heapq.heappush(self.timers, (due_ns, self.timer_tie, kind, arguments))
        if len(self.timers) > self.timers_max:
            self.timers[:] = [timer for timer in self.timers if self._may_matter(timer[2], timer[3])]
            heapq.heapify(self.timers)
            self.timers_max = max(TIMERS_MIN, 2 * len(self.timers))

    def postpone(self, kind: str, by_ns: int, least_ns: int) -> None:
        """All timers of a kind come due later by so much, and not before `least_ns`."""
        self.timers[:] = [
            (max(due_ns + by_ns, least_ns), tie, which, arguments) if which == kind else (due_ns, tie, which, arguments)
            for due_ns, tie, which, arguments in self.timers
        ]
        heapq.heapify(self.timers)

    def _may_matter(self, kind: str, arguments: tuple[int, ...]) -> bool:
        """False when time has overtaken a timer: its job or its attempt has ended."""
        job = self.jobs.get(arguments[0])
        if job is None or job.ended:
            return False
        return kind != "backstop" or job.find_live(arguments[1], arguments[2], arguments[3]) is not None

    def make_ready(self, job: Job, index: int) -> None:
        """A task that was out already is QUEUED again."""
        job.set_state(index, _QUEUED)
        job.ready.add_returned(index)
        job.lane.offer(job)

    def begin(self, attempt: Attempt) -> None:
        """An attempt becomes live. The caller sets the task's state to ACTIVE."""
        job, worker = attempt.job, attempt.worker
        job.live[attempt.index] = attempt
        worker.live[job.number, attempt.index] = attempt
        if not job.lane.plain:
            _use(worker, job.lane, 1)

    def begin_backup(self, attempt: Attempt) -> None:
        """An attempt becomes live beside the one that its task has."""
        job = attempt.job
        primary = job.live[attempt.index]
        self.begin(attempt)
        job.live[attempt.index], job.backups[attempt.index] = primary, attempt

    def finish(self, attempt: Attempt) -> None:
        """An attempt is no longer live. When it was one of two, the other one is the task's only one from now on."""
        job, worker = attempt.job, attempt.worker
        backup = job.backups.pop(attempt.index, None) if job.backups else None
        if backup is None:
            del job.live[attempt.index]
        elif backup is not attempt:
            job.live[attempt.index] = backup
        del worker.live[job.number, attempt.index]
        if not job.lane.plain:
            _use(worker, job.lane, -1)

    def knows_epoch(self, epoch: int) -> bool:
        """True when this life has begun that epoch: all that was issued in it is known."""
        return any(first <= epoch <= last for first, last in self.own_epochs)

    @property
    def history_gap(self) -> bool:
        """True when a restored backup has once undone what came after it."""
        return bool(self.lost_epochs)

    def has_lost_epoch(self, epoch: int) -> bool:
        """True when the epoch is of a history that is undone: what was issued in it may be of another job of that name."""
        return any(first <= epoch <= last for first, last in self.lost_epochs)

    def _begin_epoch(self, epoch: int) -> None:
        rows = self.own_epochs
        if rows and rows[-1][1] == epoch - 1:
            rows[-1] = (rows[-1][0], epoch)
        else:
            rows.append((epoch, epoch))

    # ---- durable ------------------------------------------------------------------------------------------------------

    def apply(self, seq: int, record: records.Record) -> None:
        """Make a record true. Live handling and replay go through here alike; records come in the order of `seq`."""
        assert seq > self.seq, f"record {seq} after {self.seq}"
        self.seq = seq
        match record:
            case records.TasksEnded():
                self._apply_ended(seq, record)
            case records.TasksAdded():
                self._apply_added(seq, record)
            case records.JobCreated():
                self._apply_created(seq, record)
            case records.JobClosed():
                self.jobs[record.job].closed = True
                self._touch_ended(self.jobs[record.job])
            case records.JobPaused():
                self._apply_paused(record)
            case records.AttemptFailed():
                self._apply_attempt_failed(record)
            case records.AttemptIssued():
                self._apply_issued(record)
            case records.AttemptReturned():
                self.jobs[record.job].notes.pop(record.index, None)
            case records.JobCancelled():
                self._apply_cancelled(seq, record)
            case records.JobEnded():
                self._apply_job_ended(seq, record)
            case records.JobPurged():
                self._apply_purged(record)
            case records.EpochStarted():
                if record.history_gap:
                    self.lost_epochs.append((self.epoch + 1, record.epoch - 1))
                self.epoch, self.epoch_seq = record.epoch, seq
                self._begin_epoch(record.epoch)
                self.purged.clear()
            case records.WorkerSeen():
                self.seen[record.worker_id] = record.orchestrator
            case records.WorkerLeft():
                self.seen.pop(record.worker_id, None)
            case records.ParentBound():
                self.parents.pop((record.job_id, record.index), None)
                self.parents[record.job_id, record.index] = Parent(
                    job_id=record.job_id,
                    index=record.index,
                    epoch=record.epoch,
                    attempt=record.attempt,
                    template=record.template,
                    payload=record.payload,
                    seq=seq,
                    bound_wall_ns=record.wall_ns,
                )
            case records.ParentDone():
                self.parents.pop((record.job_id, record.index), None)
                self.waiting_parents.pop((record.job_id, record.index), None)
            case records.ParentsRelayed():
                self._apply_relayed(seq, record)
            case records.RelaysDone():
                self._apply_relays_done(record)
            case _:
                assert_never(record)

    def _apply_created(self, seq: int, record: records.JobCreated) -> None:
        lane = self._lane(record.spec)
        job = Job(record.job, record.job_id, record.spec, record.wall_ns, record.retry_of, lane)
        for dependency in record.spec.dependencies:
            other = self.by_id.get(dependency.job_id)
            if other is None:
                continue  # purged since: then this job had ended, and the rest of its record says so
            job.dependencies.append((other, dependency.kind, dependency.offset))
            other.dependents.append((job, dependency.kind, dependency.offset))
        job.created_seq = seq
        self.jobs[job.number] = job
        if may_have_backup(record.spec.template):
            self.backed[job.number] = job
        self.by_id[job.job_id] = job
        self.next_job = job.number + 1
        self.touched[job.number] = None

    def _lane(self, spec: JobSpec) -> Lane:
        """The lane for a new job of this spec, whose limit it binds."""
        key, limit = key_of(spec), None
        if spec.template.limit is not None:
            limit = self.limits.setdefault(spec.template.limit.name, Limit())
            limit.bind(spec.template.limit.max_active)
        lane = self.lanes.get(key)
        if lane is None:
            lane = self.lanes[key] = Lane(key, spec.template, limit)
            if limit is not None:
                limit.lanes += 1
        return lane

    def _leave_limit(self, lane: Lane) -> None:
        """A lane is gone, and its limit with the last one that names it."""
        lane.waits_no_more()
        if lane.limit is not None and lane.template.limit is not None:
            lane.limit.lanes -= 1
            if not lane.limit.lanes:
                del self.limits[lane.template.limit.name]

    def _apply_paused(self, record: records.JobPaused) -> None:
        job = self.jobs[record.job]
        job.paused = record.paused
        job.lane.offer(job)
        self.touched[record.job] = None

    def _apply_job_ended(self, seq: int, record: records.JobEnded) -> None:
        job = self.jobs[record.job]
        job.ended_wall_ns, job.ended_seq = record.wall_ns, seq
        self.ended[job.number] = None
        self.backed.pop(job.number, None)
        self.ended_tasks += job.task_count
        if job.lane.limit is not None and job.template.limit is not None:
            job.lane.limit.unbind(job.template.limit.max_active)

    def _apply_added(self, seq: int, record: records.TasksAdded) -> None:
        job = self.jobs[record.job]
        job.added_seq = seq
        payloads = record.payloads
        first, count = len(job.states), len(payloads)
        size = task_bytes(payloads)
        job.payloads.extend(payloads)
        job.digests.extend(map(zlib.crc32, payloads))
        job.kept_bytes += size
        self.kept_bytes += size
        job.outcome_seqs.frombytes(bytes(8 * count))
        job.winners.frombytes(bytes(8 * count))
        job.batches.append(Batch(first, count, record.wall_ns, self.epoch))
        state = _WAITING if job.dependencies else _QUEUED
        job.states.extend(bytes([state]) * count)
        job.counts[state] += count
        self.touched[job.number] = None
        if not job.dependencies:
            job.ready.add_range(first, first + count)
            job.lane.offer(job)
            return
        for index in range(first, first + count):
            self._release(job, index)

    def _apply_ended(self, seq: int, record: records.TasksEnded) -> None:
        job = self.jobs[record.job]
        states, payloads, counts = job.states, job.payloads, job.counts
        live, notes = job.live, job.notes
        for ended in record.ended:
            index, state = ended.index, ended.state
            old = states[index]
            assert old < _TERMINAL, f"job {job.job_id} task {index} ended twice"
            counts[old] -= 1
            counts[state] += 1
            states[index] = state
            job.outcome_seqs[index] = seq
            job.winners[index] = ended.epoch << 32 | ended.attempt
            while (attempt := live.get(index)) is not None:
                self.finish(attempt)
            if notes:
                notes.pop(index, None)
            if state == _SUCCEEDED:
                payload = payloads[index]
                payloads[index] = None
                if payload is not None:
                    job.kept_bytes -= TASK_BYTES + len(payload)
                    self.kept_bytes -= TASK_BYTES + len(payload)
        if job.number in self.backed and record.ended[0].state == _SUCCEEDED:
            # One of those that a worker reports at once speaks for all: what matters here is reported one by one.
            job.durations.add(record.ended[0].run_us * 1_000)
        job.result_seqs.append(seq)
        for ended in record.ended if job.dependents else ():
            self._release_dependents(job, ended.index)
        self._touch_ended(job)

    def _touch_ended(self, job: Job) -> None:
        """A job changed; when that ended it, tasks that wait for the whole of it may go."""
        self.touched[job.number] = None
        if job.dependents and job.ended:
            for other, kind, _ in job.dependents:
                if kind is DependencyKind.ALL:
                    for index in range(len(other.states)):
                        self._release(other, index)

    def _release_dependents(self, job: Job, index: int) -> None:
        for other, kind, offset in job.dependents:
            if kind is DependencyKind.EACH and 0 <= index - offset < len(other.states):
                self._release(other, index - offset)

    def _release(self, job: Job, index: int) -> None:
        """Queue a task that waits for dependencies when all of them are there."""
        if job.states[index] != _WAITING or (index in job.notes and job.notes[index].wait_until_ns is not None):
            return
        if is_met(job, index):
            job.set_state(index, _QUEUED)
            job.ready.add_range(index, index + 1)
            job.lane.offer(job)

    def _apply_attempt_failed(self, record: records.AttemptFailed) -> None:
        job = self.jobs[record.job]
        note = job.note(record.index)
        note.app_failures = record.app_failures
        note.crashes = record.crashes
        note.infra_failures = record.infra_failures
        note.last_failure = record.failure
        note.failed_wall_ns, note.pause_ns = record.wall_ns, record.pause_ns
        if (record.epoch, record.attempt) > (note.epoch, note.attempt):
            note.epoch, note.attempt = record.epoch, record.attempt
        how = Past.LOST if record.lost else Past.FAILED
        note.remember(record.epoch, record.attempt, record.worker_id, how)
        if record.worker_id:
            note.failed_on.add(record.worker_id)
        suspected = max(record.suspected, record.crashes)  # older journals know of crashes alone
        if suspected > note.suspected and record.worker_id:
            crashed = record.failure.failure_class is FailureClass.CRASH
            note.suspected_on[record.worker_id] = crashed or note.suspected_on.get(record.worker_id, False)
        note.suspected = suspected
        job.retried += 1
        self.touched[job.number] = None

    def _apply_issued(self, record: records.AttemptIssued) -> None:
        note = self.jobs[record.job].note(record.index)
        note.epoch, note.attempt = record.epoch, record.attempt
        note.remember(record.epoch, record.attempt, record.worker_id, Past.ISSUED)

    def _apply_cancelled(self, seq: int, record: records.JobCancelled) -> None:
        job = self.jobs[record.job]
        job.cancelled = True
        job.cancelled_seq = seq
        job.cause = record.cause
        ended = [index for index in range(job.task_count) if job.states[index] < _TERMINAL]
        for index in ended:
            job.set_state(index, TaskState.CANCELLED)
            job.outcome_seqs[index] = seq
        for attempt in job.all_live():
            self.finish(attempt)
        job.notes.clear()
        job.result_seqs.append(seq)
        for index in ended if job.dependents else ():
            self._release_dependents(job, index)
        self._touch_ended(job)

    def _apply_relayed(self, seq: int, record: records.ParentsRelayed) -> None:
        parents, template = self.parents, self.jobs[record.job].template
        relay = self.relays.setdefault(record.job, Relay(record.job_id, record.index - record.local))
        for step in range(record.count):
            key = (record.job_id, record.index + step)
            relay.bound += parents.pop(key, None) is None
            parents[key] = Parent(
                job_id=record.job_id,
                index=record.index + step,
                epoch=record.epoch,
                attempt=record.attempt,
                template=template,
                payload=b"",
                seq=seq,
                job=record.job,
                local=record.local + step,
            )

    def _apply_relays_done(self, record: records.RelaysDone) -> None:
        relay = self.relays[record.job]
        for index in record.indices:
            del self.parents[record.job_id, index]
        relay.bound -= len(record.indices)
        if not relay.bound:
            del self.relays[record.job]

    def _apply_purged(self, record: records.JobPurged) -> None:
        self.next_job = max(self.next_job, record.job + 1)
        job = self.jobs.pop(record.job, None)
        if job is None:
            return  # in replay: its records went with the purge
        del self.by_id[job.job_id]
        self.purged.add(job.job_id)
        self.backed.pop(job.number, None)
        self.of_done_parents.pop(job.number, None)
        if job.number in self.ended:
            del self.ended[job.number]
            self.ended_tasks -= job.task_count
        job.lane.remove(job)
        if not job.lane.jobs:
            del self.lanes[job.lane.key]
            self._leave_limit(job.lane)
        self.kept_bytes -= job.kept_bytes
        for other, _, _ in job.dependencies:
            other.dependents = [entry for entry in other.dependents if entry[0] is not job]
        for other, _, _ in job.dependents:  # they have ended, and a replay would not find it either
            other.dependencies = [entry for entry in other.dependencies if entry[0] is not job]
        self.touched[job.number] = None


def task_bytes(payloads: Sequence[bytes]) -> int:
    """Bytes that tasks take, as far as submissions are refused by it."""
    return sum(map(len, payloads)) + TASK_BYTES * len(payloads)


def _use(worker: Worker, lane: Lane, attempts: int) -> None:
    """What attempts of a lane take beside slots."""
    if lane.limit is not None:
        lane.limit.live += attempts
    # Nothing is taken by nothing: fractions do not add up for ever.
    worker.wide = worker.wide + attempts * (lane.slots - 1.0) if worker.live else 0.0
    for name, amount in lane.template.resources.items():
        worker.used[name] = worker.used.get(name, 0.0) + attempts * amount


def may_have_backup(template: TaskTemplate) -> bool:
    """True when a second attempt beside a live one does no harm."""
    return template.idempotent and not template.at_most_once and not template.fence_late_results


def is_met(job: Job, index: int) -> bool:
    """True when all is there that the task depends on."""
    return all(dependency_ready(other, kind, index + offset) for other, kind, offset in job.dependencies)


def dependency_ready(other: Job, kind: DependencyKind, index: int) -> bool:
    """True when what is waited for is there: the task's success, or the job's end."""
    if kind is DependencyKind.ALL:
        return other.ended
    return 0 <= index < len(other.states) and other.states[index] == _SUCCEEDED


def dependency_failed(other: Job, kind: DependencyKind, index: int) -> bool:
    """True when what is waited for can no longer come."""
    if kind is DependencyKind.ALL:
        return False
    if index < 0:
        return True
    if index >= len(other.states):
        return other.ended or other.closed
    return other.states[index] > _SUCCEEDED
