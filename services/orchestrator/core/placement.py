"""Placement: which ready tasks go to which workers. One pure pass at the end of each batch of events.

Workers first get work for their free slots, each its even share, then tasks to hold ready up to their windows. Which job is next is for the lanes to say;
here is what a worker can take: whether it fits, and how much room slots, window, resources, limits and frames leave.
"""

from __future__ import annotations

import math

from antfarm.model import TaskState
from services.orchestrator.core import health, isolation, records
from services.orchestrator.core import room as making_room
from services.orchestrator.core.effects import AssignedTask, SendTasks
from services.orchestrator.core.jobs import submitted_ns
from services.orchestrator.core.lanes import PARENT_PREFIX, Lane, fits
from services.orchestrator.core.state import Attempt, Job, Probation, TaskNote, Worker
from services.orchestrator.core.turn import Turn

_ACTIVE = int(TaskState.ACTIVE)
_QUEUED = int(TaskState.QUEUED)
_LANES_MAX = 256
"""Lanes whose virtual time a worker remembers before those that need no remembering go."""


class Frames:
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
    plan: dict[str, Frames] = {}
    if state.quarantined or state.paused_types:
        health.review(turn)
    _begin_alone(turn, plan)
    lanes = [lane for lane in state.lanes.values() if _is_ready(lane)]
    if lanes and state.paused_types:
        lanes = _probe_types(turn, lanes, plan)
    making_room.review(turn, lanes)
    if lanes:
        if state.quarantined:
            _probe_workers(turn, lanes, plan)
        _share_out(turn, lanes, plan)
    _begin_alone(turn, plan)  # suspects that were met among the ready
    for worker_id, frames in plan.items():
        send(turn, state.workers[worker_id], frames)


def _is_ready(lane: Lane) -> bool:
    if lane.next() is None:
        lane.waits_no_more()
        return False
    return True


def _begin_alone(turn: Turn, plan: dict[str, Frames]) -> None:
    """Suspected tasks go before all others, because what waits for them is a worker."""
    if turn.state.alone:
        for worker, job, index in isolation.starts(turn):
            _assign(turn, worker, job, [index], plan)


def _probe_workers(turn: Turn, lanes: list[Lane], plan: dict[str, Frames]) -> None:
    """Give workers in quarantine the one task that is due."""
    for worker, probation in health.due_workers(turn):
        _probe(turn, probation, worker, lanes, plan)


def _probe_types(turn: Turn, lanes: list[Lane], plan: dict[str, Frames]) -> list[Lane]:
    """Give out one task of each paused type that is due; the lanes of other types."""
    paused = turn.state.paused_types
    for task_type, probation in paused.items():
        if not health.is_due(turn, probation):
            continue
        of_type = [lane for lane in lanes if lane.template.type == task_type]
        # Each in its turn: the first one may be what is broken.
        for worker in sorted(turn.state.workers.values(), key=lambda worker: worker.worker_id in probation.tried):
            if health.is_due(turn, probation) and worker.assignable and worker.window > worker.taken:
                _probe(turn, probation, worker, of_type, plan)
    for lane in lanes:
        if lane.template.type in paused:
            lane.waits_no_more()
    return [lane for lane in lanes if lane.template.type not in paused]


def _probe(turn: Turn, probation: Probation, worker: Worker, lanes: list[Lane], plan: dict[str, Frames]) -> None:
    """Give a worker one task of the lanes, if it has room for any: the canary."""
    before = len(worker.live)
    for lane in lanes:
        if worker.taken + lane.slots <= worker.window or not worker.live:
            _fill(turn, worker, [lane], lane.slots, plan)  # also where room is kept: nobody waits for a canary
            if len(worker.live) > before:
                health.sent(probation, worker, next(reversed(worker.live)))
                return


