"""Health: workers that fail what others can do get no work, and task types that nobody can do now wait (semantics section 8, ADR 11).

A worker is judged by its last ten endings. Three different tasks that failed put it into quarantine, unless its neighbours fail as well: then it is not
the worker. When what fails is the infrastructure, on a third of the workers that know the type, the type is paused. Either way one task, the canary, is tried after
a while, and its success ends the matter.

Nothing of this is durable: after a restart of the orchestrator everybody is trusted again.
"""

from __future__ import annotations

from collections.abc import Iterator

from antfarm.model import PROCESS_LOST_KIND, Failure, FailureClass, TaskState
from antfarm.text import show
from services.orchestrator.core.effects import Audit
from services.orchestrator.core.lanes import fits
from services.orchestrator.core.state import Attempt, Probation, State, Trouble, Worker
from services.orchestrator.core.turn import Turn

_TELLS_OF_THE_WORKER = {FailureClass.PERMANENT, FailureClass.APP, FailureClass.CRASH, FailureClass.INFRA}


def failed(turn: Turn, attempt: Attempt, failure: Failure) -> bool:
    """A worker reported a failure. True when that put it into quarantine: the caller takes back what has not started there."""
    worker, job = attempt.worker, attempt.job
    infra = failure.failure_class is FailureClass.INFRA
    key = (job.number, attempt.index)
    paused = turn.state.paused_types.get(job.template.type)
    if infra:
        _canary_failed(turn, paused, key)
    if (
        worker.orchestrator  # what fails there was judged below
        or failure.failure_class not in _TELLS_OF_THE_WORKER
        or failure.kind == PROCESS_LOST_KIND  # one death, however many shared the process
    ):
        return False
    worker.recent.append(Trouble(key, job.template.type, infra))
    _canary_failed(turn, worker.quarantine, key)
    if worker.quarantine is None and _is_ailing(turn, worker) and _may_go(turn.state, worker):
        _quarantine(turn, worker, failure)
        return True
    if infra and paused is None:
        _pause_if_spread(turn, job.template.type, failure)
    return False


def _canary_failed(turn: Turn, probation: Probation | None, key: tuple[int, int]) -> None:
    if probation is not None and probation.canary == key:
        probation.canary = None
        probation.pause_ns = min(2 * probation.pause_ns, turn.config.probe_max_ns)
        probation.due_ns = turn.now + probation.pause_ns


def _tasks_failed(worker: Worker) -> int:
    """Different tasks that failed among its last endings."""
    return len({trouble.task for trouble in worker.recent if trouble is not None})


def _is_ailing(turn: Turn, worker: Worker) -> bool:
    """True when it fails more than chance explains, given how its neighbours fare: three tasks more than three times their mean."""
    failures = _tasks_failed(worker)
    if failures < turn.config.ailing_min:
        return False
    others = [
        _tasks_failed(other)
        for other in turn.state.workers.values()
        if other.able and other is not worker and not worker.task_types.isdisjoint(other.task_types)
    ]
    mean = sum(others) / max(len(others), 1)
    return failures >= turn.config.ailing_min + int(3 * mean)


def _able(state: State) -> list[Worker]:
    return [worker for worker in state.workers.values() if worker.able and not worker.orchestrator]


def _may_go(state: State, worker: Worker) -> bool:
    """True when quarantines stay within a third of the workers with this one, and others can run what waits for it."""
    workers = _able(state)
    away = sum(other.quarantine is not None for other in workers if other is not worker)
    others = [other for other in workers if other.quarantine is None and other is not worker and _works(other)]
    return away + 1 <= len(workers) // 3 and all(
        any(fits(other, lane) for other in others) for lane in state.lanes.values() if len(lane) and fits(worker, lane)
    )


def _works(worker: Worker) -> bool:
    """False for one that neither wants work nor has some: it is leaving, or its processes do not start."""
    return worker.window > 0 or bool(worker.live)


def _quarantine(turn: Turn, worker: Worker, failure: Failure) -> None:
    cause = f"{_tasks_failed(worker)} tasks failed of its last {len(worker.recent)}"
    worker.quarantine = _begin(turn, f"quarantine: worker {worker.worker_id}", cause, failure)
    turn.state.quarantined[worker.worker_id] = worker


def _begin(turn: Turn, what: str, cause: str, failure: Failure) -> Probation:
    """Probation from now on, told to the operators."""
    cause = f"{cause}, the last one with: {failure.kind} {failure.message[:200]}"
    turn.effect(Audit(text=f"{what}: {cause}"))
    pause_ns = turn.config.probe_first_ns
    return Probation(cause=cause, pause_ns=pause_ns, due_ns=turn.now + pause_ns)


