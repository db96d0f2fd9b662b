"""Jobs: submitted, closed, cancelled, retried, purged. What clients ask for, each answered once its records are durable."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from antfarm import errors
from antfarm.model import Failure, FailureClass, JobId, JobSpec, TaskState
from services.orchestrator.core import events, health, records
from services.orchestrator.core.effects import Reply, SendRevoke
from services.orchestrator.core.events import HeldToken
from services.orchestrator.core.lanes import PARENT_PREFIX
from services.orchestrator.core.limits import check_job, check_payloads
from services.orchestrator.core.state import Attempt, Job, dependency_failed, is_met, task_bytes
from services.orchestrator.core.turn import Turn

_WAITING, _QUEUED = int(TaskState.WAITING), int(TaskState.QUEUED)
_ENDS_IN_RECORD_MAX = 1_000
"""Tasks that one record ends: a million that expire together must not become one row."""


def create(turn: Turn, event: events.CreateJob) -> None:
    """A new job; the same job again answers `existed`; another one under the same id is a conflict."""
    state = turn.state
    check_job(event.job_id, event.spec)
    _check_own(event.job_id)
    check_payloads(event.payloads)
    job = state.by_id.get(event.job_id)
    if job is not None:
        if job.spec != event.spec:
            raise errors.Conflict(f"job {event.job_id} exists with another specification: choose another id")
        _append(turn, job, 0, event.payloads, event.close)
        turn.effect(Reply(request=event.request, after=state.seq, existed=True))
        return
    for dependency in event.spec.dependencies:
        _check_own(dependency.job_id)  # it goes with its parent, whoever still waits for it
        if dependency.job_id not in state.by_id:
            raise errors.DependencyNotFound(
                f"job {dependency.job_id}, which {event.job_id} depends on, does not exist here: submit it first"
            )
    _admit(turn, event.payloads)
    make(turn, event.job_id, event.spec, event.payloads, close=event.close)
    turn.effect(Reply(request=event.request, after=state.seq))


def _check_own(job_id: JobId) -> None:
    if job_id.startswith(PARENT_PREFIX):
        raise errors.InvalidArgument(
            f"job id {job_id[:80]!r}: ids that start with {PARENT_PREFIX} are of jobs from the orchestrator above"
        )


def make(
    turn: Turn, job_id: JobId, spec: JobSpec, payloads: Sequence[bytes], *, close: bool, retry_of: str = ""
) -> Job:
    """Record a new job with its first tasks. The caller has checked that it is admissible."""
    if job_id in turn.state.purged:
        # A late report on the purged job must not be taken for one on the new: its tokens are of an earlier epoch.
        turn.record(records.EpochStarted(epoch=turn.state.epoch + 1, wall_ns=turn.wall_ns))
    number = turn.state.next_job
    turn.record(records.JobCreated(job=number, job_id=job_id, spec=spec, wall_ns=turn.wall_ns, retry_of=retry_of))
    job = turn.state.jobs[number]
    _add(turn, job, payloads, close)
    return job


def append(turn: Turn, event: events.AppendTasks) -> None:
    """More tasks for an open job. Batches that it has already change nothing."""
    check_payloads(event.payloads)
    job = find(turn, event.job_id)
    _append(turn, job, event.first_index, event.payloads, event.close)
    turn.effect(Reply(request=event.request, after=turn.state.seq))


def _append(turn: Turn, job: Job, first: int, payloads: Sequence[bytes], close: bool) -> None:
    have = job.task_count
    if first > have:
        raise errors.Gap(f"job {job.job_id} has {have} tasks: go on from index {have}, not {first}")
    known = payloads[: have - first]
    if list(map(zlib.crc32, known)) != list(job.digests[first : first + len(known)]):
        raise errors.Conflict(
            f"job {job.job_id} has other tasks at index {first} to {first + len(known) - 1}: choose another job id"
        )
    if close and first + len(payloads) < have:
        raise errors.Conflict(
            f"job {job.job_id} has {have:,} tasks, not {first + len(payloads):,}: it was submitted with more input; choose another job id"
        )
    fresh = payloads[len(known) :]
    if fresh and (job.closed or job.cancelled):
        raise errors.JobClosed(
            f"job {job.job_id} is {'cancelled' if job.cancelled else 'closed'} and takes no more tasks: make a new job"
        )
    _admit(turn, fresh)
    _add(turn, job, fresh, close)


def _add(turn: Turn, job: Job, payloads: Sequence[bytes], close: bool) -> None:
    """Tasks at the end of a job, then perhaps its close."""
    if payloads:
        start = job.task_count
        turn.record(records.TasksAdded(job=job.number, first_index=start, payloads=payloads, wall_ns=turn.wall_ns))
        job.begun_ns.append(turn.now)
        _arm_deadlines(turn, job, start, len(payloads), turn.now)
        if job.dependencies:
            ended(turn, job, _fail_dependents(turn, job, range(start, job.task_count)))
    if close and not job.closed:
        turn.record(records.JobClosed(job=job.number))
        ended(turn, job)


def _admit(turn: Turn, payloads: Sequence[bytes]) -> None:
    if not payloads:
        return
    if turn.state.disk_low:
        raise errors.DiskFull(
            "the orchestrator's disk is nearly full: nothing was taken; make room and submit again", 10.0
        )
    if turn.state.kept_bytes + task_bytes(payloads) > turn.config.payload_bytes_max:
        kept = sum(turn.state.jobs[number].kept_bytes for number in turn.state.ended)
        advice = f", or purge ended jobs, whose failed and cancelled tasks keep {kept >> 20} MiB for a retry"
        raise errors.Overloaded(
            f"too many tasks are queued: nothing was taken; submit again when some have run{advice if kept else ''}",
            5.0,
        )


def _arm_deadlines(turn: Turn, job: Job, first: int, count: int, since_ns: int) -> None:
    timeouts = job.template.timeouts
    if timeouts.queue_ns is not None:
        turn.state.arm(since_ns + timeouts.queue_ns, "queue", job.number, first, count)
    if timeouts.total_ns is not None:
        turn.state.arm(since_ns + timeouts.total_ns, "total", job.number, first, count)


def rearm_deadlines(turn: Turn, job: Job) -> None:
    """After a restart: what is left of each duration by the wall clock, clamped to [0, whole]."""
    job.begun_ns = [turn.moment_ns(batch.wall_ns) for batch in job.batches]
    for batch, begun_ns in zip(job.batches, job.begun_ns, strict=True):
        _arm_deadlines(turn, job, batch.first, batch.size, begun_ns)


def is_late(turn: Turn, job: Job, index: int) -> bool:
    """True when the task's time in the queue is over."""
    queue_ns = job.template.timeouts.queue_ns
    return queue_ns is not None and submitted_ns(job, index) + queue_ns <= turn.now


