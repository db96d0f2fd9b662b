"""What people and clients see of the state: read, never changed, and terminal only once that is durable."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator

from antfarm.model import JobState, JobStatus, TaskResult, TaskState
from services.orchestrator.core import records
from services.orchestrator.core.records import Record
from services.orchestrator.core.state import Job


def job_status(job: Job, *, durable_seq: int, wall_ns: int, type_paused: str = "") -> JobStatus:
    """A job as it stands. It is shown as ended only when its last outcome is durable."""
    state = job.state
    last_seq = job.result_seqs[-1] if job.result_seqs else 0
    durable = last_seq <= durable_seq and job.ended_seq <= durable_seq
    if state.terminal and not durable:
        state = JobState.RUNNING
    ended_ns = job.ended_wall_ns if state.terminal else 0
    return JobStatus(
        job_id=job.job_id,
        spec=job.spec,
        state=state,
        paused=job.paused,
        task_count=job.task_count,
        counts={s: job.counts[s] for s in TaskState if job.counts[s]},
        retried_count=job.retried,
        age_s=max(wall_ns - job.created_wall_ns, 0) / 1e9,
        duration_s=max(ended_ns - job.created_wall_ns, 0) / 1e9 if ended_ns else None,
        retry_of=job.retry_of,
        cause=job.cause,
        type_paused="" if state.terminal else type_paused,
    )


def task_state(job: Job, index: int, *, durable_seq: int) -> TaskState:
    """A task's state. It is shown as ended only when its outcome is durable."""
    return TaskState(job.states[index]) if job.outcome_seqs[index] <= durable_seq else TaskState.ACTIVE


def results_of(record: Record, job: Job, wanted: frozenset[int] | None) -> Iterator[TaskResult]:
    """The outcomes of a job that a record holds, all or only the wanted ones."""
    worker_id, outcomes = outcomes_of(record, job, wanted)
    for task in outcomes:
        yield TaskResult(
            index=task.index,
            state=task.state,
            attempt=task.attempt,
            result=task.result,
            outputs=task.outputs,
            failure=task.failure,
            worker_id=worker_id,
            run_us=task.run_us,
        )


def outcomes_of(record: Record, job: Job, wanted: frozenset[int] | None) -> tuple[str, Iterable[records.EndedTask]]:
    """The same as the record says them, and the worker of all of them: where hundreds of thousands are read a second."""
    match record:
        case records.TasksEnded():
            ended = record.ended
            return record.worker_id, ended if wanted is None else [task for task in ended if task.index in wanted]
        case records.JobCancelled():
            failure = records.cancelled(record.cause)
            cancelled = (
                records.EndedTask(index=index, state=TaskState.CANCELLED, failure=failure)
                for index in (range(job.task_count) if wanted is None else sorted(wanted))
                if index < job.task_count and job.outcome_seqs[index] == job.cancelled_seq
            )
            return "", cancelled
        case _:
            raise AssertionError(record)


def result_seqs(job: Job, cursor: int, durable_seq: int, wanted: Collection[int] | None) -> list[int]:
    """Records after the cursor that hold durable outcomes of the job, in order; only those of the wanted tasks when given."""
    if wanted is not None:
        seqs = {job.outcome_seqs[index] for index in wanted if 0 <= index < job.task_count}
        return sorted(seq for seq in seqs if cursor < seq <= durable_seq)
    return [seq for seq in job.result_seqs[bisect_right(job.result_seqs, cursor) :] if seq <= durable_seq]


def all_durable(job: Job, wanted: Collection[int], durable_seq: int) -> bool:
    """True when each of the wanted tasks has a durable outcome; one that the job does not have yet has none."""
    return all(index < job.task_count and 0 < job.outcome_seqs[index] <= durable_seq for index in wanted)
