"""Isolation: a task that is suspected of bringing workers down runs alone, and elsewhere (semantics section 8, ADR 10).

Every task on a worker that dies is a suspect. Suspected for the second time, it gets a worker for itself: one that it did not bring down, when there is
one. That worker is given nothing else, becomes empty, and runs it. If the worker dies then, there is no doubt, and that is a crash of the task.

What this costs the farm is bounded: one worker at a time becomes empty, and at most a third of them (but always one) are reserved.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from antfarm.model import Failure, TaskState
from services.orchestrator.core import health, jobs
from services.orchestrator.core.lanes import fits
from services.orchestrator.core.state import Alone, Attempt, Job, State, TaskNote, Worker
from services.orchestrator.core.turn import Turn

Key = tuple[int, int]


def wanted(turn: Turn, note: TaskNote) -> bool:
    """True when the task must run alone from now on."""
    return note.suspected >= turn.config.suspicions_max


def add(turn: Turn, job: Job, index: int) -> None:
    """A suspected task, QUEUED and not among its job's ready ones, waits for a worker of its own."""
    turn.state.alone.setdefault((job.number, index), Alone())


def requeue(turn: Turn, job: Job, index: int) -> None:
    """A task that was out already is QUEUED again: for a worker of its own when it is suspected.

    While a recovery lasts, a task that has not been given out in this life waits with the others: the end of an older attempt does not say whether
    a worker that is not back yet holds a newer one.
    """
    note = job.notes.get(index)
    if jobs.must_wait(turn, job, index):
        return
    recovering = turn.state.recovering_until_ns is not None
    if note is not None and recovering and not turn.state.knows_epoch(note.epoch):
        job.set_state(index, TaskState.QUEUED)
        job.recovered.add_returned(index)
    elif note is not None and wanted(turn, note):
        job.set_state(index, TaskState.QUEUED)
        _forget(turn.state, (job.number, index))
        add(turn, job, index)
    else:
        turn.state.make_ready(job, index)


def ran_alone(state: State, attempt: Attempt) -> bool:
    """True when nothing else ran on the attempt's worker. Of a down-stream orchestrator nobody can say that."""
    worker, alone = attempt.worker, state.alone.get((attempt.job.number, attempt.index))
    alone_there = alone is not None and alone.running and alone.worker is worker
    return alone_there and not worker.stopping and not worker.orchestrator


def is_proven(turn: Turn, attempt: Attempt, note: TaskNote) -> bool:
    """True when a crash of this attempt leaves no other explanation: it ran alone, and has crashed on two workers, when there are two.

    A second one that never becomes free is not waited for without end: twice the crash limit is proof enough.
    """
    crashed_on = {worker_id for worker_id, crashed in note.suspected_on.items() if crashed} | {attempt.worker.worker_id}
    return ran_alone(turn.state, attempt) and (
        len(crashed_on) > 1
        or note.crashes + 1 >= 2 * turn.config.crashes_max
        or all(worker.worker_id in crashed_on for worker in _candidates(turn.state, attempt.job))
    )


def poison(failure: Failure, attempt: Attempt, note: TaskNote) -> Failure:
    """The last crash of a task that is given up, in words for people."""
    workers = sorted({attempt.worker.worker_id, *(name for name, crashed in note.suspected_on.items() if crashed)})
    verdict = f"poison: crash {note.crashes + 1}, the last one alone on its worker; it crashed on {', '.join(workers)}"
    return replace(failure, message=f"{failure.message} ({verdict})".lstrip())


def poison_crashes(failure: Failure) -> int | None:
    """How many crashes `poison` counted; None for a failure that did not go through it."""
    counted = re.findall(r"\(poison: crash (\d+),", failure.message)
    return int(counted[-1]) if counted else None


def adopted(turn: Turn, attempt: Attempt) -> None:
    """A worker goes on with an attempt of before a restart or a silence: perhaps it runs alone, perhaps what ran there alone does so no more."""
    state, worker, key = turn.state, attempt.worker, (attempt.job.number, attempt.index)
    _forget(state, key)
    if worker.alone_for is not None and state.alone[worker.alone_for].running:
        _forget(state, worker.alone_for)
    if wanted(turn, attempt.job.note(attempt.index)) and worker.alone_for is None and len(worker.live) == 1:
        _reserve(state, key, worker).running = True


