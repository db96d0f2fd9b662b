"""Reports: the verdict on each outcome that a worker sends, and what follows for its task.

`judge` is the only place that decides whether a report counts (semantics section 7). It reads a token against what is known of the task; what it
says is carried out by the functions below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum, auto
from typing import assert_never

from antfarm.model import PROCESS_LOST_KIND, SECOND_NS, Ending, Failure, FailureClass, TaskState, VerdictCode
from antfarm.text import show
from services.orchestrator.core import events, health, isolation, jobs, records
from services.orchestrator.core.effects import Audit, SendVerdicts
from services.orchestrator.core.events import HeldToken, Outcome
from services.orchestrator.core.limits import ATTEMPT_MAX
from services.orchestrator.core.state import Attempt, Job, Past, State, TaskNote, Worker, may_have_backup
from services.orchestrator.core.turn import Turn

_SUCCEEDED = TaskState.SUCCEEDED
_TERMINAL = int(TaskState.SUCCEEDED)
_ENDING_SUCCEEDED = Ending.SUCCEEDED
QUARANTINED = "the worker is in quarantine"
"""Cause of revocations that a quarantine brings."""


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
    FOREIGN = auto()
    """The token is of a history that a restored backup has undone: it may be of another job that had this one's name."""


def judge(turn: Turn, worker: Worker, job: Job, epoch: int, index: int, attempt: int) -> Judgement:
    """What a report with the token (job, index, epoch, attempt) from this worker means. Changes nothing."""
    if job.states[index] >= _TERMINAL:
        won = job.winners[index] == (epoch << 32 | attempt) and attempt > 0
        return Judgement.DUPLICATE if won else Judgement.SUPERSEDED
    live = job.find_live(index, epoch, attempt)
    if live is not None:
        return Judgement.LIVE if live.worker is worker else Judgement.FENCED
    late = Judgement.SUPERSEDED if job.template.fence_late_results else Judgement.LATE
    note = job.notes.get(index)
    past = note.past.get((epoch, attempt)) if note is not None else None
    if past is not None:
        holder, how = past
        if holder != worker.worker_id:
            return Judgement.FENCED
        match how:
            case Past.ISSUED:
                return Judgement.ADOPT
            case Past.LOST:
                return late
            case Past.FAILED | Past.RELEASED:
                return Judgement.DUPLICATE
            case Past.REVOKED:
                return Judgement.SUPERSEDED
    if turn.state.knows_epoch(epoch) or not job.batch(index).epoch <= epoch < turn.state.epoch:
        return Judgement.FENCED  # every token of this life is known, and there was none before the task
    if turn.state.has_lost_epoch(epoch):
        return Judgement.FOREIGN
    if not 1 <= attempt <= ATTEMPT_MAX:
        return Judgement.FENCED
    if job.template.at_most_once:
        return Judgement.FENCED  # its tokens are journaled: an unknown one was never issued
    others = job.attempts_of(index)
    newest = max([(other.epoch, other.attempt) for other in others], default=(0, 0))
    if note is not None:
        newest = max(newest, (note.epoch, note.attempt))
    if (epoch, attempt) < newest and not _two_of_old(turn, worker, job, others):
        return late
    return Judgement.ADOPT


def _two_of_old(turn: Turn, worker: Worker, job: Job, others: Sequence[Attempt]) -> bool:
    """True when an unknown token of an earlier epoch and the live one can both have been live then: one of them was the other's backup."""
    return (
        may_have_backup(job.template)
        and len(others) == 1
        and not turn.state.knows_epoch(others[0].epoch)
        and others[0].worker is not worker
    )


def outcomes(turn: Turn, event: events.Outcomes) -> None:
    """Reports of attempts of one job and epoch: many successes become one record, everything else is taken one by one."""
    worker = turn.state.sessions.get(event.session)
    if worker is None:
        return  # the stream goes with its session, and the worker sends everything again on the next
    worker.heard(turn.now)
    job = turn.state.by_id.get(event.job_id)
    if job is None:
        numbers = [outcome.report_no for outcome in event.outcomes]
        _verdict(turn, worker, VerdictCode.UNKNOWN_TASK, numbers)
        return
    live, backups, epoch, count = job.live, job.backups, event.epoch, job.task_count
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
            and index not in backups
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
        worker.succeed(len(successes))
        turn.record(records.TasksEnded(job=job.number, worker_id=worker.worker_id, ended=successes))
        jobs.ended(turn, job, [task.index for task in successes] if job.dependents else ())
        _verdict(turn, worker, VerdictCode.ACCEPTED, accepted)
    for outcome in others:
        if not 0 <= outcome.index < count:
            _verdict(turn, worker, VerdictCode.UNKNOWN_TASK, [outcome.report_no])
        else:
            _one(turn, worker, job, epoch, outcome)


