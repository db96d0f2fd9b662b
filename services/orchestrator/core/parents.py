"""Parents: tasks of the up-stream orchestrator, each expanded here into jobs of our own and reported when they have ended.

The jobs of a parent have derived ids, so that an expansion is found again after any restart and under any newer token:
`<base>/plan` (one task, run by a worker: its result lists the children), `<base>/tasks` (the children) and `<base>/summary` (one task that gets all
outcomes of the children). Closing the children's job and making the summary's is one transaction, because both are records of one turn; a plan is read in
between, and after a restart read again. Where no worker offers a plan for the type, the task is relayed as it came: `relay`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby

from antfarm.errors import AntFarmError
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
from services.orchestrator.core import events, jobs, records, relay
from services.orchestrator.core.effects import FailParent, ParentEnd, ReadPlan, ReleaseParents, ReportParents
from services.orchestrator.core.events import HeldToken
from services.orchestrator.core.lanes import PARENT_PREFIX
from services.orchestrator.core.limits import (
    ATTEMPT_MAX,
    EPOCH_MAX,
    NAME_BYTES_MAX,
    check_parent,
    check_plan,
    check_spec,
)
from services.orchestrator.core.state import Job, Parent, State
from services.orchestrator.core.turn import Turn
from services.orchestrator.core.workers import offers

STAGES = ("summary", "tasks", "plan")
_TERMINAL = int(TaskState.SUCCEEDED)
KEPT_MAX = 300
"""Ended jobs of finished parents that are kept for people to look at; older ones are purged."""


def base(key: tuple[str, int]) -> str:
    """Start of the ids of a parent's jobs."""
    return f"{PARENT_PREFIX}{key[0]}/{key[1]}"


def assigned(turn: Turn, event: events.ParentsAssigned) -> None:
    """Tasks came from up-stream. A newer token takes over what an older one began and has not failed; what could be no job here is reported as failed, and not bound."""
    refusal = _refusal(event)
    at_once = _is_relayed(turn, event.template.type)
    fresh: dict[int, events.ParentTask] = {}
    rebound: list[Parent] = []
    for task in event.tasks:
        known = turn.state.parents.get((event.job_id, task.index))
        token = (event.epoch, task.attempt)
        if known is not None and (known.epoch, known.attempt) >= token:
            continue
        if known is not None and known.epoch < event.since_epoch:
            _forget(turn, [known], "its job was purged up-stream, and another one has its id")
            known = None
        problem = refusal or (None if 0 < task.attempt <= ATTEMPT_MAX else f"no queue has an attempt {task.attempt}")
        if problem is not None:
            message = f"the task cannot be carried out here: {problem}"
            failure = Failure(failure_class=FailureClass.PERMANENT, kind="assignment", message=message)
            held = (event.job_id, task.index, event.epoch, task.attempt)
            turn.effect(FailParent(token=held, failure=failure, after=0))
            continue
        if known is not None and known.job:
            if not relay.has_failed(turn, known):
                rebound.append(relay.rebind(turn, known, token))
                continue
            relay.forget(turn, [known])
            known = None
        if known is None and at_once:
            if task.index not in fresh or fresh[task.index].attempt < task.attempt:
                fresh[task.index] = task
        else:
            _bind(turn, event, task)
    relay.resume(turn, rebound)
    relay.begin(turn, event.job_id, event.epoch, event.template, fresh.values())


def _refusal(event: events.ParentsAssigned) -> str | None:
    try:
        check_parent(event.job_id, event.template)
    except AntFarmError as error:
        return str(error)
    return None if 0 < event.epoch <= EPOCH_MAX else f"no queue has an epoch {event.epoch}"


def _bind(turn: Turn, event: events.ParentsAssigned, task: events.ParentTask) -> None:
    """A task that gets jobs of its own here, or waits for somebody who can run it."""
    if (event.job_id, task.index) not in turn.state.parents:
        # What is left was of a task whose end is known above: this one may be of another job under the same id.
        _discard(turn, (event.job_id, task.index), "another task has its name")
    turn.record(
        records.ParentBound(
            job_id=event.job_id,
            index=task.index,
            epoch=event.epoch,
            attempt=task.attempt,
            template=relay.within_retries(event.template, task),
            payload=task.payload,
            wall_ns=turn.wall_ns,
        )
    )
    parent = turn.state.parents[event.job_id, task.index]
    parent.bound_ns = turn.now
    _clear_failed(turn, parent)
    advance(turn, parent)