def starts(turn: Turn) -> Iterator[tuple[Worker, Job, int]]:
    """Suspected tasks that begin now, each with the empty worker that is reserved for it. The caller assigns each before it asks for the next: limits count them."""
    state = turn.state
    _tidy(state)
    attached = sum(worker.able for worker in state.workers.values())
    room = max(attached // 3, 1) - sum(worker.alone_for is not None for worker in state.workers.values())
    emptying = any(alone.worker is not None and not alone.running for alone in state.alone.values())
    for key, alone in list(state.alone.items()):
        if alone.running:
            continue
        job = state.jobs[key[0]]
        if not job.paused and not _has_room(job):
            # It needs no worker until its limit has room, and is first then: put back among the ready it would come too late each time.
            _release(alone)
            continue
        if alone.worker is not None and turn.now >= alone.until_ns and _others_wait(state):
            _release(alone)
            state.alone[key] = state.alone.pop(key)
            room, emptying = room + 1, False
            continue
        if alone.worker is None and room <= 0:
            continue
        paused = turn.state.paused_types.get(job.template.type)
        held_up = job.paused or (paused is not None and not health.is_due(turn, paused))
        worker = None if held_up else _choose(turn, alone, job, key[1])
        if worker is None:  # the job says when it may go on, and a worker when it can run it
            _forget(state, key)
            state.make_ready(job, key[1])
            continue
        if worker.alone_for not in (None, key):
            _release(alone)
            continue
        if alone.worker is None:
            if not worker.is_empty and emptying:
                continue
            room -= 1
            emptying = emptying or not worker.is_empty
        alone = _reserve(state, key, worker)
        if worker.is_empty:
            alone.running = True
            if paused is not None:
                health.sent(paused, worker, key)
            yield worker, job, key[1]


def _has_room(job: Job) -> bool:
    return job.lane.limit is None or job.lane.limit.room_for(job.lane) > 0


def _others_wait(state: State) -> bool:
    """True when another one needs a reservation that the bound does not allow, or one that is for a worker that becomes empty."""
    return any(alone.worker is None and _has_room(state.jobs[key[0]]) for key, alone in state.alone.items())


def _candidates(state: State, job: Job) -> list[Worker]:
    """Workers that could run a task of the job alone, sooner or later."""
    return [
        worker
        for worker in state.workers.values()
        if worker.able
        and worker.quarantine is None
        and not worker.orchestrator
        and worker.window > 0
        and fits(worker, job.lane)
    ]


def _choose(turn: Turn, alone: Alone, job: Job, index: int) -> Worker | None:
    """The worker to run it on: one that it did not bring down, free, empty or soon so. One that is not ready in time is left for the next."""
    key, note = (job.number, index), job.note(index)
    candidates = _candidates(turn.state, job)
    if not candidates:
        return None
    if not alone.choice:
        alone.patience_ns = turn.config.empty_patience_ns
        alone.until_ns = turn.now + alone.patience_ns
    elif turn.now >= alone.until_ns:
        alone.tried.add(alone.choice)
        if all(worker.worker_id in alone.tried for worker in candidates):
            alone.tried.clear()
            alone.patience_ns *= 2
        alone.until_ns = turn.now + alone.patience_ns
    best = min(
        candidates,
        key=lambda worker: (
            worker.worker_id in alone.tried,
            note.suspected_on.get(worker.worker_id, -1),
            worker.alone_for not in (None, key),
            not worker.is_empty,
            worker is not alone.worker,
            worker.taken / max(worker.slots, 1),
            worker.worker_id,
        ),
    )
    alone.choice = best.worker_id
    return best


def _reserve(state: State, key: Key, worker: Worker) -> Alone:
    alone = state.alone.setdefault(key, Alone())
    _release(alone)
    alone.worker = worker
    worker.alone_for = key
    return alone


def _release(alone: Alone) -> None:
    if alone.worker is not None:
        alone.worker.alone_for = None
        alone.worker = None


def _forget(state: State, key: Key) -> None:
    alone = state.alone.pop(key, None)
    if alone is not None:
        _release(alone)


def _tidy(state: State) -> None:
    """Forget what has ended, was cancelled or runs elsewhere by now, and free the workers."""
    for key, alone in list(state.alone.items()):
        job = state.jobs.get(key[0])
        if alone.running:
            there = alone.worker is not None and key in alone.worker.live
        else:
            there = job is not None and job.is_queued(key[1])
        if not there:
            _forget(state, key)