def _pause_if_spread(turn: Turn, task_type: str, failure: Failure) -> None:
    workers = [worker for worker in _able(turn.state) if task_type in worker.task_types]
    hit = [
        worker.worker_id
        for worker in workers
        if len({t.task for t in worker.recent if t is not None and t.infra and t.type == task_type})
        >= turn.config.ailing_min
    ]
    if hit and 3 * len(hit) >= len(workers):
        cause = f"the infrastructure failed its tasks on {', '.join(hit[:5])}{' ...' if len(hit) > 5 else ''}"
        turn.state.paused_types[task_type] = _begin(turn, f"paused: task type {task_type}", cause, failure)
        _touch_jobs(turn.state, task_type)


def _touch_jobs(state: State, task_type: str) -> None:
    """Whoever watches jobs of the type is told."""
    state.touched.update((job.number, None) for job in state.jobs.values() if job.template.type == task_type)


# ---- the way back ----------------------------------------------------------------------------------------------------


def review(turn: Turn) -> None:
    """Before each placement: what canaries have come to, and whether the bounds of quarantine still hold as workers come and go."""
    state = turn.state
    for worker in list(state.quarantined.values()):
        if worker.quarantine is not None and _has_succeeded(state, worker.quarantine):
            trust(turn, worker, "a task succeeded there")
        elif worker.able and not _may_go(state, worker):
            trust(turn, worker, "too few others are left")
    for task_type, probation in list(state.paused_types.items()):
        if _has_succeeded(state, probation):
            resume_type(turn, task_type, "one of its tasks succeeded")


def _has_succeeded(state: State, probation: Probation) -> bool:
    """True when the canary has succeeded. One that ended otherwise than by failing proves nothing, and the next goes out at once.

    A worker is trusted for the success of the attempt there alone, not for that of a backup elsewhere; a type for any.
    """
    if probation.canary is None:
        return False
    worker, job = state.workers.get(probation.canary_on), state.jobs.get(probation.canary[0])
    if worker is not None and probation.canary in worker.live:
        return False
    if job is not None and job.states[probation.canary[1]] == TaskState.SUCCEEDED:
        of_type = worker is None or worker.quarantine is not probation
        if of_type or job.winners[probation.canary[1]] == probation.canary_token:
            return True
    probation.canary = None
    return False


def trust(turn: Turn, worker: Worker, why: str) -> None:
    """End a worker's quarantine, if it is in one; it is judged by what comes from now on."""
    worker.recent.clear()
    if worker.quarantine is not None:
        worker.quarantine = None
        del turn.state.quarantined[worker.worker_id]
        turn.effect(Audit(text=f"quarantine ended: worker {worker.worker_id}: {why}"))


def resume_type(turn: Turn, task_type: str, why: str) -> None:
    """End a task type's pause, if it is paused; workers are judged by what comes from now on."""
    if turn.state.paused_types.pop(task_type, None) is not None:
        for worker in turn.state.workers.values():
            if task_type in worker.task_types:
                worker.recent.clear()
        _touch_jobs(turn.state, task_type)
        turn.effect(Audit(text=f"pause ended: task type {task_type}: {why}"))


def probe_soon(turn: Turn, worker: Worker) -> None:
    """The worker was started anew: whoever did that may have mended it, so the next task is tried at once."""
    if worker.quarantine is not None:
        worker.quarantine.due_ns = turn.now


def is_due(turn: Turn, probation: Probation) -> bool:
    """True when the next canary may go out."""
    return probation.canary is None and turn.now >= probation.due_ns


def due_workers(turn: Turn) -> Iterator[tuple[Worker, Probation]]:
    """Workers in quarantine that are to be given one task."""
    for worker in turn.state.quarantined.values():
        probation = worker.quarantine
        if (
            probation is not None
            and is_due(turn, probation)
            and worker.able
            and worker.alone_for is None
            and worker.window > worker.taken
        ):
            yield worker, probation


def sent(probation: Probation, worker: Worker, key: tuple[int, int]) -> None:
    """The canary is out."""
    probation.canary, probation.canary_on = key, worker.worker_id
    if worker.worker_id in probation.tried:  # so has everybody who could take it
        probation.tried.clear()
    probation.tried.add(worker.worker_id)
    attempt = worker.live.get(key)
    probation.canary_token = attempt.epoch << 32 | attempt.attempt if attempt is not None else 0


def probation_text(probation: Probation, now_ns: int) -> str:
    """Why a worker is in quarantine or a type paused, and what happens next."""
    left_s = (probation.due_ns - now_ns) / 1e9
    if probation.canary is not None:
        then = f"one task is being tried on {probation.canary_on}"
    elif left_s > 0:
        then = f"one task is tried in {show(left_s)}"
    else:
        then = "the next task is tried"
    return f"{probation.cause}; {then}"
