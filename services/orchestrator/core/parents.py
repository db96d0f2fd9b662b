"""Parents: tasks of the up-stream orchestrator, each expanded here into jobs of our own and reported when they have ended.

The jobs of a parent have derived ids, so that an expansion is found again after any restart and under any newer token:
`<base>/plan` (one task, run by a worker: its result lists the children), `<base>/tasks` (the children) and `<base>/summary` (one task that gets all
outcomes of the children). Where no worker offers a plan for the type, the task is relayed: `<base>/tasks` holds it as it came. Closing one
stage and making the next is one transaction, because both are records of one turn.
"""

from __future__ import annotations

from dataclasses import replace

from antfarm.errors import AntFarmError, InvalidArgument
from antfarm.model import (
    Dependency,
    DependencyKind,
    Failure,
    FailureClass,
    JobId,
    JobSpec,
    TaskState,
    TaskTemplate,
)
from services.orchestrator.core import events, jobs, records
from services.orchestrator.core.effects import ReadPlan, ReportParent, StartParent
from services.orchestrator.core.lanes import PARENT_PREFIX
from services.orchestrator.core.limits import (
    ATTEMPT_MAX,
    EPOCH_MAX,
    NAME_BYTES_MAX,
    check_parent,
    check_payloads,
    check_spec,
)
from services.orchestrator.core.state import Job, Parent, State
from services.orchestrator.core.turn import Turn
from services.orchestrator.core.workers import offers

STAGES = ("summary", "tasks", "plan")
KEPT_MAX = 300
"""Ended jobs of finished parents that are kept for people to look at; older ones are purged."""


def base(key: tuple[str, int]) -> str:
    """Start of the ids of a parent's jobs."""
    return f"{PARENT_PREFIX}{key[0]}/{key[1]}"


def assigned(turn: Turn, event: events.ParentAssigned) -> None:
    """A task came from up-stream. A newer token takes over what an older one began and has not failed; what could be no job here is reported as failed, and not bound."""
    known = turn.state.parents.get((event.job_id, event.index))
    if known is not None and (known.epoch, known.attempt) >= (event.epoch, event.attempt):
        return
    try:
        check_parent(event.job_id, event.template)
        if not (0 < event.epoch <= EPOCH_MAX and 0 < event.attempt <= ATTEMPT_MAX):
            raise InvalidArgument(f"no queue has a token of epoch {event.epoch}, attempt {event.attempt}")
    except AntFarmError as error:
        message = f"the task cannot be carried out here: {error}"
        failure = Failure(failure_class=FailureClass.PERMANENT, kind="assignment", message=message)
        _report_failure(turn, (event.job_id, event.index), (event.epoch, event.attempt), failure, after=0)
        return
    turn.record(
        records.ParentBound(
            job_id=event.job_id,
            index=event.index,
            epoch=event.epoch,
            attempt=event.attempt,
            template=event.template,
            payload=event.payload,
        )
    )
    parent = turn.state.parents[event.job_id, event.index]
    _clear_failed(turn, parent)
    _started(turn, parent)
    advance(turn, parent)


def _report_failure(turn: Turn, key: tuple[str, int], token: tuple[int, int], failure: Failure, *, after: int) -> None:
    """A parent ends as failed without any job of its own to show for it."""
    turn.effect(
        ReportParent(parent=key, epoch=token[0], attempt=token[1], after=after, state=TaskState.FAILED, failure=failure)
    )


def _clear_failed(turn: Turn, parent: Parent) -> None:
    """The parent comes again: up-stream has counted its failure, or gave up the attempt that had it. The stage that failed is done anew, what succeeded stays.

    Up-stream's verdict is no condition: the newer token often overtakes it, and the old failure would be counted a second time.
    """
    for stage in STAGES:
        job = _job(turn.state, parent, stage)
        if job is not None:
            whole = stage != "tasks" or _relayed(turn.state, parent, job)
            if job.ended and job.failed_count and whole:
                turn.record(records.JobPurged(job=job.number))
            return


def _started(turn: Turn, parent: Parent) -> None:
    turn.effect(
        StartParent(
            parent=parent.key,
            epoch=parent.epoch,
            attempt=parent.attempt,
            template=parent.template,
            after=turn.state.seq,
        )
    )


def resume(turn: Turn) -> None:
    """After a restart: go on with every parent where its jobs stand."""
    turn.state.of_done_parents = {
        number: None
        for number in turn.state.ended
        if (job := turn.state.jobs[number]).job_id.startswith(PARENT_PREFIX)
        and turn.state.parent_of(job.job_id) is None
    }
    for parent in list(turn.state.parents.values()):
        _started(turn, parent)
        advance(turn, parent)


def offered(turn: Turn) -> None:
    """A worker attached: parents that waited for somebody who can plan or run them may begin."""
    for parent in list(turn.state.parents.values()):
        if _job(turn.state, parent, "plan") is None and _job(turn.state, parent, "tasks") is None:
            advance(turn, parent)


def job_ended(turn: Turn, job: Job) -> None:
    """A job ended; when it belongs to a parent, the parent's next stage begins in the same transaction."""
    parent = turn.state.parent_of(job.job_id)
    if parent is not None:
        advance(turn, parent)


def _job(state: State, parent: Parent, stage: str) -> Job | None:
    return state.by_id.get(f"{base(parent.key)}/{stage}")