def expire_queued(turn: Turn, job: Job, indices: range) -> None:
    """Queue time-to-live: those of the tasks, whose time in the queue is over, that nobody has begun. One that failed has begun, and waits for its retry."""
    if turn.state.recovering_until_ns is not None and not turn.state.knows_epoch(job.batch(indices.start).epoch):
        return  # what looks QUEUED may run with a worker that has not come back yet: `expire_recovered` looks again
    late = [
        index
        for index in indices
        if job.states[index] in (_WAITING, _QUEUED)
        and (index not in job.notes or job.notes[index].last_failure is None)
    ]
    expire(turn, job, late, "its time in the queue is over")


def expire_recovered(turn: Turn) -> None:
    """The recovery is over, before anything is given out: who had begun what is known, and the rest may have queued for too long."""
    for job in list(turn.state.jobs.values()):
        if job.ended or job.template.timeouts.queue_ns is None:
            continue
        for batch in job.batches:
            if is_late(turn, job, batch.first):
                expire_queued(turn, job, range(batch.first, batch.first + batch.size))


def expire(turn: Turn, job: Job, late: Sequence[int], message: str) -> None:
    """End tasks whose time is over."""
    if late:
        failure = Failure(failure_class=FailureClass.EXPIRED, kind="expired", message=message)
        end_tasks(turn, job, late, TaskState.EXPIRED, failure)


def submitted_ns(job: Job, index: int) -> int:
    """When a task was submitted, on the turn's clock."""
    return job.begun_ns[job.batch_number(index)]


def close(turn: Turn, event: events.CloseJob) -> None:
    """No more tasks will come."""
    job = find(turn, event.job_id)
    if not job.closed:
        turn.record(records.JobClosed(job=job.number))
        ended(turn, job)
    turn.effect(Reply(request=event.request, after=turn.state.seq))


def pause(turn: Turn, event: events.PauseJob) -> None:
    """Give out no more, or again."""
    job = find(turn, event.job_id)
    if job.paused != event.paused:
        turn.record(records.JobPaused(job=job.number, paused=event.paused))
    if not event.paused:
        health.resume_type(turn, job.template.type, "somebody resumed a job of it")
    turn.effect(Reply(request=event.request, after=turn.state.seq))


