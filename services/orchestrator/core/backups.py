"""Backups: a second attempt of a task that takes much longer than the others of its job, on another host. The first success wins.

Only where running twice does no harm (`idempotent`), near the end of a job, on slots that nothing else wants, and few at a time (semantics section 8). A backup
is the farm's own idea, so it must never make an end worse: what becomes of it short of success costs the task nothing (`reports`).

Looked for now and then, after placement. The look costs per job that may have backups and is near its end; nothing is done per task.
"""

from __future__ import annotations

from antfarm.model import TaskState
from services.orchestrator.core import placement
from services.orchestrator.core.effects import AssignedTask
from services.orchestrator.core.lanes import fits
from services.orchestrator.core.state import Attempt, Job, Worker
from services.orchestrator.core.turn import Turn

DONE_SHARE = (3, 4)
"""Share of a job's tasks that must have ended."""
MEDIANS = 3
"""An attempt is a straggler beyond this many medians of its job ..."""
HEARTBEATS = 10
"""... and this many heartbeats, whichever is later."""
LIVE_SHARE = 20
"""One in so many running attempts may be a backup; one always may, or small farms had none."""


def place(turn: Turn) -> None:
    """Begin backups of the worst stragglers on idle slots. To be called when placement has given out all that it could."""
    state = turn.state
    jobs = [
        job
        for job in state.backed.values()
        if job.live and not job.paused and job.template.type not in state.paused_types and _nearly_done(job)
    ]
    if not jobs or state.recovering_until_ns is not None:
        return
    idle = [worker for worker in state.workers.values() if worker.assignable and not worker.orchestrator]
    idle = [worker for worker in idle if worker.taken < min(worker.slots, worker.window)]
    if state.kept_for is not None:
        idle = [worker for worker in idle if worker is not state.kept_for.worker]  # its slots are wanted
    if not idle:
        return
    running = sum(len(worker.live) for worker in state.workers.values())
    room = max(running // LIVE_SHARE, 1) - sum(len(job.backups) for job in state.backed.values())
    if room <= 0:
        return
    late = [entry for job in jobs for entry in _stragglers(turn, job)]
    late.sort(key=lambda entry: (-entry[0], entry[1].job.number, entry[1].index))
    for _, attempt in late:
        worker = _elsewhere(attempt, idle)
        if worker is not None:
            _begin(turn, worker, attempt)
            room -= 1
            if room == 0:
                return


def _nearly_done(job: Job) -> bool:
    share, whole = DONE_SHARE
    return whole * job.ended_count >= share * job.task_count


def _stragglers(turn: Turn, job: Job) -> list[tuple[float, Attempt]]:
    """(time that it is expected to take still, attempt) of attempts that deserve a backup."""
    median_ns = job.durations.median_ns
    if median_ns is None:
        return []
    limit_ns = max(MEDIANS * median_ns, HEARTBEATS * turn.config.heartbeat_ns)
    found = []
    for attempt in job.live.values():
        if attempt.worker.alone_for is not None:
            continue  # a suspect, which must not run in two places
        if not attempt.started or turn.now - attempt.started_ns <= limit_ns or attempt.worker.orchestrator:
            continue
        if attempt.index in job.backups or (attempt.index in job.notes and job.notes[attempt.index].backed_up):
            continue
        left_ns = _left_ns(turn.now - attempt.started_ns, attempt.progress)
        if left_ns > median_ns:
            found.append((left_ns, attempt))
    return found


def _left_ns(age_ns: int, progress: float | None) -> float:
    """How long an attempt will go on: as its progress says; without any, as long as it has gone on already."""
    if not progress or not 0 < progress <= 1:
        return float(age_ns)
    return age_ns * (1 - progress) / progress


def _elsewhere(attempt: Attempt, idle: list[Worker]) -> Worker | None:
    """The emptiest idle worker on another host that can run the task now and has not failed it."""
    job = attempt.job
    note = job.notes.get(attempt.index)
    failed_on = note.failed_on if note is not None else ()
    fit = [
        worker
        for worker in idle
        if not same_host(worker, attempt.worker)
        and worker.worker_id not in failed_on
        and worker.taken + job.lane.slots <= min(worker.slots, worker.window)
        and fits(worker, job.lane)
        and placement.room(worker, job.lane) > 0
    ]
    return min(fit, key=lambda worker: (worker.taken / worker.slots, worker.worker_id), default=None)


def same_host(one: Worker, other: Worker) -> bool:
    """True when two workers share a host; of one that names none nobody knows, and only itself is taken for the same."""
    return one is other or (bool(one.host) and one.host == other.host)


def _begin(turn: Turn, worker: Worker, primary: Attempt) -> None:
    """Begin the backup of a live attempt, and send it."""
    job, index, state = primary.job, primary.index, turn.state
    assert job.states[index] == TaskState.ACTIVE
    payload = job.payloads[index]
    assert payload is not None
    note = job.note(index)
    note.backed_up = True
    number = max(note.attempt, primary.attempt) + 1
    frames = placement.Frames()
    frames.begin(worker)
    backup = Attempt(job, index, state.epoch, number, worker, worker.frames, turn.now)
    state.begin_backup(backup)
    remaining_ns = placement.remaining_ns(turn, job, index)
    task = AssignedTask(
        index=index, attempt=number, payload=payload, remaining_ns=remaining_ns, app_failures=note.app_failures
    )
    frames.group(job).append(task)
    frames.after = placement.waits_for(turn, job)
    placement.send(turn, worker, frames)
