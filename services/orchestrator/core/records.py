"""Records: the durable facts. The journal keeps them in order; `State.apply` is their only meaning.

In the common case a task costs two: it is one payload in a TasksAdded and one result in a TasksEnded; both hold many tasks. Fields are only ever added,
at the end and with a default, so that a journal stays readable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from antfarm.model import BlobRef, Failure, FailureClass, JobId, JobSpec, TaskState, TaskTemplate, WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochStarted:
    """An orchestrator process took the queue over, or learnt that the journal is older than its workers' memory."""

    epoch: int
    wall_ns: int
    history_gap: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCreated:
    """A job came to be. `job` is its number: it grows, and every other record names the job by it."""

    job: int
    job_id: JobId
    spec: JobSpec
    wall_ns: int
    retry_of: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TasksAdded:
    """Tasks first_index, first_index + 1, ... of a job came to be."""

    job: int
    first_index: int
    payloads: Sequence[bytes]
    wall_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobClosed:
    """No more tasks will come."""

    job: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPaused:
    """A job was paused or resumed."""

    job: int
    paused: bool


@dataclass(slots=True, kw_only=True)
class EndedTask:
    """The outcome of one task: of attempt (epoch, attempt), or of none (0, 0). Not frozen: made on the hot path."""

    index: int
    state: TaskState
    epoch: int = 0
    attempt: int = 0
    result: bytes = b""
    outputs: tuple[BlobRef, ...] = ()
    failure: Failure | None = None
    run_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TasksEnded:
    """Tasks of a job reached their terminal state by attempts of one worker, or without any (worker_id empty)."""

    job: int
    worker_id: str
    ended: Sequence[EndedTask]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFailed:
    """An attempt ended without success and the task goes on; counts are the task's after it.

    One that an orchestrator below handed back after failures there is recorded so too, for them all.
    """

    job: int
    index: int
    epoch: int
    attempt: int
    worker_id: str
    failure: Failure
    app_failures: int
    crashes: int
    infra_failures: int
    lost: bool = False
    """Given up with its worker, not reported by it: a late success counts."""
    wall_ns: int = 0
    """When it failed, and how long the task waits from then on: after a restart it waits for what is left."""
    pause_ns: int = 0
    suspected: int = 0
    """Deaths of processes and workers that the task may have brought about, its crashes among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptIssued:
    """The token of an at-most-once task is about to be sent."""

    job: int
    index: int
    epoch: int
    attempt: int
    worker_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptReturned:
    """The holder of an at-most-once task's token confirmed that it never started."""

    job: int
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCancelled:
    """Every task of the job that had not ended is CANCELLED."""

    job: int
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnded:
    """The last task of a closed job ended; says when, for people."""

    job: int
    wall_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPurged:
    """The job and all its records are gone."""

    job: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSeen:
    """A worker attached in this epoch: after a restart its return is waited for."""

    worker_id: WorkerId
    orchestrator: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLeft:
    """A worker said goodbye or was lost: nobody waits for it."""

    worker_id: WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentBound:
    """A task of the up-stream orchestrator, which has jobs of its own here, is ours under this token; a newer token binds the same expansion again."""

    job_id: str
    index: int
    epoch: int
    attempt: int
    template: TaskTemplate
    payload: bytes
    wall_ns: int = 0
    """When it was bound: what is left of its total deadline counts from there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentDone:
    """The up-stream orchestrator knows the end of its task (or took it away); nothing of it is kept."""

    job_id: str
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentsRelayed:
    """Tasks index, index + 1, ... of an up-stream job are ours under these tokens, and tasks local, local + 1, ... of `job` stand for them.

    Of the job, as RelaysDone: both are purged with it. A newer token of a task that is held already is one more such record.
    """

    job: int
    local: int
    count: int
    job_id: str
    index: int
    epoch: int
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaysDone:
    """Tasks of `job` stand for no parent any more: their end is known up-stream, or they were taken away, or are done anew."""

    job: int
    job_id: str
    indices: Sequence[int]
    """Of the up-stream job."""


Record = (
    EpochStarted
    | JobCreated
    | TasksAdded
    | JobClosed
    | JobPaused
    | TasksEnded
    | AttemptFailed
    | AttemptIssued
    | AttemptReturned
    | JobCancelled
    | JobEnded
    | JobPurged
    | WorkerSeen
    | WorkerLeft
    | ParentBound
    | ParentDone
    | ParentsRelayed
    | RelaysDone
)

CANCELLED_KIND = "cancelled"


def ended_tasks(record: Record, indices: Sequence[int]) -> dict[int, EndedTask]:
    """The outcomes of tasks, read from the record that ended them. ValueError when the record is of another kind, LookupError when it ended others."""
    match record:
        case TasksEnded():
            ended = {task.index: task for task in record.ended}
            return {index: ended[index] for index in indices}
        case JobCancelled():
            failure = cancelled(record.cause)
            return {index: EndedTask(index=index, state=TaskState.CANCELLED, failure=failure) for index in indices}
        case _:
            raise ValueError(f"{type(record).__name__} ends no tasks")


def cancelled(cause: str) -> Failure:
    """The failure that a cancelled task shows."""
    return Failure(failure_class=FailureClass.CANCELLED, kind=CANCELLED_KIND, message=cause)