def _one(turn: Turn, worker: Worker, job: Job, epoch: int, outcome: Outcome) -> None:
    """Judge one report and carry the judgement out."""
    index = outcome.index
    worker.stopping.pop((job.job_id, index, epoch, outcome.attempt), None)
    judgement = judge(turn, worker, job, epoch, index, outcome.attempt)
    succeeded = outcome.ending is Ending.SUCCEEDED
    code = VerdictCode.ACCEPTED
    match judgement:
        case Judgement.LIVE | Judgement.ADOPT:
            if judgement is Judgement.ADOPT:
                adopt(turn, worker, job, index, epoch, outcome.attempt)
            attempt = job.find_live(index, epoch, outcome.attempt)
            assert attempt is not None
            if outcome.ending in (Ending.FAILED, Ending.TIMED_OUT) and job.backups.get(index) is attempt:
                code = VerdictCode.SUPERSEDED  # the task goes on with its other attempt
            _count(turn, worker, attempt, outcome)
        case Judgement.LATE:
            if succeeded:
                worker.succeed()
                _succeed(turn, worker, job, epoch, outcome)
            else:
                code = VerdictCode.SUPERSEDED
        case Judgement.DUPLICATE:
            # The attempt had counted before, but not as a success that comes after the orchestrator itself gave it up as failed.
            same = succeeded == (job.states[index] == _SUCCEEDED)
            code = VerdictCode.DUPLICATE if same else VerdictCode.SUPERSEDED
        case Judgement.SUPERSEDED:
            code = VerdictCode.SUPERSEDED
        case Judgement.FOREIGN:
            code = VerdictCode.UNKNOWN_TASK
        case Judgement.FENCED:
            code = VerdictCode.FENCED
            turn.effect(
                Audit(
                    text=f"fenced: {worker.worker_id} reported {job.job_id}/{index} epoch {epoch} attempt {outcome.attempt}, not issued to it"
                )
            )
    _verdict(turn, worker, code, [outcome.report_no])


def _verdict(turn: Turn, worker: Worker, code: VerdictCode, numbers: list[int]) -> None:
    """Tell a worker. A verdict is final, so all that it may rest on has to be durable: whatever is recorded by now."""
    if worker.session is not None:
        turn.effect(SendVerdicts(session=worker.session, after=turn.state.seq, code=code, report_nos=numbers))


def adopt(turn: Turn, worker: Worker, job: Job, index: int, epoch: int, attempt: int) -> None:
    """Take a token that was issued before a restart or a silence as live again: its holder goes on, and nothing is repeated.

    When another token of the task is live, because its holder came back first, one may have been the backup of the other: then both go on, the
    newer one as the backup. Otherwise the newer one replaces the older.
    """
    note = job.note(index)
    others = job.attempts_of(index)
    paired = _two_of_old(turn, worker, job, others)
    for other in others:
        turn.state.finish(other)
        if not paired:
            _remember(note, other, Past.LOST)
    note.epoch, note.attempt = max((note.epoch, note.attempt), (epoch, attempt))
    note.wait_until_ns = None
    job.set_state(index, TaskState.ACTIVE)
    adopted = Attempt(job, index, epoch, attempt, worker, 0, turn.now)
    if paired:
        note.backed_up = True
        older, newer = sorted((*others, adopted), key=lambda one: (one.epoch, one.attempt))
        turn.state.begin(older)
        turn.state.begin_backup(newer)
    else:
        turn.state.begin(adopted)
    isolation.adopted(turn, adopted)


def _count(turn: Turn, worker: Worker, attempt: Attempt, outcome: Outcome) -> None:
    """A live attempt ended: the task ends or goes on."""
    match outcome.ending:
        case Ending.SUCCEEDED:
            worker.succeed()
            _succeed(turn, worker, attempt.job, attempt.epoch, outcome)
        case Ending.RELEASED | Ending.REVOKED:
            _count_below(turn, attempt, outcome.app_failures)
            give_back(turn, attempt, Past.RELEASED, never_started=outcome.never_started)
        case Ending.FAILED | Ending.TIMED_OUT:
            failure = outcome.failure or Failure(
                failure_class=FailureClass.APP, kind="unknown", message="no failure was sent"
            )
            if failure.failure_class is FailureClass.EXPIRED:
                _ran_out(turn, attempt, failure)
            elif failure.failure_class is FailureClass.BENIGN:
                give_back(turn, attempt, Past.RELEASED, never_started=outcome.never_started)
            else:
                worker.failed += 1
                fail(turn, attempt, failure, run_us=outcome.run_us)
        case _:
            assert_never(outcome.ending)


