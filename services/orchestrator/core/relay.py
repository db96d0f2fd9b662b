"""Relays: tasks of the up-stream orchestrator that workers here run as they came, many of them in one job.

Neighbours that came together become one job, `up/<job>/<index of the first>/relay-<number>`, whose task i stands for the task first + i of the up-stream
job: so what an output's key says of its task leads to the task above.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from antfarm.model import JobId, JobSpec, TaskState, TaskTemplate
from services.orchestrator.core import jobs, records
from services.orchestrator.core.effects import ParentEnd, ReportParents
from services.orchestrator.core.events import ParentTask
from services.orchestrator.core.lanes import PARENT_PREFIX, RELAY_STAGE
from services.orchestrator.core.limits import NAME_BYTES_MAX
from services.orchestrator.core.state import Job, Parent, Relay
from services.orchestrator.core.turn import Turn

_TERMINAL = int(TaskState.SUCCEEDED)


def relays_tasks(job: Job) -> bool:
    """True when the job's tasks stand for tasks of the up-stream orchestrator, one each, or did."""
    return job.job_id.startswith(PARENT_PREFIX) and job.job_id.rpartition("/")[2].startswith(RELAY_STAGE)


def begin(turn: Turn, job_id: str, epoch: int, template: TaskTemplate, tasks: Iterable[ParentTask]) -> None:
    """Bind tasks that are not bound, and make jobs of them."""
    # The concurrency limit is kept where all tasks are known: up-stream.
    template = replace(template, limit=None)
    for run in _runs(tasks):
        first, last, attempt = run[0].index, run[-1].index, run[0].attempt
        left = within_retries(template, run[0])
        name = f"{template.type} {job_id}/{first}" + (f"-{last}" if last > first else "")
        job = jobs.make(
            turn,
            JobId(f"{PARENT_PREFIX}{job_id}/{first}/{RELAY_STAGE}{turn.state.next_job}"),
            JobSpec(template=left, name=name[:NAME_BYTES_MAX]),
            [task.payload for task in run],
            close=True,
        )
        _record(turn, job, job_id, first, 0, len(run), (epoch, attempt))


def within_retries(template: TaskTemplate, task: ParentTask) -> TaskTemplate:
    """The template with no more retries than the task has left: a failing task runs as often as its policy says, wherever that is (ADR 24)."""
    if not task.app_failures:
        return template
    retry = template.retry
    return replace(template, retry=replace(retry, max_attempts=max(retry.max_attempts - task.app_failures, 1)))


def _runs(tasks: Iterable[ParentTask]) -> Iterator[list[ParentTask]]:
    """Neighbours with the same attempt number and as many retries left, in order."""
    run: list[ParentTask] = []
    for task in tasks:
        if run and (task.index, task.attempt, task.app_failures) != (
            run[-1].index + 1,
            run[0].attempt,
            run[0].app_failures,
        ):
            yield run
            run = []
        run.append(task)
    if run:
        yield run


def _record(turn: Turn, job: Job, job_id: str, index: int, local: int, count: int, token: tuple[int, int]) -> None:
    turn.record(
        records.ParentsRelayed(
            job=job.number, job_id=job_id, index=index, local=local, count=count, epoch=token[0], attempt=token[1]
        )
    )


def rebind(turn: Turn, parent: Parent, token: tuple[int, int]) -> Parent:
    """A newer token: the task goes on under it. What stands for it is found by that from now on."""
    _record(turn, turn.state.jobs[parent.job], parent.job_id, parent.index, parent.local, 1, token)
    return turn.state.parents[parent.key]


def has_failed(turn: Turn, parent: Parent) -> bool:
    """True when the task that stands for the parent ended without success: a newer token does it anew."""
    return turn.state.jobs[parent.job].states[parent.local] > _TERMINAL


def resume(turn: Turn, parents: Iterable[Parent]) -> None:
    """Tell the ends of those that have one already, together what one record says."""
    ends: dict[int, list[ParentEnd]] = {}
    after: dict[int, int] = {}
    for parent in parents:
        job = turn.state.jobs[parent.job]
        if job.states[parent.local] >= _TERMINAL:
            seq = job.outcome_seqs[parent.local]
            ends.setdefault(seq, []).append(ParentEnd(parent.token, parent.local))
            after[seq] = max(after.get(seq, seq), parent.seq)
    for seq, ended in ends.items():
        turn.effect(ReportParents(seq=seq, ends=ended, after=after[seq]))


def tell_ended(turn: Turn) -> None:
    """Tell the ends of tasks that this turn's records end, once they are durable."""
    relays = turn.state.relays
    for seq, record in turn.records if relays else ():
        if isinstance(record, records.TasksEnded) and record.job in relays:
            locals_ = [task.index for task in record.ended]
        elif isinstance(record, records.JobCancelled) and record.job in relays:
            seqs = turn.state.jobs[record.job].outcome_seqs
            locals_ = [local for local in range(len(seqs)) if seqs[local] == seq]
        else:
            continue
        ends = list(_ends(turn, relays[record.job], record.job, locals_))
        if ends:
            turn.effect(ReportParents(seq=seq, ends=ends, after=turn.state.seq))


def _ends(turn: Turn, relay: Relay, number: int, locals_: Sequence[int]) -> Iterator[ParentEnd]:
    job_id, first, parents = relay.job_id, relay.first, turn.state.parents
    for local in locals_:
        parent = parents.get((job_id, first + local))
        if parent is not None and parent.job == number:
            yield ParentEnd(parent.token, local)


def forget(turn: Turn, parents: Iterable[Parent]) -> None:
    """They are bound no more. What is left of their jobs people may look at."""
    by_job: dict[int, list[Parent]] = {}
    for parent in parents:
        by_job.setdefault(parent.job, []).append(parent)
    for number, bound in by_job.items():
        indices = [parent.index for parent in bound]
        turn.record(records.RelaysDone(job=number, job_id=bound[0].job_id, indices=indices))
        if number not in turn.state.relays:
            turn.state.of_done_parents[number] = None


def take_back(turn: Turn, parents: Sequence[Parent], cause: str) -> None:
    """Nothing of them is wanted any more: forget them, and cancel what stands for them and has not ended."""
    locals_: dict[int, list[int]] = {}
    for parent in parents:
        if turn.state.jobs[parent.job].states[parent.local] < _TERMINAL:
            locals_.setdefault(parent.job, []).append(parent.local)
    forget(turn, parents)
    for number, indices in locals_.items():
        jobs.end_tasks(turn, turn.state.jobs[number], indices, TaskState.CANCELLED, records.cancelled(cause))
