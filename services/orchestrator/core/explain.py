"""How a task or a job stands, in words: findings put together from the state (`waiting`) and from records (`story`).

Pure and read-only. What is said of the state is true of it as it is; whoever shows it waits until that is durable.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from antfarm.model import Explanation, Finding, JobState, TaskResult, TaskState
from antfarm.text import one_line
from services.orchestrator.core.state import Job
from services.orchestrator.core.story import retry, words
from services.orchestrator.core.waiting import Scene, blocker, name_of, plural, reasons, span

TEXT_BYTES_MAX = 64 * 1024
"""Of a whole explanation."""
CAUSES_MAX = 5
"""Causes of failure that are told of a job, most frequent first."""
_LEFT_OUT = Finding(what="More was left out: the explanation is at its limit of 64 KiB.")
_OPEN = (TaskState.ACTIVE, TaskState.WAITING, TaskState.QUEUED)

NO_ROOM = Finding(
    what="The journal's disk is full: the farm waits.",
    why="Nothing is acknowledged and nothing expires until there is room; only what was durable before is told here.",
    help="Make room on the orchestrator's disk: everything goes on by itself.",
)


def bounded(findings: Iterable[Finding]) -> Explanation:
    """The findings as far as they fit."""
    kept: list[Finding] = []
    room = TEXT_BYTES_MAX - _size(_LEFT_OUT)
    for finding in findings:
        room -= _size(finding)
        if room < 0:
            kept.append(_LEFT_OUT)
            break
        kept.append(finding)
    return Explanation(findings=tuple(kept))


def _size(finding: Finding) -> int:
    """At least its bytes in the text."""
    return sum(len(part.encode()) for part in (finding.what, finding.why, finding.help)) + 32


def task_head(scene: Scene, job: Job, index: int, state: TaskState) -> Finding:
    """What the task is, and where."""
    age = span(scene.wall_ns - job.batch(index).wall_ns)
    return Finding(
        what=f"Task {name_of(job, index)} ({job.template.type}) is {state.name}; it was submitted {age} ago.",
        why=f"Its job retries {job.retry_of}." if job.retry_of else "",
    )


def task(scene: Scene, job: Job, index: int) -> list[Finding]:
    """Why a task that has not ended is where it is, down to the task that everything waits for."""
    found = reasons(scene, job, index)
    root, place = blocker(job, index)
    if (root, place) != (job, index):
        state = TaskState(root.states[place]).name
        found.append(Finding(what=f"At the end of what it waits for: task {name_of(root, place)} is {state}."))
        found += reasons(scene, root, place)
    return found


def job_head(scene: Scene, job: Job, state: JobState) -> Finding:
    """What the job is, and how far."""
    failed = f", {job.failed_count:,} of them without success" if job.failed_count else ""
    name = f" {one_line(job.spec.name, 100)!r}" if job.spec.name and job.spec.name != job.job_id else ""
    return Finding(
        what=f"Job {job.job_id}{name} ({job.template.type}) is {state.name}: "
        f"{job.ended_count:,} of {plural(job.task_count, 'task')} ended{failed}.",
        why=f"It retries {job.retry_of}." if job.retry_of else "",
    )


def job(scene: Scene, job: Job) -> list[Finding]:
    """Why a job has not ended, or how it came to its end, without the causes of its failures."""
    return [*_course(scene, job), *_open_tasks(scene, job)]


def _course(scene: Scene, job: Job) -> Iterator[Finding]:
    if job.cancelled:
        limit = job.spec.max_failures
        yield Finding(
            what=f"It was cancelled: {one_line(job.cause) or 'no cause was given'}.",
            help=f"To run what did not succeed: {retry(job)}"
            + (f"; max_failures is {limit:,}." if limit is not None else "."),
        )
    elif not job.closed:
        yield Finding(
            what="It is open: more tasks may come, and it does not end before it is closed.",
            help=""
            if job.ended_count < job.task_count
            else "Append tasks, or close it (CloseJob; a map closes its job by itself).",
        )
    if job.retried:
        yield Finding(
            what=f"{plural(job.retried, 'attempt')} of its tasks failed or were lost, and the tasks went on.",
            help=f"antfarm task list --job {job.job_id} shows which; antfarm task explain has the story of each.",
        )
    if scene.state.disk_low and not job.closed:
        yield Finding(
            what="The orchestrator's disk is nearly full: no new tasks are taken.",
            help="Make room on it, and submit again.",
        )


def _open_tasks(scene: Scene, job: Job) -> Iterator[Finding]:
    """One task of each kind stands for all of them."""
    pausing = [
        index
        for index, note in job.notes.items()
        if note.wait_until_ns is not None
        and job.states[index] == TaskState.WAITING  # else it is a lost holder that is waited for
    ]
    for state in _OPEN:
        count = job.counts[state]
        if not count:
            continue
        index = job.states.find(int(state))
        yield Finding(
            what=f"{plural(count, 'task')} {'is' if count == 1 else 'are'} {state.name}; the first is {name_of(job, index)}:"
        )
        yield from task(scene, job, index)
        if state is TaskState.WAITING and 0 < len(pausing) < count:
            failed = f"{len(pausing):,} of the waiting ones failed and {'waits' if len(pausing) == 1 else 'wait'} for a retry"
            yield Finding(what=f"{failed}, e.g. {name_of(job, pausing[0])}.")


def failed_indices(job: Job, most: int) -> list[int]:
    """Some tasks of a job that ended without success by themselves, of each state: at most that many."""
    found: list[int] = []
    for state in (TaskState.FAILED, TaskState.DEAD_LETTER, TaskState.EXPIRED, TaskState.CANCELLED):
        place = job.states.find(int(state))
        while place >= 0 and len(found) < most:
            found.append(place)
            place = job.states.find(int(state), place + 1)
    return found


def causes(job: Job, outcomes: Iterable[TaskResult]) -> Iterator[Finding]:
    """Failures of a job's tasks, those of the same cause together, most frequent first."""
    groups: dict[tuple[str, str], list[int]] = {}
    looked_at = 0
    for outcome in outcomes:
        looked_at += 1
        text = words(outcome.failure) if outcome.failure is not None else ""
        groups.setdefault((outcome.state.name, text), []).append(outcome.index)
    ranked = sorted(groups.items(), key=lambda group: (-len(group[1]), group[1][0]))
    for (state, text), indices in ranked[:CAUSES_MAX]:
        yield Finding(
            what=f"{plural(len(indices), 'task')} {state}: {text}",
            help=f"antfarm task explain {name_of(job, indices[0])}",
        )
    if len(ranked) > CAUSES_MAX or looked_at < job.failed_count:
        yield Finding(
            what=f"There are more: {looked_at:,} of {job.failed_count:,} were looked at, with {plural(len(ranked), 'cause')}.",
            help=f"antfarm task list --job {job.job_id} --state FAILED,DEAD_LETTER,EXPIRED,CANCELLED",
        )
