"""Reports: the verdict on each outcome that a worker sends, and what follows for its task.

`judge` is the only place that decides whether a report counts (semantics section 7). It reads a token against what is known of the task; what it
says is carried out by the functions below it.
"""

from __future__ import annotations

from enum import Enum, auto

from antfarm.model import Ending, Failure, FailureClass, TaskState, VerdictCode
from services.orchestrator.core import events, jobs, records
from services.orchestrator.core.effects import Audit, SendVerdicts
from services.orchestrator.core.events import Outcome
from services.orchestrator.core.state import Attempt, Job, Past, TaskNote, Worker
from services.orchestrator.core.turn import Turn

_SUCCEEDED = TaskState.SUCCEEDED
_TERMINAL = int(TaskState.SUCCEEDED)
_ENDING_SUCCEEDED = Ending.SUCCEEDED


class Judgement(Enum):
    """What a report means for its task."""

    LIVE = auto()
    """The token is live: the report counts, whatever it says."""
    ADOPT = auto()
    """The token is of an earlier epoch and nothing newer was issued: as if it were live."""
    LATE = auto()
    """The attempt was given up, but was issued to this worker: a success counts."""
    DUPLICATE = auto()
    SUPERSEDED = auto()
    FENCED = auto()


def judge(turn: Turn, worker: Worker, job: Job, epoch: int, index: int, attempt: int) -> Judgement:
    """What a report with the token (job, index, epoch, attempt) from this worker means. Changes nothing."""
    if job.states[index] >= _TERMINAL:
        won = job.winners[index] == (epoch << 32 | attempt) and attempt > 0
        return Judgement.DUPLICATE if won else Judgement.SUPERSEDED
    live = job.live.get(index)
    if live is not None and live.epoch == epoch and live.attempt == attempt:
        return Judgement.LIVE if live.worker is worker else Judgement.FENCED
    note = job.notes.get(index)
    past = note.past.get((epoch, attempt)) if note is not None else None
    if past is not None:
        holder, how = past
        if holder != worker.worker_id:
            return Judgement.FENCED
        if how is Past.FAILED:
            return Judgement.DUPLICATE
        if how is Past.REVOKED:
            return Judgement.SUPERSEDED
        return Judgement.SUPERSEDED if job.template.fence_late_results else Judgement.LATE
    if epoch >= turn.state.epoch or attempt < 1 or epoch < 1:
        return Judgement.FENCED  # every token of this epoch is known: this one was never issued
    newest = (note.epoch, note.attempt) if note is not None else (0, 0)
    if live is not None:
        newest = max(newest, (live.epoch, live.attempt))
    if (epoch, attempt) < newest:
        return Judgement.SUPERSEDED if job.template.fence_late_results else Judgement.LATE
    if job.template.at_most_once:
        return Judgement.FENCED  # its tokens are journaled: an unknown one was never issued
    return Judgement.ADOPT


def outcomes(turn: Turn, event: events.Outcomes) -> None:
    """Reports of attempts of one job and epoch: many successes become one record, everything else is taken one by one."""
    worker = turn.state.sessions.get(event.session)
    if worker is None:
        return  # the stream goes with its session, and the worker sends everything again on the next
    worker.heard_ns = turn.now
    worker.suspect = False
    job = turn.state.by_id.get(event.job_id)
    if job is None:
        numbers = [outcome.report_no for outcome in event.outcomes]
        _verdict(turn, worker, VerdictCode.UNKNOWN_TASK, numbers, 0)
        return
    live, epoch, count = job.live, event.epoch, job.task_count
    successes: list[records.EndedTask] = []
    accepted: list[int] = []
    others: list[Outcome] = []
    for outcome in event.outcomes:
        index = outcome.index
        attempt = live.get(index)
        if (
            attempt is not None
            and outcome.ending is _ENDING_SUCCEEDED
            and attempt.attempt == outcome.attempt
            and attempt.epoch == epoch
            and attempt.worker is worker
        ):
            successes.append(
                records.EndedTask(
                    index=index,
                    state=_SUCCEEDED,
                    epoch=epoch,
                    attempt=outcome.attempt,
                    result=outcome.result,
                    outputs=outcome.outputs,
                    run_us=outcome.run_us,
                )
            )
            accepted.append(outcome.report_no)
            # Off the live set at once, so that a second report of it in the same frame is not taken for another success.
            turn.state.finish(attempt)
        else:
            others.append(outcome)
    if successes:
        worker.succeeded += len(successes)
        seq = turn.record(records.TasksEnded(job=job.number, worker_id=worker.worker_id, ended=successes))
        jobs.ended(turn, job, [task.index for task in successes] if job.dependents else ())
        _verdict(turn, worker, VerdictCode.ACCEPTED, accepted, seq)
    for outcome in others:
        if not 0 <= outcome.index < count:
            _verdict(turn, worker, VerdictCode.UNKNOWN_TASK, [outcome.report_no], 0)
        else:
            _one(turn, worker, job, epoch, outcome)


