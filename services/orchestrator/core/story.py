"""What became of a task's attempts, and how it ended: read from records, for the state forgets attempts when their task ends.

Attempts that were handed back, or never arrived, count on nothing and are not recorded; a gap in the numbers shows that there were some.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from antfarm.model import DependencyKind, Failure, FailureClass, Finding, TaskResult, TaskState
from antfarm.text import one_line, show
from services.orchestrator.core import isolation, records
from services.orchestrator.core.records import Record
from services.orchestrator.core.state import Job, dependency_failed
from services.orchestrator.core.turn import CoreConfig
from services.orchestrator.core.waiting import (
    CHAIN_MAX,
    crash_count,
    limit,
    more_time,
    name_of,
    plural,
    span,
    trace,
)

SHOWN_MAX = 20
"""Attempts of a task that are told one by one: the last ones."""


def attempts(job: Job, history: Sequence[Record], last: int, config: CoreConfig) -> list[Finding]:
    """One finding for each recorded attempt that did not end its task, then one for those that are not recorded.

    Args:
        history: records of attempts of this task, in order.
        last: number of the attempt that ended the task or is live; 0 when there is none.
    """
    known = {record.attempt for record in history if isinstance(record, records.AttemptFailed)}
    found = [finding for record in history for finding in _attempt(job, record, config)]
    dropped = len(found) - SHOWN_MAX
    if dropped > 0:
        found = [Finding(what=f"{plural(dropped, 'earlier attempt')} not shown."), *found[dropped:]]
    missing = [number for number in range(1, last) if number not in known] if last <= 10_000 else []
    if missing and not job.template.at_most_once:
        found.append(
            Finding(
                what=f"{plural(len(missing), 'attempt')} besides ({_ranges(missing)}) ended without a record.",
                why="They were handed back (drain, release), never arrived, or gave way to another attempt: that counts on nothing.",
            )
        )
    return found


def _ranges(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:5]))
    return f"number {shown}{', ...' if len(numbers) > 5 else ''}"


def _attempt(job: Job, record: Record, config: CoreConfig) -> Iterator[Finding]:
    match record:
        case records.AttemptFailed():
            yield _failed_attempt(job, record, config)
        case records.AttemptIssued():
            yield Finding(
                what=f"Attempt {record.attempt} was issued to {record.worker_id}, on record before it was sent.",
                why="It runs at most once: no other worker gets it unless this one confirms that it never started.",
            )
        case records.AttemptReturned():
            yield Finding(what="Its worker confirmed that the attempt never started, so it was given out again.")
        case _:
            pass


def _failed_attempt(job: Job, record: records.AttemptFailed, config: CoreConfig) -> Finding:
    failure = record.failure
    where = record.worker_id or "its worker"
    how = f"was lost with {where}" if record.lost else f"failed on {where}"
    match failure.failure_class:
        case FailureClass.CRASH:
            count = crash_count(config, record.crashes)
        case FailureClass.INFRA:
            tolerated = f"{config.infra_failures_max} losses and infrastructure failures that are tolerated"
            count = f"number {record.infra_failures} of the {tolerated}"
        case _:
            count = f"failure {record.app_failures} of {plural(job.template.retry.max_attempts, 'attempt')}"
    pause = f"again after {span(record.pause_ns)}" if record.pause_ns else "queued again at once"
    late = (
        "; a success that came late would have counted" if record.lost and not job.template.fence_late_results else ""
    )
    return Finding(what=f"Attempt {record.attempt} {how}: {words(failure)}", why=f"Counted as {count}; {pause}{late}.")


def words(failure: Failure) -> str:
    """A failure as one line."""
    by_itself = failure.failure_class in (FailureClass.CANCELLED, FailureClass.EXPIRED, FailureClass.DEPENDENCY)
    text = failure.message if by_itself or not failure.kind else f"{failure.kind}: {failure.message}"
    return one_line(text) or "no reason was given"


def end(job: Job, result: TaskResult, config: CoreConfig) -> Finding:
    """How the task ended, and what would help."""
    took = show(result.run_us / 1e6)
    where = f"attempt {result.attempt}{f' on {result.worker_id}' if result.worker_id else ''}"
    failure = result.failure
    if result.state is TaskState.SUCCEEDED or failure is None:
        return Finding(what=f"It {_verb(result.state)}: {where}, which ran for {took}.")
    why, helps = _cause(job, result.index, result.state, failure, config)
    told = f"{words(failure)}{f' ({where}, after {took})' if result.attempt else ''}"
    return Finding(what=f"It {_verb(result.state)}: {told}", why=why, help=helps)


def _verb(state: TaskState) -> str:
    match state:
        case TaskState.SUCCEEDED:
            return "succeeded"
        case TaskState.CANCELLED:
            return "was cancelled"
        case TaskState.EXPIRED:
            return "expired"
        case TaskState.DEAD_LETTER:
            return "was given up (DEAD_LETTER)"
        case _:
            return "failed"


def _cause(job: Job, index: int, state: TaskState, failure: Failure, config: CoreConfig) -> tuple[str, str]:
    """(why that ended the task, what would help)."""
    task, anew = name_of(job, index), retry(job)
    again = f"then {anew}"
    attempts_max = job.template.retry.max_attempts
    longer, look = more_time(job, failure), trace(task, failure)
    if job.template.at_most_once and failure.failure_class in (
        FailureClass.CRASH,
        FailureClass.INFRA,
        FailureClass.APP,
    ):
        helps = f"Look at what it has done already, {again}."
        return "It runs at most once, so it is not tried again.", f"{helps} {longer}." if longer else helps
    match failure.failure_class:
        case FailureClass.PERMANENT:
            return "This kind of failure is permanent: no retry can help.", f"Mend the task or its input, {again}."
        case FailureClass.APP:
            why = f"All {plural(attempts_max, 'attempt')} are used."
            if attempts_max == 1:
                why = "Its type has one attempt, the default: an exception or a timeout ends the task."
            cures = [look] if look else []
            if longer:  # another try in the same time is of little use, and a retried job has the limits of the first
                cures.append(longer)
            elif attempts_max == 1:
                cures.append(f"If another try can help, {anew}, or give the type retries= and submit it anew")
            else:
                cures = [f"{look}; mend the cause, {again}" if look else f"Mend the cause, {again}"]
            return why, ". ".join(cures) + "."
        case FailureClass.CRASH:
            crashes = isolation.poison_crashes(failure) or f"at least {config.crashes_max}"
            return (
                f"What runs it died {crashes} times with it, the last time with nothing beside it.",
                f"Look at its memory and native code (`antfarm task logs {task}`), {again}.",
            )
        case FailureClass.INFRA:
            return (
                f"More than {config.infra_failures_max} of its attempts were lost with a worker, or failed for the infrastructure (Storage, say).",
                f"Look at the workers and at Storage (`antfarm worker list --all`), {again}.",
            )
        case FailureClass.DEPENDENCY:
            return _needed(job, index)
        case FailureClass.EXPIRED:
            return _ran_out(job, task, failure)
        case FailureClass.CANCELLED:
            if job.spec.dependencies:
                return "", "Submit it anew to run it after all."
            return "", f"`antfarm job retry {job.job_id}` runs what was cancelled, as a new job."
        case _:
            return "", ""


def _needed(job: Job, index: int) -> tuple[str, str]:
    """(why a dependency ended a task, what would help)."""
    if all(not dependency_failed(other, kind, index + offset) for other, kind, offset in job.dependencies):
        there = {other.job_id for other, _, _ in job.dependencies}
        purged = [wanted.job_id for wanted in job.spec.dependencies if wanted.job_id not in there]
        if purged:
            return f"Job {purged[0]} was purged, and with it what is known of its tasks.", "Submit both anew."
    for other, kind, offset in job.dependencies:
        place = index + offset
        if dependency_failed(other, kind, place) and not 0 <= place < other.task_count:
            has = plural(other.task_count, "task")
            return (
                f"It needs task {place} of job {other.job_id}, which has {has}.",
                "Submit no more tasks than that job has.",
            )
    return "A task whose result it needs did not succeed.", "Mend that one, and submit both anew."


def is_first(job: Job, index: int) -> bool:
    """True when a task that did not succeed failed by itself, not by another one."""
    return job.states[index] != TaskState.FAILED or job.winners[index] > 0


def retry(job: Job) -> str:
    """How to run its failed tasks again as they were: a job that takes inputs from others cannot be retried."""
    return "submit it anew" if job.spec.dependencies else f"`antfarm job retry {job.job_id}`"


def _ran_out(job: Job, task: str, failure: Failure) -> tuple[str, str]:
    """(why a task expired, what would help): of its queue timeout, or of its total one."""
    timeouts = job.template.timeouts
    if timeouts.queue_ns is not None and (timeouts.total_ns is None or "queue" in failure.message):
        needs = " or for what it depends on" if job.spec.dependencies else ""
        return (
            f"Its queue timeout is {limit(timeouts.queue_ns)}, and it waited for a worker{needs} all that time.",
            f"Start more workers, then {retry(job)}; or give it a longer queue=, and submit it anew.",
        )
    why = "Its time is over."
    if timeouts.total_ns is not None:
        why = f"Its total timeout is {limit(timeouts.total_ns)}, from its submission on, all attempts and waiting included."
    if job.template.at_most_once or "; attempt " in failure.message:
        return why, "Submit it anew with a longer total=."
    return (
        f"{why} Whether it waited or ran at last is not on record.",
        f"Submit it anew with a longer total=. If it waited, more workers help; if it ran, `antfarm task logs {task}` may show how far it was.",
    )


def culprit(job: Job, index: int) -> tuple[Job, int] | None:
    """The task whose end made this one fail, through chains of dependencies: None when it failed by itself, or that is purged.

    A task that failed without an attempt failed by a dependency.
    """
    seen: set[int] = set()
    found = None
    while job.number not in seen and len(seen) < CHAIN_MAX:
        seen.add(job.number)
        if job.states[index] != TaskState.FAILED or job.winners[index]:
            break
        for other, kind, offset in job.dependencies:
            place = index + offset
            if kind is DependencyKind.EACH and dependency_failed(other, kind, place) and 0 <= place < other.task_count:
                found = job, index = other, place
                break
    return found