def _ran_out(turn: Turn, attempt: Attempt, failure: Failure) -> None:
    """Its worker stopped it because the task's total time is over. That is for us to say: by our clock, with a lease for the two to differ."""
    job, index = attempt.job, attempt.index
    total_ns = job.template.timeouts.total_ns
    if total_ns is None or jobs.submitted_ns(job, index) + total_ns > turn.now + turn.config.lease_ns:
        give_back(turn, attempt, Past.RELEASED, never_started=False)
        return
    failure = replace(failure, message=f"{failure.message}; {stopped_words(turn, attempt)}")
    turn.state.finish(attempt)
    jobs.end_tasks(turn, job, [index], TaskState.EXPIRED, failure)


def stopped_words(turn: Turn, attempt: Attempt) -> str:
    """Of a live attempt whose task's total time is over, for people: what the record would not tell otherwise."""
    since_ns, did = attempt.assigned_ns, "had been with"
    if attempt.started:
        since_ns, did = attempt.started_ns, "was running on"
    length = show((turn.now - since_ns) // (SECOND_NS // 10) / 10)
    return f"attempt {attempt.attempt} {did} {attempt.worker.worker_id} for {length} when it was stopped"


def _succeed(turn: Turn, worker: Worker, job: Job, epoch: int, outcome: Outcome) -> None:
    """The first success wins: what else runs of the task is stopped."""
    losers = [one for one in job.attempts_of(outcome.index) if (one.epoch, one.attempt) != (epoch, outcome.attempt)]
    turn.record(
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
    jobs.revoke(turn, losers, turn.state.seq, "another attempt succeeded")


def _is_live(attempt: Attempt) -> bool:
    """False: the end of another one of the same worker has cancelled the job meanwhile, because too many of its tasks had failed."""
    return attempt.job.find_live(attempt.index, attempt.epoch, attempt.attempt) is attempt


def give_back(turn: Turn, attempt: Attempt, how: Past, *, never_started: bool) -> None:
    """A benign end: the task is queued again at no cost, unless another attempt of it runs. A started at-most-once task cannot be, and is given up.

    Args:
        how: RELEASED when its worker said so; LOST when it never arrived, as far as is known; REVOKED when nothing of it may count.
    """
    job, index = attempt.job, attempt.index
    if not _is_live(attempt):
        return
    if job.template.at_most_once:
        if not never_started:
            failure = Failure(
                failure_class=FailureClass.INFRA, kind="released", message="it had started and runs at most once"
            )
            _end(turn, attempt, TaskState.DEAD_LETTER, failure, 0)
            return
        turn.record(records.AttemptReturned(job=job.number, index=index))
        how = Past.REVOKED
    turn.state.finish(attempt)
    _remember(job.note(index), attempt, how)
    if index not in job.live:
        isolation.requeue(turn, job, index)
        if jobs.is_late(turn, job, index):
            jobs.expire_queued(turn, job, range(index, index + 1))


def fail(turn: Turn, attempt: Attempt, failure: Failure, *, run_us: int) -> None:
    """A failure that counts, for its task and for its worker."""
    _count_failure(turn, attempt, failure, run_us=run_us)
    if health.failed(turn, attempt, failure):
        recall(turn, attempt.worker)


def recall(turn: Turn, worker: Worker) -> None:
    """Take back what is not known to have started on a worker that is trusted no more; its reports of that count no more either."""
    unstarted = [a for a in worker.live.values() if not (a.started or a.job.template.at_most_once)]
    for attempt in unstarted:
        give_back(turn, attempt, Past.REVOKED, never_started=True)
        if attempt.job.states[attempt.index] < _TERMINAL:  # its time in the queue may be over
            attempt.job.note(attempt.index).after = worker.frames_after
    jobs.revoke(turn, unstarted, turn.state.seq, QUARANTINED)


def _count_failure(turn: Turn, attempt: Attempt, failure: Failure, *, run_us: int, lost: bool = False) -> None:
    """Count a failure on the retries, the crash limit or the infrastructure budget, by its class; the task ends or goes on.

    That of a backup counts nowhere: it must not end a task that would have gone well without it. What an orchestrator below reports as failed
    has had its retries there, and ends here too: they would multiply from level to level.
    """
    job, index = attempt.job, attempt.index
    if job.backups.get(index) is attempt:
        give_back(turn, attempt, Past.LOST if lost else Past.REVOKED, never_started=False)
        return
    note = job.note(index)
    app, crashes, infra = note.app_failures, note.crashes, note.infra_failures
    suspected = note.suspected
    template = job.template
    judged = attempt.worker.orchestrator and not lost
    match failure.failure_class:
        case FailureClass.CRASH:
            crashes, suspected = crashes + 1, suspected + 1
            final = crashes >= turn.config.crashes_max and isolation.is_proven(turn, attempt, note)
            state = TaskState.DEAD_LETTER
            if final:
                failure = isolation.poison(failure, attempt, note)
        case FailureClass.INFRA:
            infra += 1
            died = lost or failure.kind == PROCESS_LOST_KIND
            suspected += died and not attempt.worker.orchestrator  # which runs no tasks itself
            final, state = infra > turn.config.infra_failures_max, TaskState.DEAD_LETTER
        case FailureClass.APP:
            app += 1
            final, state = app >= template.retry.max_attempts, TaskState.FAILED
        case _:
            final, state = True, TaskState.FAILED
    if final or judged or template.at_most_once:
        _end(turn, attempt, state, failure, run_us)
        return
    turn.state.finish(attempt)
    goes_on = index in job.live  # in its backup
    pause_ns = 0 if goes_on else _pause_ns(turn, job, failure.failure_class, app=app, other=crashes + infra)
    counts = (app, crashes, infra, suspected)
    _record_failed(turn, attempt, failure, counts, lost=lost, pause_ns=pause_ns)
    note.avoid_until_ns = turn.now + pause_ns + turn.config.avoid_ns
    if pause_ns > 0:
        back_off(turn, job, index, pause_ns)
    elif not goes_on:
        isolation.requeue(turn, job, index)


def _count_below(turn: Turn, attempt: Attempt, app_failures: int) -> None:
    """A task comes back from an orchestrator below with retries that it has used there, and has so many fewer left (ADR 24).

    One attempt stays, whatever is said: a task that has none left has failed below, and is not given back. A backup's failures count nowhere, and
    what runs at most once has no retries.
    """
    job, index = attempt.job, attempt.index
    if not attempt.worker.orchestrator or job.backups.get(index) is attempt or job.template.at_most_once:
        return
    note = job.note(index)
    app = min(note.app_failures + app_failures, job.template.retry.max_attempts - 1)
    if app <= note.app_failures:
        return
    message = f"it was handed back after failures there: {app - note.app_failures}"
    failure = Failure(failure_class=FailureClass.APP, kind="released", message=message)
    _record_failed(turn, attempt, failure, (app, note.crashes, note.infra_failures, note.suspected))


def _record_failed(
    turn: Turn,
    attempt: Attempt,
    failure: Failure,
    counts: tuple[int, int, int, int],
    *,
    lost: bool = False,
    pause_ns: int = 0,
) -> None:
    """The attempt failed and the task goes on; counts of app failures, crashes, infrastructure failures and suspicions, with this one."""
    app, crashes, infra, suspected = counts
    turn.record(
        records.AttemptFailed(
            job=attempt.job.number,
            index=attempt.index,
            epoch=attempt.epoch,
            attempt=attempt.attempt,
            worker_id=attempt.worker.worker_id,
            failure=failure,
            app_failures=app,
            crashes=crashes,
            infra_failures=infra,
            lost=lost,
            wall_ns=turn.wall_ns,
            pause_ns=pause_ns,
            suspected=suspected,
        )
    )


def _pause_ns(turn: Turn, job: Job, failure_class: FailureClass, *, app: int, other: int) -> int:
    """How long a task waits after a failure: full jitter below a bound that doubles with the failures of its kind."""
    retry = job.template.retry
    if failure_class is FailureClass.APP:
        bound_ns = min(retry.backoff_initial_ns << min(app - 1, 40), retry.backoff_max_ns)
    else:
        # A lost node says little about the task: the first repeat goes out at once.
        bound_ns = min(turn.config.heartbeat_ns << min(other - 2, 4), 60_000_000_000) if other > 1 else 0
    return int(bound_ns * turn.dice.random())


def back_off(turn: Turn, job: Job, index: int, pause_ns: int) -> None:
    """The task waits before its next attempt."""
    job.set_state(index, TaskState.WAITING)
    _wait(turn, job, index, pause_ns, "retry")


def _wait(turn: Turn, job: Job, index: int, pause_ns: int, timer: str) -> None:
    note = job.note(index)
    note.wait_until_ns = turn.now + pause_ns
    turn.state.arm(note.wait_until_ns, timer, job.number, index)


def hold_longer(turn: Turn, job: Job, by_ns: int, read_ns: int) -> None:
    """The holders of the job's at-most-once tokens have had no chance to be heard for a while."""
    for index, note in job.notes.items():
        if note.wait_until_ns is not None and job.states[index] == TaskState.ACTIVE and index not in job.live:
            _wait(turn, job, index, max(note.wait_until_ns + by_ns, read_ns) - turn.now, "orphan")


def orphan(turn: Turn, job: Job, index: int) -> None:
    """Nobody is known to run an at-most-once task whose token was sent: its holder may come back until the orphan hold ends."""
    job.set_state(index, TaskState.ACTIVE)
    _wait(turn, job, index, turn.config.orphan_hold_ns, "orphan")


def _end(turn: Turn, attempt: Attempt, state: TaskState, failure: Failure, run_us: int) -> None:
    job, index = attempt.job, attempt.index
    others = [other for other in job.attempts_of(index) if other is not attempt]
    turn.record(
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
    jobs.revoke(turn, others, turn.state.seq, failure.message)


def _remember(note: TaskNote, attempt: Attempt, how: Past) -> None:
    note.remember(attempt.epoch, attempt.attempt, attempt.worker.worker_id, how)
    if (attempt.epoch, attempt.attempt) > (note.epoch, note.attempt):
        note.epoch, note.attempt = attempt.epoch, attempt.attempt


def remember_revoked(turn: Turn, worker: Worker, token: HeldToken) -> None:
    """A worker is told to forget an attempt that was lost: a report of it that is on its way does not count any more (I8).

    After a restart it is LOST again, as the journal says; by then its worker has stopped and forgotten it, or was never told.
    """
    job_id, index, epoch, attempt = token
    job = turn.state.by_id.get(job_id)
    note = job.notes.get(index) if job is not None else None
    if note is not None and note.past.get((epoch, attempt)) == (worker.worker_id, Past.LOST):
        note.remember(epoch, attempt, worker.worker_id, Past.REVOKED)


def lose(turn: Turn, attempt: Attempt, cause: str) -> None:
    """The attempt's worker is lost: the task is queued again within its budget, a late success may still come.

    Every task on a lost worker is a suspect, also one that is not known to have started. Only of one that was given the worker for itself,
    because it had been a suspect before, is it a crash: that a worker had one slot, or nothing else to do, proves nothing.
    """
    job, index = attempt.job, attempt.index
    if not _is_live(attempt):
        return
    if job.template.at_most_once:
        # Its token stays the only one: the task waits, ACTIVE, for the holder until the orphan hold ends.
        turn.state.finish(attempt)
        _remember(job.note(index), attempt, Past.LOST)
        orphan(turn, job, index)
        return
    alone = isolation.ran_alone(turn.state, attempt)
    blame = FailureClass.CRASH if alone else FailureClass.INFRA
    failure = Failure(failure_class=blame, kind="node lost", message=cause)
    _count_failure(turn, attempt, failure, run_us=0, lost=True)


def attempt_of(state: State, event: events.Running) -> Attempt | None:
    """The live attempt that a word is of; None when it was not issued to the worker that says it."""
    job = state.by_id.get(event.job_id)
    attempt = job.find_live(event.index, event.epoch, event.attempt) if job is not None else None
    return attempt if attempt is not None and attempt.worker is state.sessions.get(event.session) else None


def running(turn: Turn, event: events.Running) -> None:
    """A word from a running attempt: it has started, and how far it is."""
    worker = turn.state.sessions.get(event.session)
    if worker is None:
        return
    worker.heard(turn.now)
    attempt = attempt_of(turn.state, event)
    if attempt is None:
        return
    if not attempt.started:
        attempt.started = True
        attempt.started_ns = turn.now - event.running_for_ns
        run_ns = attempt.job.template.timeouts.run_ns
        if run_ns is not None and not worker.orchestrator:  # where it may only wait so far, and has retries of its own
            due = attempt.started_ns + run_ns + turn.config.lease_ns
            turn.state.arm(due, "backstop", attempt.job.number, attempt.index, attempt.epoch, attempt.attempt)
    if event.progress is not None:
        attempt.progress = event.progress
    if event.progress_text:
        attempt.progress_text = event.progress_text