def _one(turn: Turn, worker: Worker, job: Job, epoch: int, outcome: Outcome) -> None:
    """Judge one report and carry the judgement out."""
    index = outcome.index
    judgement = judge(turn, worker, job, epoch, index, outcome.attempt)
    code, after = VerdictCode.ACCEPTED, 0
    match judgement:
        case Judgement.LIVE | Judgement.ADOPT:
            if judgement is Judgement.ADOPT:
                adopt(turn, worker, job, index, epoch, outcome.attempt)
            after = _count(turn, worker, job.live[index], outcome)
        case Judgement.LATE:
            if outcome.ending is Ending.SUCCEEDED:
                after = _late_success(turn, worker, job, epoch, outcome)
            else:
                code = VerdictCode.SUPERSEDED
        case Judgement.DUPLICATE:
            # It had counted before; the record that counted it may still be on its way to the disk.
            code, after = VerdictCode.DUPLICATE, turn.state.seq
        case Judgement.SUPERSEDED:
            code, after = VerdictCode.SUPERSEDED, turn.state.seq
        case Judgement.FENCED:
            code = VerdictCode.FENCED
            turn.effect(
                Audit(
                    text=f"fenced: {worker.worker_id} reported {job.job_id}/{index} epoch {epoch} attempt {outcome.attempt}, not issued to it"
                )
            )
    _verdict(turn, worker, code, [outcome.report_no], after)


def _verdict(turn: Turn, worker: Worker, code: VerdictCode, numbers: list[int], after: int) -> None:
    if worker.session is not None:
        turn.effect(SendVerdicts(session=worker.session, after=after, code=code, report_nos=numbers))


def adopt(turn: Turn, worker: Worker, job: Job, index: int, epoch: int, attempt: int) -> None:
    """Take a token that was issued before a restart or a silence as live again: its holder goes on, and nothing is repeated."""
    held = job.live.get(index)
    assert held is None, "a live attempt would be newer"
    note = job.note(index)
    note.epoch, note.attempt = max((note.epoch, note.attempt), (epoch, attempt))
    note.backing_off = False
    job.set_state(index, TaskState.ACTIVE)
    turn.state.begin(Attempt(job, index, epoch, attempt, worker, 0, turn.now))


def _count(turn: Turn, worker: Worker, attempt: Attempt, outcome: Outcome) -> int:
    """A live attempt ended: the task ends or goes on. Returns the record to wait for, 0 for none."""
    job = attempt.job
    match outcome.ending:
        case Ending.SUCCEEDED:
            worker.succeeded += 1
            return _succeed(turn, worker, job, attempt.epoch, outcome)
        case Ending.RELEASED | Ending.REVOKED:
            return give_back(turn, attempt, never_started=outcome.never_started)
        case Ending.FAILED | Ending.TIMED_OUT:
            failure = outcome.failure or Failure(
                failure_class=FailureClass.APP, kind="unknown", message="no failure was sent"
            )
            if failure.failure_class is FailureClass.BENIGN:
                return give_back(turn, attempt, never_started=outcome.never_started)
            worker.failed += 1
            return fail(turn, attempt, failure, run_us=outcome.run_us)
    raise AssertionError(outcome.ending)


def _succeed(turn: Turn, worker: Worker, job: Job, epoch: int, outcome: Outcome) -> int:
    seq = turn.record(
        records.TasksEnded(
            job=job.number,
            worker_id=worker.worker_id,
            ended=[
                records.EndedTask(
                    index=outcome.index,
                    state=TaskState.SUCCEEDED,
                    epoch=epoch,
                    attempt=outcome.attempt,
                    result=outcome.result,
                    outputs=outcome.outputs,
                    run_us=outcome.run_us,
                )
            ],
        )
    )
    jobs.ended(turn, job, [outcome.index])
    return seq


def _late_success(turn: Turn, worker: Worker, job: Job, epoch: int, outcome: Outcome) -> int:
    """A success of an attempt that was given up: it counts, and the attempt that replaced it is stopped."""
    replaced = job.live.get(outcome.index)
    worker.succeeded += 1
    seq = _succeed(turn, worker, job, epoch, outcome)
    if replaced is not None:
        jobs.revoke(turn, [replaced], seq, "an earlier attempt succeeded")
    return seq


def give_back(turn: Turn, attempt: Attempt, *, never_started: bool) -> int:
    """A benign end: the task is queued again at no cost. A started at-most-once task cannot be, and is given up."""
    job, index = attempt.job, attempt.index
    if job.template.at_most_once:
        if not never_started:
            failure = Failure(
                failure_class=FailureClass.INFRA, kind="released", message="it had started and runs at most once"
            )
            return _end(turn, attempt, TaskState.DEAD_LETTER, failure, 0)
        turn.state.finish(attempt)
        seq = turn.record(records.AttemptReturned(job=job.number, index=index))
        _remember(job.note(index), attempt, Past.REVOKED)
        turn.state.make_ready(job, index)
        return seq
    turn.state.finish(attempt)
    _remember(job.note(index), attempt, Past.RELEASED)
    turn.state.make_ready(job, index)
    return 0


