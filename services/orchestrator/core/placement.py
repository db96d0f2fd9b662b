"""Placement: which ready tasks go to which workers. One pure pass at the end of each batch of events.

Workers first get work for their free slots, each its even share, then tasks to hold ready up to their windows. Which job is next is for the lanes to say;
here is what a worker can take: whether it fits, and how much room slots, window, resources, limits and frames leave.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from antfarm.model import TaskState, TaskTemplate
from services.orchestrator.core import records
from services.orchestrator.core.effects import AssignedTask, SendTasks
from services.orchestrator.core.jobs import submitted_ns
from services.orchestrator.core.lanes import PARENT_PREFIX, Lane
from services.orchestrator.core.state import Attempt, Job, Worker
from services.orchestrator.core.turn import Turn

_ACTIVE = int(TaskState.ACTIVE)
_QUEUED = int(TaskState.QUEUED)
_LANES_MAX = 256
"""Lanes whose virtual time a worker remembers before those that need no remembering go."""


class _Frames:
    """What one worker gets in this pass, cut into frames as it grows."""

    __slots__ = ("after", "frames", "size_bytes", "tasks")

    def __init__(self) -> None:
        self.frames: list[dict[int, list[AssignedTask]]] = []
        self.size_bytes = 0
        """Of the last frame, as its tasks below."""
        self.tasks = 0
        self.after = 0

    def begin(self, worker: Worker) -> None:
        """The next frame."""
        worker.frames += 1
        self.frames.append({})
        self.size_bytes = self.tasks = 0

    def group(self, job: Job) -> list[AssignedTask]:
        """The job's group in the last frame."""
        group = self.frames[-1].get(job.number)
        if group is None:
            group = self.frames[-1][job.number] = []
            self.size_bytes += _head_bytes(job)
        return group


def _head_bytes(job: Job) -> int:
    """About what a group says once for all of its tasks, at most."""
    template = job.template
    return 4096 + len(template.common_payload) + sum(len(k) + len(v) for k, v in template.labels.items())


def place(turn: Turn) -> None:
    """Give ready tasks to workers with free credit."""
    state = turn.state
    lanes = [lane for lane in state.lanes.values() if lane.next() is not None]
    if not lanes:
        return
    workers = [worker for worker in state.workers.values() if worker.assignable and worker.window > len(worker.live)]
    plan: dict[str, _Frames] = {}
    # The emptiest worker first, so that few tasks spread over many workers.
    workers.sort(key=lambda worker: (len(worker.live) / max(worker.slots, 1), worker.worker_id))
    for by_slots in (True, False):
        for position, worker in enumerate(workers):
            limit = min(worker.slots, worker.window) if by_slots else worker.window
            free = limit - len(worker.live)
            if free > 0:
                share = math.ceil(_waiting(lanes, free * len(workers)) / (len(workers) - position))
                _fill(turn, worker, lanes, min(free, max(share, 1)), plan)
    for worker in workers:
        if worker.worker_id in plan:
            _send(turn, worker, plan[worker.worker_id])


def _waiting(lanes: list[Lane], enough: int) -> int:
    total = 0
    for lane in lanes:
        if total >= enough:
            break
        total += lane.waiting(enough - total)
    return total