def _clear_failed(turn: Turn, parent: Parent) -> None:
    """The parent comes again: up-stream has counted its failure, or gave up the attempt that had it. The stage that failed is done anew, what succeeded stays.

    Up-stream's verdict is no condition: the newer token often overtakes it, and the old failure would be counted a second time.
    """
    for stage in STAGES:
        job = _job(turn.state, parent.key, stage)
        if job is not None:
            # Children are summed up however they ended.
            if job.ended and job.failed_count and stage != "tasks":
                turn.record(records.JobPurged(job=job.number))
            return


def resume(turn: Turn) -> None:
    """After a restart: go on with every parent where its jobs stand."""
    turn.state.of_done_parents = {
        number: None
        for number in turn.state.ended
        if (job := turn.state.jobs[number]).job_id.startswith(PARENT_PREFIX) and turn.state.parent_of(job) is None
    }
    parents = list(turn.state.parents.values())
    relay.resume(turn, [parent for parent in parents if parent.job])
    for parent in parents:
        if not parent.job:
            parent.bound_ns = turn.moment_ns(parent.bound_wall_ns) if parent.bound_wall_ns else turn.now
            advance(turn, parent)


def offered(turn: Turn) -> None:
    """A worker attached: parents that waited for somebody who can plan or run them may begin. Those that are relayed do so together, as if they came now."""
    waiting, turn.state.waiting_parents = turn.state.waiting_parents, {}
    parents = [parent for key in waiting if (parent := turn.state.parents.get(key)) is not None and not parent.job]
    relayed = {kind: _is_relayed(turn, kind) for kind in {parent.template.type for parent in parents}}
    for parent in parents:
        if not relayed[parent.template.type]:
            advance(turn, parent)
    _relay(turn, [parent for parent in parents if relayed[parent.template.type]])


def job_ended(turn: Turn, job: Job) -> None:
    """A job ended; when it belongs to a parent, the parent's next stage begins in the same transaction."""
    parent = turn.state.parent_of(job)
    if parent is not None and not parent.job:
        advance(turn, parent)


def _job(state: State, key: tuple[str, int], stage: str) -> Job | None:
    return state.by_id.get(f"{base(key)}/{stage}")


def advance(turn: Turn, parent: Parent) -> None:
    """Begin what comes next for a parent; does nothing while a stage of it runs."""
    state = turn.state
    summary, tasks, plan = (_job(state, parent.key, stage) for stage in STAGES)
    if summary is not None:
        if summary.ended:
            _report(turn, parent, summary)
    elif tasks is not None:
        if tasks.ended:
            _summarise(turn, parent, tasks)
    elif plan is not None:
        if plan.ended and plan.failed_count:
            _report(turn, parent, plan)
        elif plan.ended:
            turn.effect(ReadPlan(parent=parent.key, result_seq=plan.outcome_seqs[0], job=plan.number, after=state.seq))
    else:
        _begin(turn, parent)


def _begin(turn: Turn, parent: Parent) -> None:
    workers = turn.state.workers.values()
    own = parent.template.type
    if offers(workers, f"{own}:plan"):
        _make(turn, parent, "plan", _stage_template(turn, parent, "plan"), parent.payload)
    elif offers(workers, own):
        _relay(turn, [parent])
    else:
        turn.state.waiting_parents[parent.key] = None


def _is_relayed(turn: Turn, task_type: str) -> bool:
    """True when somebody here runs tasks of the type as they came."""
    workers = turn.state.workers.values()
    return offers(workers, task_type) and not offers(workers, f"{task_type}:plan")


