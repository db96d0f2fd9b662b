"""Time: leases, the end of the recovery after a restart, back-offs, deadlines. All of it is looked at when the clock ticks."""

from __future__ import annotations

import heapq

from antfarm.model import Failure, FailureClass, TaskState, WorkerId
from services.orchestrator.core import isolation, jobs, records, reports
from services.orchestrator.core.ready import Ready
from services.orchestrator.core.state import Job, Past
from services.orchestrator.core.turn import Turn

_TERMINAL = int(TaskState.SUCCEEDED)


def recover(turn: Turn) -> None:
    """Take the queue over after replay: a new epoch; tasks that may be out with a worker are held until that is known."""
    state = turn.state
    state.own_epochs.clear()
    turn.record(records.EpochStarted(epoch=max(state.epoch + 1, turn.config.first_epoch), wall_ns=turn.wall_ns))
    state.awaited = set(state.seen)
    lease_ns = turn.config.lease_of(orchestrator=any(state.seen.values()))
    state.recovering_until_ns = turn.now + lease_ns if state.awaited else None
    for job in state.jobs.values():
        if job.ended:
            job.ended_ns = turn.moment_ns(job.ended_wall_ns)
            continue
        if state.awaited:
            job.recovered, job.ready = job.ready, Ready()
        for index, note in job.notes.items():
            if job.template.at_most_once and note.past and job.states[index] == TaskState.QUEUED:
                reports.orphan(turn, job, index)
            elif job.states[index] == TaskState.QUEUED:
                left_ns = turn.moment_ns(note.failed_wall_ns) + note.pause_ns - turn.now
                if left_ns > 0:
                    reports.back_off(turn, job, index, left_ns)
        jobs.rearm_deadlines(turn, job)


def end_recovery(turn: Turn) -> None:
    """Give recovered tasks out once all workers of the last epoch are back, or their lease has passed."""
    state = turn.state
    if state.recovering_until_ns is None or (state.awaited and turn.now < state.recovering_until_ns):
        return
    state.recovering_until_ns = None
    for worker_id in sorted(state.awaited):
        turn.record(records.WorkerLeft(worker_id=WorkerId(worker_id)))
    state.awaited.clear()
    jobs.expire_recovered(turn)
    for job in state.jobs.values():
        if job.recovered:
            job.ready.prepend(job.recovered)
            job.lane.offer(job)


def extend(turn: Turn, gap_ns: int) -> None:
    """The pause guard: time in which this process itself stood still, once or again and again, counts against nobody.

    After more than a heartbeat of it another one is left to read what came meanwhile. What comes every time, as in a process that is always late,
    does not add up to more than the time that it is late: it finds the dead more slowly, not never.
    """
    lost_ns = gap_ns - turn.config.sweep_ns
    stood_still = gap_ns > turn.config.heartbeat_ns
    read_ns = turn.now + turn.config.heartbeat_ns
    for worker in turn.state.workers.values():
        least_ns = read_ns - worker.lease_ns if stood_still else 0
        worker.heard_ns = min(max(worker.heard_ns + lost_ns, least_ns), turn.now)
    if turn.state.recovering_until_ns is not None:
        turn.state.recovering_until_ns = max(turn.state.recovering_until_ns + lost_ns, read_ns if stood_still else 0)
    if stood_still:
        turn.state.postpone("backstop", lost_ns, read_ns)
        for job in turn.state.jobs.values():
            if job.template.at_most_once and not job.ended:
                reports.hold_longer(turn, job, lost_ns, read_ns)


def fire(turn: Turn, *, unread: bool = False) -> None:
    """Carry out every timer that has come due; those that time has overtaken do nothing.

    unread: words of others lie unread. Only times in the queue end then: of what nobody has, nobody has a word.
    """
    timers = turn.state.timers
    kept = []
    while timers and timers[0][0] <= turn.now:
        due_ns, _, kind, arguments = timer = heapq.heappop(timers)
        if unread and kind != "queue":
            kept.append(timer)
            continue
        job = turn.state.jobs.get(arguments[0])
        if job is None or job.ended:
            continue
        match kind:
            case "retry":
                _end_back_off(turn, job, arguments[1], due_ns)
            case "queue":
                jobs.expire_queued(turn, job, range(arguments[1], arguments[1] + arguments[2]))
            case "total":
                _expire_all(turn, job, arguments[1], arguments[2])
            case "backstop":
                _time_out(turn, job, arguments[1], arguments[2], arguments[3])
            case "orphan":
                _give_up_orphan(turn, job, arguments[1], due_ns)
            case _:
                raise AssertionError(kind)
    for timer in kept:
        heapq.heappush(timers, timer)


def _end_back_off(turn: Turn, job: Job, index: int, due_ns: int) -> None:
    note = job.notes.get(index)
    if note is not None and note.wait_until_ns == due_ns and job.states[index] == TaskState.WAITING:
        note.wait_until_ns = None
        isolation.requeue(turn, job, index)


def _expire_all(turn: Turn, job: Job, first: int, count: int) -> None:
    """Total deadline. What runs is ended one by one, with words on its attempt: the record names none, because this one is to stop and not to be held."""
    message = "its total deadline has passed"
    late = [index for index in range(first, first + count) if job.states[index] < _TERMINAL]
    for index in late:
        attempt = job.live.get(index)
        if attempt is not None:
            jobs.expire(turn, job, [index], f"{message}; {reports.stopped_words(turn, attempt)}")
    jobs.expire(turn, job, [index for index in late if job.states[index] < _TERMINAL], message)


def _time_out(turn: Turn, job: Job, index: int, epoch: int, number: int) -> None:
    """The backstop of the run timeout: the worker should have killed the attempt a lease ago."""
    attempt = job.find_live(index, epoch, number)
    if attempt is not None:
        failure = Failure(
            failure_class=FailureClass.APP,
            kind="timeout",
            message="the run timeout passed and its worker did not end it",
        )
        reports.fail(turn, attempt, failure, run_us=0)
        if index in job.notes:
            job.notes[index].remember(epoch, number, attempt.worker.worker_id, Past.REVOKED)
        jobs.revoke(turn, [attempt], turn.state.seq, failure.message)


def _give_up_orphan(turn: Turn, job: Job, index: int, due_ns: int) -> None:
    note = job.notes.get(index)
    if note is not None and note.wait_until_ns == due_ns and index not in job.live:
        failure = Failure(
            failure_class=FailureClass.INFRA,
            kind="node lost",
            message="it runs at most once, and whoever held it has been silent for too long",
        )
        jobs.end_tasks(turn, job, [index], TaskState.DEAD_LETTER, failure)
