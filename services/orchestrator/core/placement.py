"""Placement: which ready tasks go to which workers. One pure pass at the end of each batch of events.

Workers first get work for their free slots, each its even share, then tasks to hold ready up to their windows. Between jobs that the same workers can run,
shares are by stride scheduling: each job has a virtual time that advances with what it gets, slower for higher priorities (each step up
quadruples the share), and the job that is furthest behind is next. So nothing starves, and there is one mechanism for priority and fairness.
"""

from __future__ import annotations

import math

from antfarm.model import ConcurrencyLimit, TaskState
from services.orchestrator.core import records
from services.orchestrator.core.effects import AssignedTask, SendTasks
from services.orchestrator.core.jobs import submitted_ns
from services.orchestrator.core.state import Attempt, Job, State, Worker
from services.orchestrator.core.turn import Turn

_ACTIVE = int(TaskState.ACTIVE)
_QUEUED = int(TaskState.QUEUED)
PRIORITY_BASE = 4.0


class _Frames:
    """What one worker gets in this pass, cut into frames as it grows."""

    __slots__ = ("after", "frames", "size", "tasks")

    def __init__(self) -> None:
        self.frames: list[dict[int, list[AssignedTask]]] = []
        self.size = 0
        self.tasks = 0
        self.after = 0


def place(turn: Turn) -> None:
    """Give ready tasks to workers with free credit."""
    state = turn.state
    if not state.ready_jobs:
        return
    workers = [worker for worker in state.workers.values() if worker.assignable and worker.window > len(worker.live)]
    if not workers:
        return
    plan: dict[str, _Frames] = {}
    # The emptiest worker first, so that few tasks spread over many workers.
    workers.sort(key=lambda worker: (len(worker.live) / max(worker.slots, 1), worker.worker_id))
    for by_slots in (True, False):
        for position, worker in enumerate(workers):
            limit = min(worker.slots, worker.window) if by_slots else worker.window
            free = limit - len(worker.live)
            if free > 0:
                share = math.ceil(_waiting(state, free * len(workers)) / (len(workers) - position))
                _fill(turn, worker, min(free, max(share, 1)), plan)
    for worker in workers:
        frames = plan.get(worker.worker_id)
        if frames is not None and worker.session is not None:
            # No token leaves before its epoch is durable, and frames leave in the order of their numbers.
            worker.frames_after = max(worker.frames_after, frames.after, state.epoch_seq)
            first = worker.frames - len(frames.frames) + 1
            for number, groups in enumerate(frames.frames, first):
                assert number > 0
                turn.effect(
                    SendTasks(
                        session=worker.session,
                        after=worker.frames_after,
                        epoch=state.epoch,
                        groups=list(groups.items()),
                    )
                )


def _waiting(state: State, enough: int) -> int:
    total = 0
    for job in state.ready_jobs.values():
        total += job.ready.size(enough - total)
        if total >= enough:
            break
    return total


