"""Events: everything that can happen to the orchestrator, as the core is told.

Requests carry a `request` number that the answering `Reply` effect repeats. The wall clock (`wall_ns`, nanoseconds since 1970) is only ever
recorded, so that durations survive a restart; nothing is decided by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from antfarm.model import BlobRef, Ending, Failure, JobId, JobSpec, SessionId, TaskTemplate, WorkerId

HeldToken = tuple[str, int, int, int]
"""(job_id, index, epoch, attempt) as a worker names an attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateJob:
    """A client wants a job, perhaps with first tasks."""

    request: int
    job_id: JobId
    spec: JobSpec
    payloads: Sequence[bytes]
    close: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendTasks:
    """A client adds tasks."""

    request: int
    job_id: JobId
    first_index: int
    payloads: Sequence[bytes]
    close: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseJob:
    """No more tasks will come."""

    request: int
    job_id: JobId


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelJob:
    """Someone cancels a job."""

    request: int
    job_id: JobId
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelTask:
    """Someone cancels one task."""

    request: int
    job_id: JobId
    index: int
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseJob:
    """Someone pauses or resumes a job."""

    request: int
    job_id: JobId
    paused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryJob:
    """Someone wants the failed tasks of a job again, as a new job."""

    request: int
    job_id: JobId
    new_job_id: JobId


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgeJob:
    """Someone removes an ended job."""

    request: int
    job_id: JobId


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach:
    """A worker said hello on a new stream."""

    session: SessionId
    worker_id: WorkerId
    incarnation: bytes
    protocol_major: int
    slots: int
    window: int
    task_types: frozenset[str]
    labels: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)
    max_epoch_seen: int = 0
    held: Sequence[HeldToken] = ()
    unacked: Sequence[HeldToken] = ()
    """Those of the held ones that have finished and whose report has no final verdict yet."""
    dial: int = 0
    """Grows with every hello of the incarnation; 0: not said."""
    descendants: tuple[str, ...] = ()
    orchestrator: bool = False
    host: str = ""
    software: str = ""
    queue: str = ""
    """Id of the orchestrator whose tokens and epoch it names; empty: ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detach:
    """A worker's stream ended without a goodbye."""

    session: SessionId


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodbye:
    """A worker left; it holds nothing any more."""

    session: SessionId
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """A worker sets its window."""

    session: SessionId
    window: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """A worker says that it lives and what it holds."""

    session: SessionId
    number: int
    frames_received: int
    held: Sequence[HeldToken]


@dataclass(slots=True, kw_only=True)
class Outcome:
    """The end of one attempt as its worker reports it. Not frozen: hundreds of thousands are made a second."""

    report_no: int
    index: int
    attempt: int
    ending: Ending
    result: bytes = b""
    outputs: tuple[BlobRef, ...] = ()
    failure: Failure | None = None
    run_us: int = 0
    never_started: bool = False
    app_failures: int = 0
    """Retries that it has used with an orchestrator below, which hands it back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """Outcomes of attempts of one job and epoch."""

    session: SessionId
    job_id: str
    epoch: int
    outcomes: Sequence[Outcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A word from a running attempt."""

    session: SessionId
    job_id: str
    epoch: int
    index: int
    attempt: int
    running_for_ns: int
    progress: float | None = None
    progress_text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainWorker:
    """An operator drains a worker, or lets it work again."""

    request: int
    worker_id: WorkerId
    drain: bool
    limit_ns: int


@dataclass(slots=True)
class ParentTask:
    """One task of ParentsAssigned. Not frozen: made on the hot path."""

    index: int
    attempt: int
    payload: bytes
    app_failures: int = 0
    """Of the retries that its template allows, those that were used up-stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentsAssigned:
    """The up-stream orchestrator gave us tasks of one of its jobs."""

    job_id: str
    epoch: int
    template: TaskTemplate
    tasks: Sequence[ParentTask]
    since_epoch: int = 0
    """Tokens of that job id of lower epochs named tasks of another job, which was purged. 0: up-stream does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentsRevoked:
    """The up-stream orchestrator wants attempts of ours stopped."""

    tokens: Sequence[HeldToken]
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentsDrained:
    """The up-stream orchestrator drains this one, or nobody is here: what has not begun goes back to it; when the time is over everything, begun or not."""

    over: bool
    cause: str = "the orchestrator above drains this one"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentExpanded:
    """The plan of a parent's task was read: these are the tasks that it becomes. `failure` when it could not be read."""

    parent: tuple[str, int]
    plan: int
    """Number of the plan's job."""
    template: TaskTemplate | None
    payloads: Sequence[bytes]
    failure: Failure | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentsAcked:
    """The up-stream orchestrator gave a final verdict on our reports of its tasks."""

    tokens: Sequence[HeldToken]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recover:
    """The journal has been replayed: take the queue over under a new epoch. The first event of a process."""

    wall_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskLow:
    """The journal's disk ran low, or has room again."""

    low: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time passed: leases, back-offs and deadlines are looked at."""

    wall_ns: int


Event = (
    CreateJob
    | AppendTasks
    | CloseJob
    | CancelJob
    | CancelTask
    | PauseJob
    | RetryJob
    | PurgeJob
    | Attach
    | Detach
    | Goodbye
    | Credit
    | Heartbeat
    | Outcomes
    | Running
    | DrainWorker
    | ParentsAssigned
    | ParentsRevoked
    | ParentsDrained
    | ParentExpanded
    | ParentsAcked
    | Recover
    | DiskLow
    | Tick
)