def _share_out(turn: Turn, lanes: list[Lane], plan: dict[str, Frames]) -> None:
    """Give ready tasks of the lanes to workers that anything may be given to."""
    workers = _takers(turn, lanes)
    # The emptiest worker first, so that few tasks spread over many workers.
    workers.sort(key=lambda worker: (worker.taken / max(worker.slots, 1), worker.worker_id))
    widest = max(lane.slots for lane in lanes)
    for by_slots in (True, False):
        for position, worker in enumerate(workers):
            limit = min(worker.slots, worker.window) if by_slots else worker.window
            free = limit - worker.taken
            if free > 0:
                waiting = _waiting(lanes, free * len(workers))
                if not waiting:
                    return
                share = math.ceil(waiting / (len(workers) - position))
                slots = min(free, max(share, widest))
                kept = turn.state.kept_for
                if kept is not None and kept.worker is worker:
                    _fill_beside(turn, worker, lanes, slots, plan, kept.lane)
                else:
                    _fill(turn, worker, lanes, slots, plan)


def _takers(turn: Turn, lanes: list[Lane]) -> list[Worker]:
    """Workers with free credit that can run something of the lanes.

    This is done for every batch of events, so that a thousand workers of another type must cost next to nothing: the type is looked at first.
    """
    types = {lane.template.type for lane in lanes}
    return [
        worker
        for worker in turn.state.workers.values()
        if not types.isdisjoint(worker.task_types)
        and worker.assignable
        and worker.window > worker.taken
        and any(fits(worker, lane) for lane in lanes)
    ]


def _waiting(lanes: list[Lane], enough: float) -> float:
    """Slots that waiting tasks want, counted up to `enough`."""
    total = 0.0
    for lane in lanes:
        if total >= enough:
            break
        total += lane.slots * lane.waiting(math.ceil((enough - total) / lane.slots))
    return total


def _fill_beside(
    turn: Turn, worker: Worker, lanes: list[Lane], slots: float, plan: dict[str, Frames], kept: Lane
) -> None:
    """Give a worker that is kept for tasks of a lane one of these, or others as far as they leave room for it."""
    if _count(worker, kept, slots) and room(worker, kept) > 0:
        _fill(turn, worker, [kept], kept.slots, plan)
    else:
        others = [lane for lane in lanes if lane is not kept]
        _fill(turn, worker, others, min(slots, worker.window - worker.taken - kept.slots), plan, kept)


