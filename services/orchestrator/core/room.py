"""Room for tasks that need more of a worker than ever ends there at once: narrow ones would take each slot that frees, for ever (L6, ADR 4).

Tasks that have been refused for half a minute, for nothing but what other tasks take, are kept a worker for, one at a time, the emptiest. Of it the others
get no more than what leaves room for one of them. Where that does not come in time the next worker is tried, and patience doubles with each round.
Nothing of this is durable.
"""

from __future__ import annotations

from antfarm.model import TaskState
from services.orchestrator.core.lanes import Lane, fits
from services.orchestrator.core.state import Kept, Worker
from services.orchestrator.core.turn import Turn

_QUEUED = int(TaskState.QUEUED)


def review(turn: Turn, lanes: list[Lane]) -> None:
    """Before tasks of these lanes are given out: see whether a worker is still to be kept, and for whom."""
    state = turn.state
    kept = state.kept_for
    if kept is not None:
        holds = kept.lane in lanes and _is_refused(kept.lane) and _can_make_room(kept.worker, kept.lane)
        if holds and turn.now < kept.until_ns:
            return
        state.kept_for = None
        if holds:
            _keep(turn, kept.lane, kept)
            return
    for lane in lanes:
        if _is_refused(lane) and turn.now - lane.refused_ns >= turn.config.room_patience_ns and _keep(turn, lane, None):
            return


def _is_refused(lane: Lane) -> bool:
    """True when tasks of it wait that found no room. What waits for its concurrency limit does not."""
    job = lane.next()
    return (
        lane.refused_ns > 0
        and job is not None
        and job.counts[_QUEUED] > 0
        and (lane.limit is None or lane.limit.room > 0)
    )


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