def advance(turn: Turn, parent: Parent) -> None:
    """Begin what comes next for a parent; does nothing while a stage of it runs."""
    state = turn.state
    summary, tasks, plan = (_job(state, parent, stage) for stage in STAGES)
    if summary is not None:
        if summary.ended:
            _report(turn, parent, summary)
    elif tasks is not None:
        if tasks.ended and _relayed(state, parent, tasks):
            _report(turn, parent, tasks)
        elif tasks.ended:
            _summarise(turn, parent, tasks)
    elif plan is not None:
        if plan.ended and plan.failed_count:
            _report(turn, parent, plan)
        elif plan.ended:
            turn.effect(ReadPlan(parent=parent.key, result_seq=plan.outcome_seqs[0], job=plan.number, after=state.seq))
    else:
        _begin(turn, parent)


def _relayed(state: State, parent: Parent, tasks: Job) -> bool:
    """True when its one task is the parent as it came, not children of a plan: the plan may have been purged since, by age or by a user."""
    return _job(state, parent, "plan") is None and tasks.task_count == 1 and tasks.template.type == parent.template.type


def _begin(turn: Turn, parent: Parent) -> None:
    workers = turn.state.workers.values()
    own = parent.template.type
    if offers(workers, f"{own}:plan"):
        _make(turn, parent, "plan", _stage_template(parent, "plan"), parent.payload)
    elif offers(workers, own):
        _make(turn, parent, "tasks", replace(parent.template, limit=None), parent.payload)


def _summarise(turn: Turn, parent: Parent, tasks: Job) -> None:
    dependency = Dependency(job_id=tasks.job_id, kind=DependencyKind.ALL)
    _make(turn, parent, "summary", _stage_template(parent, "summarise"), parent.payload, (dependency,))


def _name(parent: Parent) -> str:
    """What people see of its jobs, cut to what a name may have."""
    return f"{parent.template.type} {parent.job_id}/{parent.index}"[:NAME_BYTES_MAX]


def _stage_template(parent: Parent, stage: str) -> TaskTemplate:
    """Template of a plan or summary task: the parent's arguments, but its own place and no limits meant for the whole."""
    template = parent.template
    return TaskTemplate(
        type=f"{template.type}:{stage}",
        version=template.version,
        retry=template.retry,
        common_payload=template.common_payload,
        traceparent=template.traceparent,
        idempotent=True,
    )


def _make(
    turn: Turn,
    parent: Parent,
    stage: str,
    template: TaskTemplate,
    payload: bytes,
    dependencies: tuple[Dependency, ...] = (),
) -> None:
    spec = JobSpec(template=template, name=_name(parent), dependencies=dependencies)
    jobs.make(turn, JobId(f"{base(parent.key)}/{stage}"), spec, [payload], close=True)


def expanded(turn: Turn, event: events.ParentExpanded) -> None:
    """The plan was read: its tasks become the children's job, in one record with the end of planning behind it."""
    parent = turn.state.parents.get(event.parent)
    if parent is None or _job(turn.state, parent, "tasks") is not None:
        return
    plan = _job(turn.state, parent, "plan")
    if plan is None or not plan.ended:
        return  # the answer to an earlier binding, which was revoked since
    job_id = JobId(f"{base(parent.key)}/tasks")
    failure = event.failure
    if event.template is not None and failure is None:
        spec = JobSpec(template=event.template, name=_name(parent))
        try:
            check_spec(spec)
            check_payloads(event.payloads)
        except AntFarmError as error:
            failure = Failure(
                failure_class=FailureClass.PERMANENT, kind="plan", message=f"the plan cannot be carried out: {error}"
            )
        else:
            jobs.make(turn, job_id, spec, event.payloads, close=True)
            return
    failure = failure or Failure(failure_class=FailureClass.PERMANENT, kind="plan", message="the plan has no template")
    _report_failure(turn, parent.key, (parent.epoch, parent.attempt), failure, after=turn.state.seq)


def _report(turn: Turn, parent: Parent, last: Job) -> None:
    """The parent's end is the end of its last job's one task."""
    state = TaskState(last.states[0])
    turn.effect(
        ReportParent(
            parent=parent.key,
            epoch=parent.epoch,
            attempt=parent.attempt,
            after=turn.state.seq,
            state=state,
            result_of=(last.number, 0, last.outcome_seqs[0]),
        )
    )


def acked(turn: Turn, event: events.ParentAcked) -> None:
    """Up-stream has recorded the end: nothing of the parent needs to be kept, but people may still want to look."""
    parent = turn.state.parents.get((event.job_id, event.index))
    if parent is None or (parent.epoch, parent.attempt) != (event.epoch, event.attempt):
        return
    turn.record(records.ParentDone(job_id=event.job_id, index=event.index))
    for stage in reversed(STAGES):
        job = _job(turn.state, parent, stage)
        if job is not None:
            turn.state.of_done_parents[job.number] = None
    _purge_oldest(turn)


def _purge_oldest(turn: Turn) -> None:
    """Purge what is beyond KEPT_MAX. A job that is in use again, because its parent came again, is no one's of a done parent any more."""
    kept, by_number = turn.state.of_done_parents, turn.state.jobs
    while len(kept) > KEPT_MAX:
        job = by_number[next(iter(kept))]
        if job.ended and jobs.needed_by(turn, job) is None:
            turn.record(records.JobPurged(job=job.number))
        else:
            del kept[job.number]


def revoked(turn: Turn, event: events.ParentRevoked) -> None:
    """Up-stream took its task away: everything made for it is cancelled and forgotten."""
    parent = turn.state.parents.get((event.job_id, event.index))
    if parent is None or (parent.epoch, parent.attempt) > (event.epoch, event.attempt):
        return
    turn.record(records.ParentDone(job_id=event.job_id, index=event.index))
    for stage in STAGES:
        job = _job(turn.state, parent, stage)
        if job is not None:
            jobs.cancel_job(turn, job, event.cause or "revoked by the up-stream orchestrator")
            turn.record(records.JobPurged(job=job.number))
