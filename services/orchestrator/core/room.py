"""Room for tasks that need more of a worker than ever ends there at once: narrow ones would take each slot that frees, for ever (L6, ADR 4).

Tasks that have been refused for half a minute, for nothing but what other tasks take, are kept a worker for, one at a time, the emptiest. Of it the others
get no more than what leaves room for one of them. Where that does not come in time another such lane has its turn, or the next worker is tried, and patience
doubles with each round. A concurrency limit that tasks of other workers take each time it frees is kept likewise. Nothing of this is durable.
"""

from __future__ import annotations

from antfarm.model import TaskState
from services.orchestrator.core.lanes import Lane, fits
from services.orchestrator.core.state import Kept, Worker
from services.orchestrator.core.turn import Turn

_QUEUED = int(TaskState.QUEUED)


def review(turn: Turn, lanes: list[Lane]) -> None:
    """Before tasks of these lanes are given out: see whether limits and a worker are still to be kept, and for whom."""
    state = turn.state
    waiting = [lane for lane in lanes if lane.refused_ns and _waits(lane) and _has_waited(turn, lane)]
    _keep_limits(turn, waiting)
    kept = state.kept_for
    if kept is not None:
        holds = kept.lane in lanes and _is_refused(kept.lane) and _can_make_room(kept.worker, kept.lane)
        if holds and turn.now < kept.until_ns:
            return
        state.kept_for = None
        if holds:
            state.kept_before.pop(kept.lane, None)
            state.kept_before[kept.lane] = kept
    elif turn.now < state.look_for_room_ns:
        return
    _keep_a_worker(turn, [lane for lane in waiting if _is_refused(lane)])


def _waits(lane: Lane) -> bool:
    """False when what was refused has been cancelled since."""
    job = lane.next()
    if job is not None and job.counts[_QUEUED] > 0:
        return True
    lane.waits_no_more()
    return False


def _has_waited(turn: Turn, lane: Lane) -> bool:
    return turn.now - lane.refused_ns >= turn.config.room_patience_ns


def _keep_limits(turn: Turn, waiting: list[Lane]) -> None:
    """Tasks that have a place on a worker get what becomes free of their limit next: those of another worker would be given it each time."""
    kept = turn.state.kept_for
    for lane in waiting:
        limit = lane.limit
        if limit is not None and limit.lanes > 1 and limit.kept_for in (None, lane):
            has_place = any(
                _has_place(worker, lane)
                for worker in turn.state.workers.values()
                if kept is None or kept.worker is not worker
            )
            limit.kept_for = lane if has_place else None


def _has_place(worker: Worker, lane: Lane) -> bool:
    """True when the worker would take a task of the lane but for its limit."""
    return (
        worker.assignable
        and fits(worker, lane)
        and 0 < worker.window > worker.taken
        and (worker.taken + lane.slots <= worker.window or not worker.live)
        and all(
            worker.used.get(name, 0.0) + amount <= worker.resources.get(name, 0.0) + 1e-9
            for name, amount in lane.template.resources.items()
            if name != "cpu"
        )
    )


def _keep_a_worker(turn: Turn, waiting: list[Lane]) -> None:
    """For one of these lanes: those that none was kept for before, then whose turn is longest ago. Each goes on with its round where it gave way."""
    state = turn.state
    state.kept_before = {lane: kept for lane, kept in state.kept_before.items() if lane in waiting}
    turns = {lane: number for number, lane in enumerate(state.kept_before)}
    for lane in sorted(waiting, key=lambda lane: turns.get(lane, -1)):
        if _keep(turn, lane, state.kept_before.get(lane)):
            return
    if waiting:  # looking costs a walk over all attempts
        state.look_for_room_ns = turn.now + turn.config.heartbeat_ns


def _is_refused(lane: Lane) -> bool:
    """True when tasks of it wait that found no room. What waits for its concurrency limit does not."""
    return lane.refused_ns > 0 and _waits(lane) and (lane.limit is None or lane.limit.room_for(lane) > 0)


def _can_make_room(worker: Worker, lane: Lane) -> bool:
    """True when a task of the lane would run there but for those of other lanes."""
    if not (worker.assignable and worker.window > 0 and fits(worker, lane)):
        return False
    own = sum(attempt.job.lane is lane for attempt in worker.live.values())
    if own and (own + 1) * lane.slots > worker.window:
        return False
    return all(
        (own + 1) * amount <= worker.resources.get(name, 0.0) + 1e-9
        for name, amount in lane.template.resources.items()
        if name != "cpu"
    )


def _keep(turn: Turn, lane: Lane, before: Kept | None) -> bool:
    """Keep the emptiest worker that was not tried in this round. False: there is none at all."""
    able = [worker for worker in turn.state.workers.values() if _can_make_room(worker, lane)]
    patience_ns = turn.config.empty_patience_ns if before is None else before.patience_ns
    tried = set() if before is None else before.tried
    if able and all(worker.worker_id in tried for worker in able):
        tried, patience_ns = set(), 2 * patience_ns
    left = [worker for worker in able if worker.worker_id not in tried]
    if not left:
        return False
    worker = min(left, key=lambda worker: (worker.taken, worker.worker_id))
    turn.state.kept_for = Kept(
        worker=worker,
        lane=lane,
        until_ns=turn.now + patience_ns,
        patience_ns=patience_ns,
        tried=tried | {worker.worker_id},
    )
    return True