def _relay(turn: Turn, parents: Sequence[Parent]) -> None:
    """Hand parents that were bound, and have no jobs yet, to workers as they came: those of one job and template together."""
    for parent in parents:
        turn.record(records.ParentDone(job_id=parent.job_id, index=parent.index))
    alike = groupby(
        parents, lambda parent: (parent.job_id, parent.epoch, _within_deadline(turn, parent, parent.template))
    )
    for (job_id, epoch, template), run in alike:
        relay.begin(
            turn, job_id, epoch, template, [events.ParentTask(one.index, one.attempt, one.payload) for one in run]
        )


def _summarise(turn: Turn, parent: Parent, tasks: Job) -> None:
    dependency = Dependency(job_id=tasks.job_id, kind=DependencyKind.ALL)
    _make(turn, parent, "summary", _stage_template(turn, parent, "summarise"), parent.payload, (dependency,))


def _name(parent: Parent) -> str:
    """What people see of its jobs, cut to what a name may have."""
    return f"{parent.template.type} {parent.job_id}/{parent.index}"[:NAME_BYTES_MAX]


def _stage_template(turn: Turn, parent: Parent, stage: str) -> TaskTemplate:
    """Template of a plan or summary task: the parent's arguments, but its own place and no limits meant for the whole but the deadline."""
    template = parent.template
    made = TaskTemplate(
        type=f"{template.type}:{stage}",
        version=template.version,
        retry=template.retry,
        common_payload=template.common_payload,
        traceparent=template.traceparent,
        at_most_once=template.at_most_once,
        idempotent=not template.at_most_once,
    )
    return _within_deadline(turn, parent, made)


def _within_deadline(turn: Turn, parent: Parent, template: TaskTemplate) -> TaskTemplate:
    """The template with no more time than is left of the parent's total deadline: also where nobody above can say that it is over."""
    total_ns, own_ns = parent.template.timeouts.total_ns, template.timeouts.total_ns
    if total_ns is None:
        return template
    left_ns = max(parent.bound_ns + total_ns - turn.now, 1)
    return replace(template, timeouts=replace(template.timeouts, total_ns=min(left_ns, own_ns or left_ns)))


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
    if parent is None or _job(turn.state, parent.key, "tasks") is not None:
        return
    plan = _job(turn.state, parent.key, "plan")
    if plan is None or plan.number != event.plan:
        return  # the answer to an earlier binding, which was revoked since
    job_id = JobId(f"{base(parent.key)}/tasks")
    failure = event.failure
    if event.template is not None and failure is None:
        spec = JobSpec(template=_within_deadline(turn, parent, event.template), name=_name(parent))
        try:
            check_spec(spec)
            check_plan(event.payloads)
        except AntFarmError as error:
            failure = Failure(
                failure_class=FailureClass.PERMANENT, kind="plan", message=f"the plan cannot be carried out: {error}"
            )
        else:
            jobs.make(turn, job_id, spec, event.payloads, close=True)
            return
    failure = failure or Failure(failure_class=FailureClass.PERMANENT, kind="plan", message="the plan has no template")
    turn.effect(FailParent(token=parent.token, failure=failure, after=turn.state.seq))


def _report(turn: Turn, parent: Parent, last: Job) -> None:
    """The parent's end is the end of its last job's one task. After a restart it is durable already: where the disk is full then, the first Hello says it all the same."""
    seq, ends = last.outcome_seqs[0], [ParentEnd(parent.token, 0)]
    took_ns = turn.now - parent.bound_ns
    turn.effect(ReportParents(seq=seq, ends=ends, after=max(seq, parent.seq), took_ns=took_ns))


def _bound(turn: Turn, tokens: Iterable[HeldToken], *, older: bool) -> tuple[list[Parent], list[Parent]]:
    """Parents bound under these tokens, or older ones: those with jobs of their own, and those that are relayed."""
    found: dict[tuple[str, int], Parent] = {}
    for job_id, index, epoch, attempt in tokens:
        parent = turn.state.parents.get((job_id, index))
        if parent is not None:
            bound = (parent.epoch, parent.attempt)
            if bound == (epoch, attempt) or (older and bound < (epoch, attempt)):
                found[parent.key] = parent
    return [one for one in found.values() if not one.job], [one for one in found.values() if one.job]