def _fill(turn: Turn, worker: Worker, lanes: list[Lane], count: int, plan: dict[str, _Frames]) -> None:
    """Give one worker up to `count` tasks of the lanes that it can run, in fair shares."""
    open_lanes = [lane for lane in lanes if len(lane) and fits(worker, lane)]
    aside: list[Job] = []
    while count > 0 and open_lanes:
        lane = open_lanes[0] if len(open_lanes) == 1 else min(open_lanes, key=lambda lane: _lane_pass(worker, lane))
        job, room = lane.next(), room_for(worker, lane)
        if job is None or room <= 0:
            open_lanes.remove(lane)
            continue
        # One job alone gets all; of several each gets a part at a time, so that a large window is shared as well.
        rivals = sum(len(lane) for lane in open_lanes)
        chunk = count if rivals == 1 else max(1, count // (2 * rivals))
        taken = _take(turn, worker, job, min(chunk, room))
        if taken:
            _assign(turn, worker, job, taken, plan)
            _charge(worker, lane, job, len(taken))
            count -= len(taken)
        if job.ready and len(taken) < min(chunk, room):
            aside.append(lane.withdraw())  # what it has left must not go to this worker
    for job in aside:
        job.lane.offer(job)


class Misfit(NamedTuple):
    """Something that a task needs and a worker does not offer."""

    need: str
    """"type", "label" or "resource"."""
    name: str
    wanted: str | float
    offered: str | float | None


def misfits(worker: Worker, template: TaskTemplate) -> Iterator[Misfit]:
    """What keeps the worker from running tasks of the template, whatever else it does: type, labels and resources."""
    if template.type not in worker.task_types:
        yield Misfit("type", template.type, template.type, None)
    for label, value in template.labels.items():
        if worker.labels.get(label) != value:
            yield Misfit("label", label, value, worker.labels.get(label))
    for resource, amount in template.resources.items():
        if worker.resources.get(resource, 0.0) < amount:
            yield Misfit("resource", resource, amount, worker.resources.get(resource))


def fits(worker: Worker, lane: Lane) -> bool:
    """True when the worker can run the lane's tasks."""
    return next(misfits(worker, lane.template), None) is None


def room_for(worker: Worker, lane: Lane) -> int:
    """How many more tasks of the lane limits and resources allow. CPUs are slots: waiting tasks do not use them."""
    room = 1 << 30 if lane.limit is None else lane.limit.room
    for name, amount in lane.template.resources.items():
        if name != "cpu" and amount > 0:
            room = min(room, int((worker.resources.get(name, 0.0) - worker.used.get(name, 0.0)) / amount + 1e-9))
    return room


def _lane_pass(worker: Worker, lane: Lane) -> float:
    """A lane's virtual time on this worker; one that is new here starts level with the others."""
    return max(worker.lanes.get(lane.key, 0.0), worker.virtual_time)


def _charge(worker: Worker, lane: Lane, job: Job, tasks: int) -> None:
    worker.virtual_time = _lane_pass(worker, lane)
    if len(worker.lanes) >= _LANES_MAX:
        worker.lanes = {key: at for key, at in worker.lanes.items() if at > worker.virtual_time}
    worker.lanes[lane.key] = worker.virtual_time + tasks / lane.weight
    lane.charge(job, tasks)


def _take(turn: Turn, worker: Worker, job: Job, count: int) -> list[int]:
    """Up to `count` ready tasks of the job, without those that failed on this worker while another one could run them."""
    if not job.notes:
        return job.ready.take(count, job.states)
    taken: dict[int, None] = {}
    avoided: dict[int, None] = {}
    while len(taken) < count and (more := job.ready.take(count - len(taken), job.states)):
        for index in more:
            (avoided if _better_elsewhere(turn, worker, job, index) else taken)[index] = None
    for index in avoided:
        job.ready.add_returned(index)
    return list(taken)


def _better_elsewhere(turn: Turn, worker: Worker, job: Job, index: int) -> bool:
    note = job.notes.get(index)
    return (
        note is not None
        and worker.worker_id in note.failed_on
        and any(
            other.worker_id not in note.failed_on and other.assignable and fits(other, job.lane)
            for other in turn.state.workers.values()
        )
    )


def _assign(turn: Turn, worker: Worker, job: Job, taken: list[int], plan: dict[str, _Frames]) -> None:
    """Make live attempts of the tasks and put them into the worker's frames."""
    state, epoch, now, config = turn.state, turn.state.epoch, turn.now, turn.config
    frames = plan.setdefault(worker.worker_id, _Frames())
    template = job.template
    total_ns = template.timeouts.total_ns
    if job.dependencies:
        # Whoever gets the task will ask for results that it depends on, and only durable ones are shown.
        frames.after = state.seq
    elif job.job_id.startswith(PARENT_PREFIX):
        # Nobody submits these again: if they began before they are durable, a restart would make and run them once more.
        frames.after = max(frames.after, job.added_seq)
    states, payloads, notes, begin = job.states, job.payloads, job.notes, state.begin
    remaining_ns = None
    if not frames.frames:
        frames.begin(worker)
    group = frames.group(job)
    for index in taken:
        payload = payloads[index]
        assert payload is not None
        if frames.tasks >= config.frame_tasks_max or (
            frames.tasks and frames.size_bytes + len(payload) > config.frame_bytes_max
        ):
            frames.begin(worker)
            group = frames.group(job)
        frames.size_bytes += len(payload) + 32
        frames.tasks += 1
        attempt_no = 1
        if notes:
            note = notes.get(index)
            if note is not None:
                attempt_no = note.attempt + 1
        states[index] = _ACTIVE
        begin(Attempt(job, index, epoch, attempt_no, worker, worker.frames, now))
        if total_ns is not None:
            remaining_ns = max(submitted_ns(turn, job, index) + total_ns - now, 0)
        group.append(AssignedTask(index=index, attempt=attempt_no, payload=payload, remaining_ns=remaining_ns))
        if template.at_most_once:
            frames.after = turn.record(
                records.AttemptIssued(
                    job=job.number, index=index, epoch=epoch, attempt=attempt_no, worker_id=worker.worker_id
                )
            )
    job.counts[_QUEUED] -= len(taken)
    job.counts[_ACTIVE] += len(taken)


def _send(turn: Turn, worker: Worker, frames: _Frames) -> None:
    if worker.session is None:
        return
    # No token leaves before its epoch is durable, and frames leave in the order of their numbers.
    worker.frames_after = max(worker.frames_after, frames.after, turn.state.epoch_seq)
    for groups in frames.frames:
        turn.effect(
            SendTasks(
                session=worker.session,
                after=worker.frames_after,
                epoch=turn.state.epoch,
                groups=[(number, group) for number, group in groups.items() if group],
            )
        )