def cancel(turn: Turn, event: events.CancelJob) -> None:
    """Cancel every task that has not ended: first the commit, then the revocations."""
    job = find(turn, event.job_id)
    cancel_job(turn, job, event.cause or "cancelled by a user")
    turn.effect(Reply(request=event.request, after=turn.state.seq))


def cancel_job(turn: Turn, job: Job, cause: str) -> None:
    """Cancel a job; one that has ended stays as it is."""
    if not (job.cancelled or job.ended):
        _record_cancel(turn, job, cause)
        ended(turn, job)


def _record_cancel(turn: Turn, job: Job, cause: str) -> None:
    live = job.all_live()
    seq = turn.record(records.JobCancelled(job=job.number, cause=cause))
    revoke(turn, live, seq, cause)


def cancel_task(turn: Turn, event: events.CancelTask) -> None:
    """Cancel one task; one that has ended stays as it is."""
    job = find(turn, event.job_id)
    if not 0 <= event.index < job.task_count:
        raise no_task(job, event.index)
    if job.states[event.index] < TaskState.SUCCEEDED:
        failure = records.cancelled(event.cause or "cancelled by a user")
        end_tasks(turn, job, [event.index], TaskState.CANCELLED, failure)
    turn.effect(Reply(request=event.request, after=turn.state.seq))


def retry(turn: Turn, event: events.RetryJob) -> None:
    """A new job of the tasks that ended without success."""
    job = find(turn, event.job_id)
    check_job(event.new_job_id, job.spec)
    _check_own(event.new_job_id)
    existing = turn.state.by_id.get(event.new_job_id)
    if existing is not None:
        if existing.retry_of != event.job_id or existing.created_seq < job.created_seq:
            raise errors.Conflict(f"job {event.new_job_id} exists and is no retry of {event.job_id}: choose another id")
        turn.effect(Reply(request=event.request, after=turn.state.seq, existed=True))
        return
    if job.spec.dependencies:
        raise errors.WrongState(
            f"job {event.job_id} takes inputs from other jobs: submit those tasks anew instead of retrying them"
        )
    again = [
        payload
        for payload, state in zip(job.payloads, job.states, strict=True)
        if state > TaskState.SUCCEEDED and payload is not None
    ]
    if not again:
        raise errors.NothingToRetry(f"no task of job {event.job_id} ended without success: there is nothing to repeat")
    _admit(turn, again)
    make(turn, event.new_job_id, job.spec, again, close=True, retry_of=job.job_id)
    turn.effect(Reply(request=event.request, after=turn.state.seq))


def purge(turn: Turn, event: events.PurgeJob) -> None:
    """Remove an ended job with its record; one that was removed a while ago stays so, because a client that had no answer asks again."""
    if event.job_id in turn.state.purged and event.job_id not in turn.state.by_id:
        turn.effect(Reply(request=event.request, after=turn.state.seq))
        return
    job = find(turn, event.job_id)
    if not job.ended:
        raise errors.JobNotEnded(f"job {event.job_id} has tasks that have not ended: cancel it first")
    needed = needed_by(turn, job)
    if needed is not None:
        raise errors.JobNotEnded(f"job {job.job_id} is {needed}, which has not ended: wait for that, or cancel it")
    turn.record(records.JobPurged(job=job.number))
    turn.effect(Reply(request=event.request, after=turn.state.seq))


def needed_by(turn: Turn, job: Job) -> str | None:
    """What an ended job cannot be purged for, in words; None when nothing needs it."""
    for other, _, _ in job.dependents:
        if not other.ended:
            return f"needed by {other.job_id}"
    parent = turn.state.parent_of(job)
    return f"part of task {parent.job_id}/{parent.index} of the orchestrator above" if parent is not None else None


def find(turn: Turn, job_id: str) -> Job:
    """The job of that id. JobNotFound otherwise."""
    job = turn.state.by_id.get(job_id)
    if job is None:
        raise errors.JobNotFound(f"no job {job_id!r} here: `antfarm job list` shows those that are")
    return job


def no_task(job: Job, index: int) -> errors.TaskNotFound:
    """What is said to whoever asks for a task that the job does not have."""
    return errors.TaskNotFound(
        f"job {job.job_id} has {job.task_count} tasks, none of index {index}: `antfarm task list` shows them"
    )