def acked(turn: Turn, event: events.ParentsAcked) -> None:
    """Up-stream has recorded these ends: nothing of the parents needs to be kept, but people may still want to look."""
    own, relayed = _bound(turn, event.tokens, older=False)
    for parent in own:
        turn.record(records.ParentDone(job_id=parent.job_id, index=parent.index))
        for stage in reversed(STAGES):
            job = _job(turn.state, parent.key, stage)
            if job is not None:
                jobs.cancel_job(turn, job, "the task above has ended without it")
                turn.state.of_done_parents[job.number] = None
    relay.take_back(turn, relayed, "its end is recorded up-stream")
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


def revoked(turn: Turn, event: events.ParentsRevoked) -> None:
    """Up-stream took tasks away: everything made for them is cancelled and forgotten."""
    own, relayed = _bound(turn, event.tokens, older=True)
    _forget(turn, [*own, *relayed], event.cause or "revoked by the up-stream orchestrator")


def drained(turn: Turn, event: events.ParentsDrained) -> None:
    """Up-stream drains this orchestrator: what has not begun goes back to it, and when the time is over the rest too."""
    for begun in (False, True) if event.over else (False,):
        going = [
            parent
            for parent in turn.state.parents.values()
            if not _has_ended(turn, parent) and _has_begun(turn, parent) == begun
        ]
        if going:
            tokens, used = [parent.token for parent in going], _app_failures(turn, going)
            _forget(turn, going, event.cause)
            after = turn.state.seq
            turn.effect(ReleaseParents(tokens=tokens, never_started=not begun, after=after, app_failures=used))


def _app_failures(turn: Turn, parents: Iterable[Parent]) -> dict[HeldToken, int]:
    """How many retries parents that are given back have used here, of those that have used some: up-stream has so many fewer left for them (ADR 24).

    What was used up-stream before is not among them. An expanded parent has used none, whatever failed in its stages: wherever it goes nothing of
    them is gone on with, and plan, children and summary begin anew, each with a budget of its own.
    """
    notes = ((parent.token, turn.state.jobs[parent.job].notes.get(parent.local)) for parent in parents if parent.job)
    return {token: note.app_failures for token, note in notes if note is not None and note.app_failures}


def _has_ended(turn: Turn, parent: Parent) -> bool:
    """True when its end is recorded here, and told up-stream."""
    if parent.job:
        return turn.state.jobs[parent.job].states[parent.local] >= _TERMINAL
    summary, _, plan = (_job(turn.state, parent.key, stage) for stage in STAGES)
    return (summary is not None and summary.ended) or (plan is not None and plan.ended and plan.failed_count > 0)


def _has_begun(turn: Turn, parent: Parent) -> bool:
    """False when it is certain that nothing of it was given to a worker."""
    if parent.job:
        return _was_given_out(turn, turn.state.jobs[parent.job], parent.local)
    summary, tasks, plan = (_job(turn.state, parent.key, stage) for stage in STAGES)
    return summary is not None or tasks is not None or (plan is not None and _was_given_out(turn, plan, 0))


def _was_given_out(turn: Turn, job: Job, index: int) -> bool:
    waits = job.states[index] in (TaskState.WAITING, TaskState.QUEUED)
    if job.template.at_most_once:
        return not waits  # its token is durable before it leaves, and it waits again only if it never started
    return not waits or index in job.notes or turn.state.recovering_until_ns is not None


def _forget(turn: Turn, parents: Sequence[Parent], cause: str) -> None:
    """They are bound no more, and everything made for them is cancelled."""
    relay.take_back(turn, [parent for parent in parents if parent.job], cause)
    _purge_oldest(turn)
    for parent in parents:
        if not parent.job:
            turn.record(records.ParentDone(job_id=parent.job_id, index=parent.index))
            _discard(turn, parent.key, cause)


def _discard(turn: Turn, key: tuple[str, int], cause: str) -> None:
    """The jobs of a parent that is not bound are cancelled and forgotten."""
    for stage in STAGES:
        job = _job(turn.state, key, stage)
        if job is not None:
            jobs.cancel_job(turn, job, cause)
            turn.record(records.JobPurged(job=job.number))
