"""What must be true of the state after every step. Tests call `check` all the time; a broken invariant names itself."""

from __future__ import annotations

from collections import Counter

from antfarm.model import TaskState
from services.orchestrator.core.relay import relays_tasks
from services.orchestrator.core.state import Job, State, may_have_backup


def check(state: State) -> None:
    """AssertionError naming the invariant (semantics section 14) that does not hold."""
    for job in state.jobs.values():
        _check_job(state, job)
    for worker in state.workers.values():
        for (number, index), attempt in worker.live.items():
            assert attempt.worker is worker, "I8: an attempt belongs to the worker that it was issued to"
            live = state.jobs[number].attempts_of(index)
            assert any(one is attempt for one in live), (
                "I10: at most one live attempt per task, two while a backup runs"
            )
        assert not (worker.lost or worker.gone) or worker.is_empty, "a lost worker holds no attempt"
        assert (worker.session is None) or state.sessions.get(worker.session) is worker, "sessions name their workers"
    assert set(state.ended) == {number for number, job in state.jobs.items() if job.ended_seq}, "ended jobs are listed"
    assert state.ended_tasks == sum(state.jobs[number].task_count for number in state.ended), "their tasks are counted"
    _check_relays(state)
    _check_alone(state)
    _check_health(state)
    _check_lanes(state)
    assert state.kept_bytes == sum(job.kept_bytes for job in state.jobs.values()), "what tasks take is counted"


def _check_relays(state: State) -> None:
    relayed = [parent for parent in state.parents.values() if parent.job]
    for parent in relayed:
        relay = state.relays[parent.job]
        assert parent.key == (relay.job_id, relay.first + parent.local), "I19: a task stands for one parent"
    bound = Counter(parent.job for parent in relayed)
    assert bound == {number: relay.bound for number, relay in state.relays.items()}, "I19: bound relays are counted"
    wanted = {(parent.job, parent.local) for parent in relayed}
    for job in state.jobs.values():
        for local, task_state in enumerate(job.states) if relays_tasks(job) else ():
            assert task_state >= TaskState.SUCCEEDED or (job.number, local) in wanted, (
                "I19: a task that stands for no parent has ended"
            )
    seqs = [parent.seq for parent in state.parents.values()]
    assert seqs == sorted(seqs), "parents stand in the order in which they were bound"


def _check_alone(state: State) -> None:
    reserved = {key: worker for worker in state.workers.values() if (key := worker.alone_for) is not None}
    assert reserved == {key: alone.worker for key, alone in state.alone.items() if alone.worker is not None}, (
        "a worker is reserved for one suspected task, and that for it"
    )
    for key, alone in state.alone.items():
        if alone.running and alone.worker is not None:
            assert alone.worker.live.keys() <= {key}, "I18: nothing joins a task that runs alone"


def _check_health(state: State) -> None:
    quarantined = {worker.worker_id: worker for worker in state.workers.values() if worker.quarantine is not None}
    assert state.quarantined == quarantined, "workers in quarantine are listed"
    able = [worker for worker in state.workers.values() if worker.able and not worker.orchestrator]
    away = [worker for worker in able if worker.quarantine is not None]
    assert len(away) <= len(able) // 3, "a third of the workers are in quarantine at most"


def _check_lanes(state: State) -> None:
    for name, limit in state.limits.items():
        named = [job for job in state.jobs.values() if job.lane.limit is limit]
        assert limit.live == sum(len(job.all_live()) for job in named), (
            f"concurrency limit {name} counts its live attempts"
        )
        bounds = {job.template.limit.max_active for job in named if job.template.limit is not None and not job.ended}
        assert set(limit.bounds) == bounds, f"concurrency limit {name} is bound by all jobs that have not ended"
    for lane in state.lanes.values():
        jobs = [job for job in state.jobs.values() if job.lane is lane]
        assert lane.jobs == len(jobs), "lanes count their jobs"
        assert sum(map(len, lane.shares.values())) == sum(job.offered for job in jobs), "shares offer each job once"
        offered = [share.weight for share in lane.shares.values() if share]
        assert len(lane) == len(offered), "lanes offer each share once"
        assert lane.weight == sum(offered), "lanes weigh as much as the shares that they offer"
    assert state.of_done_parents.keys() <= state.jobs.keys(), "what is kept of done parents is there"
    for job in state.jobs.values():
        assert job.offered or job.paused or not job.ready, "a job with ready tasks is on offer"


def _check_job(state: State, job: Job) -> None:
    count = len(job.states)
    lengths = {count, len(job.payloads), len(job.digests), len(job.outcome_seqs), len(job.winners)}
    assert lengths == {count}, "per-task arrays have one length"
    for task_state in TaskState:
        assert job.counts[task_state] == job.states.count(int(task_state)), "counts count states"
    for index, backup in job.backups.items():
        assert may_have_backup(job.template), "I10: tasks that must not run twice have no backup"
        assert index in job.live, "I10: a backup runs beside another attempt"
        assert backup.worker is not job.live[index].worker, "a backup is with another worker"
    for attempt in job.all_live():
        index = attempt.index
        assert job.states[index] == TaskState.ACTIVE, "a live attempt's task is ACTIVE"
        assert attempt.worker.live.get((job.number, index)) is attempt, "a live attempt is its worker's"
        assert attempt.epoch <= state.epoch, "I12: no token of a future epoch"
    for index in range(count):
        number = job.states[index]
        if number == TaskState.ACTIVE:
            assert index in job.live or job.template.at_most_once, (
                "an ACTIVE task has a live attempt, or waits for its one holder"
            )
        elif number == TaskState.SUCCEEDED:
            assert job.payloads[index] is None, "a succeeded task's payload is dropped"
            assert job.winners[index] > 0, "I4: a success names one attempt"
        if number >= TaskState.SUCCEEDED:
            assert job.outcome_seqs[index] > 0, "I3: a terminal task has its record"
            assert index not in job.notes, "nothing is remembered of ended tasks"