# ---- ends without an attempt's report --------------------------------------------------------------------------------


def end_tasks(turn: Turn, job: Job, indices: Sequence[int], state: TaskState, failure: Failure) -> None:
    """End tasks that no report ends: cancelled, expired, given up. Live attempts are revoked."""
    _record_ends(turn, job, indices, state, failure)
    ended(turn, job, indices)


def _record_ends(turn: Turn, job: Job, indices: Sequence[int], state: TaskState, failure: Failure) -> None:
    live = [attempt for index in indices if index in job.live for attempt in job.attempts_of(index)]
    for start in range(0, len(indices), _ENDS_IN_RECORD_MAX):
        part = indices[start : start + _ENDS_IN_RECORD_MAX]
        turn.record(
            records.TasksEnded(
                job=job.number,
                worker_id="",
                ended=[records.EndedTask(index=index, state=state, failure=failure) for index in part],
            )
        )
    revoke(turn, live, turn.state.seq, failure.message)


def ended(turn: Turn, job: Job, indices: Sequence[int] = ()) -> None:
    """After tasks of a job ended: fail what depended on them, stop at max_failures, and close the books of an ended job.

    What fails thereby has the same consequences, through chains of jobs of any length: a list of work, not a recursion.
    """
    work = deque([(job, indices)])
    while work:
        job, indices = work.popleft()
        for other, candidates in _followers(job, indices):
            failed = _fail_dependents(turn, other, candidates)
            if failed:
                work.append((other, failed))
        limit = job.spec.max_failures
        if limit is not None and job.failed_count > limit and not job.cancelled and not job.ended:
            _record_cancel(turn, job, f"more than {limit} tasks ended without success")
            work.append((job, ()))
        elif job.ended and not job.ended_seq:
            turn.record(records.JobEnded(job=job.number, wall_ns=turn.wall_ns))
            job.ended_ns = turn.now
            turn.ended_jobs.append(job)


def _followers(job: Job, indices: Sequence[int]) -> Iterator[tuple[Job, Iterable[int]]]:
    """(dependent job, its tasks that may have lost their input) after those tasks of a job ended."""
    for other, _, offset in list(job.dependents):
        if other.ended:
            continue
        if job.cancelled:
            yield other, range(len(other.states))
            continue
        if job.failed_count:
            yield other, (index - offset for index in indices)
        if job.ended:  # what waits for tasks beyond its end waits in vain
            yield other, range(max(len(job.states) - offset, 0), len(other.states))


def _fail_dependents(turn: Turn, job: Job, indices: Iterable[int]) -> list[int]:
    """Fail those waiting tasks whose dependencies can no longer be met. Returns them."""
    failed: dict[str, list[int]] = {}
    for index in indices:
        if 0 <= index < len(job.states) and job.states[index] == _WAITING:
            for other, kind, offset in job.dependencies:
                if dependency_failed(other, kind, index + offset):
                    failed.setdefault(other.job_id, []).append(index)
                    break
    for job_id, lost in failed.items():
        message = f"the task of job {job_id} that it needs did not succeed"
        failure = Failure(failure_class=FailureClass.DEPENDENCY, kind="dependency", message=message)
        _record_ends(turn, job, lost, TaskState.FAILED, failure)
    return [index for lost in failed.values() for index in lost]


def must_wait(turn: Turn, job: Job, index: int) -> bool:
    """True when a task that is to be tried again waits for what it depends on, or has failed because that did.

    It has begun, so that was there once; but a restored backup may be of before.
    """
    if is_met(job, index):
        return False
    job.set_state(index, TaskState.WAITING)
    failed = _fail_dependents(turn, job, [index])
    if failed:
        ended(turn, job, failed)
    return True


def revoke(turn: Turn, attempts: Sequence[Attempt], after: int, cause: str) -> None:
    """Ask the workers of these attempts, which are live no longer, to stop them."""
    by_session: dict[str, list[HeldToken]] = {}
    for attempt in attempts:
        if not (attempt.worker.lost or attempt.worker.gone):
            attempt.worker.stopping[attempt.token] = attempt.frame
        if attempt.worker.session is not None:
            by_session.setdefault(attempt.worker.session, []).append(attempt.token)
    for attempt in attempts:
        session = attempt.worker.session
        if session is not None and session in by_session:
            turn.effect(SendRevoke(session=session, after=after, tokens=by_session.pop(session), cause=cause))