def _fill(
    turn: Turn, worker: Worker, lanes: list[Lane], slots: float, plan: dict[str, Frames], kept: Lane | None = None
) -> None:
    """Give one worker tasks that take up to `slots` of the lanes that it can run, in fair shares. `kept`: of what room is to stay for one task."""
    open_lanes = [lane for lane in lanes if len(lane) and fits(worker, lane)]
    aside: list[Job] = []
    while slots > 0 and open_lanes:
        lane = open_lanes[0] if len(open_lanes) == 1 else min(open_lanes, key=lambda lane: _lane_pass(worker, lane))
        job, most = lane.next(), min(room(worker, lane, kept), _count(worker, lane, slots))
        if job is None or most <= 0:
            if job is not None and not lane.refused_ns:
                lane.refused_ns = turn.now
            open_lanes.remove(lane)
            continue
        # One share alone gets all; of several each gets a part at a time, so that a large window is shared as well.
        rivals = sum(len(lane) for lane in open_lanes)
        chunk = most if rivals == 1 else max(1, most // (2 * rivals))
        taken = _take(turn, worker, job, chunk)
        if taken:
            _assign(turn, worker, job, taken, plan)
            _charge(worker, lane, job, len(taken))
            lane.waits_no_more()
            slots -= lane.slots * len(taken)
        if job.ready and len(taken) < chunk:
            aside.append(lane.withdraw())  # what it has left must not go to this worker
    for job in aside:
        job.lane.offer(job)


def room(worker: Worker, lane: Lane, kept: Lane | None = None) -> int:
    """How many more tasks of the lane limits and resources allow, beside one task of `kept`. CPUs are slots, which the window counts: waiting tasks do not use them."""
    room = 1 << 30 if lane.limit is None else lane.limit.room_for(lane)
    for name, amount in lane.template.resources.items():
        if name != "cpu" and amount > 0:
            # Compared before it is made whole: of next to nothing there is room for infinitely many.
            free = worker.resources.get(name, 0.0) - worker.used.get(name, 0.0)
            if kept is not None:
                free -= kept.template.resources.get(name, 0.0)
            room = int(min(room, free / amount + 1e-9))
    return room


def _count(worker: Worker, lane: Lane, slots: float) -> int:
    """How many tasks of the lane that many slots are for. One that is larger than the worker's window has the worker for itself, rather than never."""
    return int(slots / lane.slots + 1e-9) or int(not worker.live)


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
    """Up to `count` ready tasks of the job, without suspects and those that failed on this worker while another one could run them."""
    notes = job.notes
    if not notes:
        return job.ready.take(count, job.states)
    taken: dict[int, None] = {}
    avoided: dict[int, None] = {}
    while len(taken) < count and (more := job.ready.take(count - len(taken), job.states)):
        for index in more:
            note = notes.get(index)
            if note is None:
                taken[index] = None
            elif isolation.wanted(turn, note) and not worker.orchestrator:
                isolation.add(turn, job, index)
            else:
                (avoided if _better_elsewhere(turn, worker, job, note) else taken)[index] = None
    for index in avoided:
        job.ready.add_returned(index)
    return list(taken)


def _better_elsewhere(turn: Turn, worker: Worker, job: Job, note: TaskNote) -> bool:
    """True when the worker failed the task, and it has not waited long yet for one of those that did not."""
    return (
        worker.worker_id in note.failed_on
        and turn.now < note.avoid_until_ns
        and any(
            other.worker_id not in note.failed_on and other.assignable and other.window > 0 and fits(other, job.lane)
            for other in turn.state.workers.values()
        )
    )


def _assign(turn: Turn, worker: Worker, job: Job, taken: list[int], plan: dict[str, Frames]) -> None:
    """Make live attempts of the tasks and put them into the worker's frames."""
    state, epoch, now, config = turn.state, turn.state.epoch, turn.now, turn.config
    frames = plan.setdefault(worker.worker_id, Frames())
    template = job.template
    limited = template.timeouts.total_ns is not None
    frames.after = max(frames.after, waits_for(turn, job))
    states, payloads, notes, begin = job.states, job.payloads, job.notes, state.begin
    left_ns = None
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
        attempt_no, app_failures = 1, 0
        if notes:
            note = notes.get(index)
            if note is not None:
                attempt_no, app_failures = note.attempt + 1, note.app_failures
                frames.after = max(frames.after, note.after)
        states[index] = _ACTIVE
        begin(Attempt(job, index, epoch, attempt_no, worker, worker.frames, now))
        if limited:
            left_ns = remaining_ns(turn, job, index)
        group.append(
            AssignedTask(
                index=index, attempt=attempt_no, payload=payload, remaining_ns=left_ns, app_failures=app_failures
            )
        )
        if template.at_most_once:
            frames.after = turn.record(
                records.AttemptIssued(
                    job=job.number, index=index, epoch=epoch, attempt=attempt_no, worker_id=worker.worker_id
                )
            )
    job.counts[_QUEUED] -= len(taken)
    job.counts[_ACTIVE] += len(taken)


def waits_for(turn: Turn, job: Job) -> int:
    """Record that must be durable before tasks of the job leave; 0: none."""
    if job.dependencies:
        # Whoever gets the task will ask for results that it depends on, and only durable ones are shown.
        return turn.state.seq
    # Nobody submits tasks from above again: if they began before they are durable, a restart would make and run them once more.
    return job.added_seq if job.job_id.startswith(PARENT_PREFIX) else 0


def remaining_ns(turn: Turn, job: Job, index: int) -> int | None:
    """What is left of a task's total time; None when it has no limit."""
    total_ns = job.template.timeouts.total_ns
    return None if total_ns is None else max(submitted_ns(job, index) + total_ns - turn.now, 0)


def send(turn: Turn, worker: Worker, frames: Frames) -> None:
    """Let a worker's frames leave, after all that they must wait for."""
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