def fail(turn: Turn, attempt: Attempt, failure: Failure, *, run_us: int) -> int:
    """A failure that counts: on the retries, the crash limit or the infrastructure budget, by its class."""
    job, index = attempt.job, attempt.index
    note = job.note(index)
    app, crashes, infra = note.app_failures, note.crashes, note.infra_failures
    template = job.template
    match failure.failure_class:
        case FailureClass.CRASH:
            crashes += 1
            final, state = crashes >= turn.config.crashes_max, TaskState.DEAD_LETTER
        case FailureClass.INFRA:
            infra += 1
            final, state = infra > turn.config.infra_failures_max, TaskState.DEAD_LETTER
        case FailureClass.APP:
            app += 1
            final, state = app >= template.retry.max_attempts, TaskState.FAILED
        case _:
            final, state = True, TaskState.FAILED
    if final or template.at_most_once:
        return _end(turn, attempt, state, failure, run_us)
    turn.state.finish(attempt)
    seq = turn.record(
        records.AttemptFailed(
            job=job.number,
            index=index,
            epoch=attempt.epoch,
            attempt=attempt.attempt,
            worker_id=attempt.worker.worker_id,
            failure=failure,
            app_failures=app,
            crashes=crashes,
            infra_failures=infra,
        )
    )
    if failure.failure_class is FailureClass.APP:
        pause = min(template.retry.backoff_initial_ns << min(app - 1, 40), template.retry.backoff_max_ns)
    else:
        # A lost node says little about the task: the first repeat goes out at once.
        pause = (
            min(turn.config.heartbeat_ns << min(crashes + infra - 2, 4), 60_000_000_000) if crashes + infra > 1 else 0
        )
    _back_off(turn, job, index, int(pause * turn.dice.random()))
    return seq


def _back_off(turn: Turn, job: Job, index: int, pause_ns: int) -> None:
    if pause_ns <= 0:
        turn.state.make_ready(job, index)
        return
    job.set_state(index, TaskState.WAITING)
    job.note(index).backing_off = True
    turn.state.arm(turn.now + pause_ns, "retry", job.number, index)


def _end(turn: Turn, attempt: Attempt, state: TaskState, failure: Failure, run_us: int) -> int:
    job, index = attempt.job, attempt.index
    seq = turn.record(
        records.TasksEnded(
            job=job.number,
            worker_id=attempt.worker.worker_id,
            ended=[
                records.EndedTask(
                    index=index,
                    state=state,
                    epoch=attempt.epoch,
                    attempt=attempt.attempt,
                    failure=failure,
                    run_us=run_us,
                )
            ],
        )
    )
    jobs.ended(turn, job, [index])
    return seq


def _remember(note: TaskNote, attempt: Attempt, how: Past) -> None:
    note.past[attempt.epoch, attempt.attempt] = (attempt.worker.worker_id, how)
    if (attempt.epoch, attempt.attempt) > (note.epoch, note.attempt):
        note.epoch, note.attempt = attempt.epoch, attempt.attempt


def lose(turn: Turn, attempt: Attempt, cause: str) -> None:
    """The attempt's worker is lost: the task is queued again within its budget, a late success may still come."""
    job, index = attempt.job, attempt.index
    if job.template.at_most_once:
        # Its token stays the only one: the task waits, ACTIVE, for the holder until the orphan hold ends.
        turn.state.finish(attempt)
        _remember(job.note(index), attempt, Past.LOST)
        turn.state.arm(turn.now + turn.config.orphan_hold_ns, "orphan", job.number, index)
        return
    failure = Failure(failure_class=FailureClass.INFRA, kind="node lost", message=cause)
    fail(turn, attempt, failure, run_us=0)


def running(turn: Turn, event: events.Running) -> None:
    """A word from a running attempt: it has started, and how far it is."""
    worker = turn.state.sessions.get(event.session)
    job = turn.state.by_id.get(event.job_id)
    if worker is None or job is None:
        return
    worker.heard_ns = turn.now
    attempt = job.live.get(event.index)
    if (
        attempt is None
        or (attempt.epoch, attempt.attempt) != (event.epoch, event.attempt)
        or attempt.worker is not worker
    ):
        return
    if not attempt.started:
        attempt.started = True
        run_ns = job.template.timeouts.run_ns
        if run_ns is not None:
            due = turn.now - event.running_for_ns + run_ns + turn.config.lease_ns
            turn.state.arm(due, "backstop", job.number, attempt.index, attempt.epoch, attempt.attempt)
    if event.progress is not None:
        attempt.progress = event.progress
    if event.progress_text:
        attempt.progress_text = event.progress_text