def _fill(turn: Turn, worker: Worker, count: int, plan: dict[str, _Frames]) -> None:
    """Give one worker up to `count` tasks of the jobs that it can run, in fair shares."""
    state = turn.state
    jobs = [job for job in list(state.ready_jobs.values()) if not job.paused and fits(worker, job)]
    while count > 0 and jobs:
        job = min(jobs, key=lambda job: (job.share.pass_value, job.rank, job.number))
        chunk = count if len(jobs) == 1 else max(1, count // (2 * len(jobs)))
        room = min(chunk, _limit_room(state, job), _resource_room(worker, job))
        taken = job.ready.take(room, job.states) if room > 0 else []
        taken = _avoid(turn, worker, job, taken)
        if taken:
            _assign(turn, worker, job, taken, plan)
            state.virtual_time = max(state.virtual_time, job.share.pass_value)
            job.share.pass_value += len(taken) / PRIORITY_BASE**job.spec.priority
            count -= len(taken)
        if not job.ready:
            state.ready_jobs.pop(job.number, None)
        if len(taken) < chunk:
            jobs.remove(job)


def fits(worker: Worker, job: Job) -> bool:
    """True when the worker can run the job's tasks: type, labels and resources. Cached until it attaches again."""
    known = worker.fits.get(job.number)
    if known is None:
        template = job.template
        known = worker.fits[job.number] = (
            template.type in worker.task_types
            and all(worker.labels.get(name) == value for name, value in template.labels.items())
            and all(worker.resources.get(name, 0.0) >= amount for name, amount in template.resources.items())
        )
    return known


def _limit_room(state: State, job: Job) -> int:
    limit = job.template.limit
    if limit is None:
        return 1 << 30
    return max(effective_limit(state, limit) - state.limits.get(limit.name, 0), 0)


def effective_limit(state: State, limit: ConcurrencyLimit) -> int:
    """The smallest number that any job which has not ended gives for the limit."""
    numbers = [
        job.template.limit.max_active
        for job in state.ready_jobs.values()
        if job.template.limit is not None and job.template.limit.name == limit.name
    ]
    return min([limit.max_active, *numbers])


def _resource_room(worker: Worker, job: Job) -> int:
    """How many more tasks of the job the worker's resources allow. CPUs are slots: waiting tasks do not use them."""
    room = 1 << 30
    for name, amount in job.template.resources.items():
        if name != "cpu" and amount > 0:
            room = min(room, int((worker.resources.get(name, 0.0) - worker.used.get(name, 0.0)) / amount + 1e-9))
    return max(room, 0)


def _avoid(turn: Turn, worker: Worker, job: Job, taken: list[int]) -> list[int]:
    """Leave out tasks that failed on this worker while another one could run them."""
    if not job.notes:
        return taken
    kept = []
    for index in taken:
        note = job.notes.get(index)
        if (
            note is not None
            and worker.worker_id in note.failed_on
            and any(
                other.worker_id not in note.failed_on and other.assignable and fits(other, job)
                for other in turn.state.workers.values()
            )
        ):
            job.ready.add_returned(index)
        else:
            kept.append(index)
    return kept


def _assign(turn: Turn, worker: Worker, job: Job, taken: list[int], plan: dict[str, _Frames]) -> None:
    """Make live attempts of the tasks and put them into the worker's frames."""
    state, epoch, now, config = turn.state, turn.state.epoch, turn.now, turn.config
    frames = plan.setdefault(worker.worker_id, _Frames())
    template = job.template
    plain = template.limit is None and not template.resources
    total_ns = template.timeouts.total_ns
    if job.dependencies:
        # Whoever gets the task will ask for results that it depends on, and only durable ones are shown.
        frames.after = turn.state.seq
    states, payloads, notes, live, worker_live = job.states, job.payloads, job.notes, job.live, worker.live
    number = job.number
    if not frames.frames:
        worker.frames += 1
        frames.frames.append({})
    group = frames.frames[-1].setdefault(number, [])
    for index in taken:
        payload = payloads[index]
        assert payload is not None
        if frames.tasks >= config.frame_tasks_max or frames.size + len(payload) > config.frame_bytes_max:
            worker.frames += 1
            frames.size = frames.tasks = 0
            group = []
            frames.frames.append({number: group})
        frames.size += len(payload) + 32
        frames.tasks += 1
        attempt_no = 1
        if notes:
            note = notes.get(index)
            if note is not None:
                attempt_no = note.attempt + 1
                note.epoch, note.attempt = epoch, attempt_no
        attempt = Attempt(job, index, epoch, attempt_no, worker, worker.frames, now)
        states[index] = _ACTIVE
        if plain:
            live[index] = attempt
            worker_live[number, index] = attempt
        else:
            state.begin(attempt)
        remaining = None
        if total_ns is not None:
            remaining = max(submitted_ns(turn, job, index) + total_ns - now, 0)
        group.append(AssignedTask(index=index, attempt=attempt_no, payload=payload, remaining_ns=remaining))
        if template.at_most_once:
            frames.after = turn.record(
                records.AttemptIssued(
                    job=number, index=index, epoch=epoch, attempt=attempt_no, worker_id=worker.worker_id
                )
            )
    job.counts[_QUEUED] -= len(taken)
    job.counts[_ACTIVE] += len(taken)
