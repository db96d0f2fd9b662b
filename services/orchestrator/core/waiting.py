"""Why a task that has not ended waits, or what it does: one function per reason, each read from the state alone.

A reason looks at one thing and yields a finding when that is so; it changes nothing and asks no lane for its next job. A new reason is a function
in `REASONS`, in the order in which a reader should hear them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from antfarm.model import SECOND_NS, DependencyKind, Failure, Finding, TaskState
from antfarm.text import one_line, show
from services.orchestrator.core.health import probation_text
from services.orchestrator.core.lanes import Misfit, fits, misfits
from services.orchestrator.core.placement import room
from services.orchestrator.core.state import Attempt, Job, Past, State, TaskNote, Worker, dependency_ready
from services.orchestrator.core.turn import CoreConfig

_QUEUED = int(TaskState.QUEUED)
_WAITING = int(TaskState.WAITING)
_ACTIVE = int(TaskState.ACTIVE)
NAMES_MAX = 3
"""Workers that a finding names; of more it gives the number."""
CHAIN_MAX = 1_000
"""Jobs along which a chain of dependencies is followed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The state and the time at which it is looked at."""

    state: State
    config: CoreConfig
    now: int
    wall_ns: int


Reason = Callable[[Scene, Job, int], Iterator[Finding]]


def name_of(job: Job, index: int) -> str:
    """JOB/INDEX, as the command line takes it."""
    return f"{job.job_id}/{index}"


def span(length_ns: int) -> str:
    """A length of time for people."""
    return show(max(length_ns, 0) // (SECOND_NS // 10) / 10)


def limit(length_ns: int) -> str:
    """A length of time that somebody chose, exactly."""
    return show(length_ns / SECOND_NS)


def plural(count: int, noun: str, many: str = "") -> str:
    """A number of things."""
    return f"{count:,} {noun if count == 1 else many or f'{noun}s'}"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMES_MAX
    return ", ".join(names[:NAMES_MAX]) + (f" and {more:,} more" if more > 0 else "")


# ---- the task is QUEUED ----------------------------------------------------------------------------------------------


def _paused(scene: Scene, job: Job, index: int) -> Iterator[Finding]:
    if job.paused:
        yield Finding(
            what=f"Job {job.job_id} is paused.",
            why="No task of a paused job is given out; those that run go on.",
            help=f"antfarm job resume {job.job_id}",
        )


def _restarted(scene: Scene, job: Job, index: int) -> Iterator[Finding]:
    state, note = scene.state, job.notes.get(index)
    if state.recovering_until_ns is None or job.states[index] != _QUEUED:
        return
    if job.batch(index).epoch == state.epoch or (note is not None and note.epoch == state.epoch):
        return  # nobody can hold it from before the restart
    away = sorted(state.awaited)
    yield Finding(
        what=f"The orchestrator was started again and waits for {plural(len(away), 'worker')} of before: {_listed(away)}.",
        why="One of them may still run the task. So that nothing is repeated, it is given out when all are back, "
        f"or in {span(state.recovering_until_ns - scene.now)}.",
        help="Start these workers again if they are down; otherwise wait.",
    )


def _known(state: State) -> list[Worker]:
    """Workers that are there, or fell silent too recently to be given up."""
    return [worker for worker in state.workers.values() if not (worker.gone or worker.lost)]


def _fit(scene: Scene, job: Job) -> list[Worker]:
    return [worker for worker in _known(scene.state) if fits(worker, job.lane)]


def _no_worker(scene: Scene, job: Job, index: int) -> Iterator[Finding]:
    if job.states[index] == _QUEUED and not _known(scene.state):
        workers = sorted(scene.state.workers.values(), key=lambda worker: worker.worker_id)
        lost = [worker.worker_id for worker in workers if worker.lost]
        left = [worker.worker_id for worker in workers if worker.gone and not worker.lost]
        yield Finding(
            what="No worker is attached.",
            why=" ".join(f"{how}: {_listed(names)}." for how, names in (("Lost", lost), ("Left", left)) if names),
            help="Start one: python -m services.worker --connect HOST:PORT --app MODULE_OR_FILE",
        )


def _no_fit(scene: Scene, job: Job, index: int) -> Iterator[Finding]:
    if job.states[index] != _QUEUED or not _known(scene.state) or _fit(scene, job):
        return
    lacking = sorted(
        ((worker.worker_id, list(misfits(worker, job.template))) for worker in _known(scene.state)),
        key=lambda entry: (len(entry[1]), entry[0]),
    )
    nearest = lacking[0][1]
    yield Finding(
        what=f"None of the {plural(len(lacking), 'worker')} can run it."
        if len(lacking) > 1
        else f"The only worker, {lacking[0][0]}, cannot run it.",
        why=" ".join(
            f"{worker_id} {' and '.join(map(_lack, lacks[:NAMES_MAX]))}." for worker_id, lacks in lacking[:NAMES_MAX]
        ),
        help=f"Start a worker {' '.join(map(_flag, nearest[:NAMES_MAX]))}, or submit the job with other needs.",
    )


def _value(value: str | float) -> str:
    return one_line(value, 256) if isinstance(value, str) else f"{value:g}"


def _lack(misfit: Misfit) -> str:
    wanted, name = _value(misfit.wanted), _value(misfit.name)
    if misfit.need == "type":
        return f"does not offer task type {wanted}"
    if misfit.offered is None:
        return f"has no {misfit.need} {name}, and {wanted} is asked for"
    return f"has {misfit.need} {name}={_value(misfit.offered)}, and {wanted} is asked for"


def _flag(misfit: Misfit) -> str:
    if misfit.need == "type":
        return "with --app MODULE_OR_FILE that has the task type"
    if misfit.need == "resource" and misfit.name == "cpu":
        return f"with --slots {_value(misfit.wanted)}"
    return f"with --{misfit.need} {_value(misfit.name)}={_value(misfit.wanted)}"


def _type_paused(scene: Scene, job: Job, index: int) -> Iterator[Finding]:
    probation = scene.state.paused_types.get(job.template.type)
    if job.states[index] == _QUEUED and probation is not None:
        yield Finding(
            what=f"Tasks of type {job.template.type} are paused: what fails is the infrastructure, not one worker.",
            why=f"{one_line(probation_text(probation, scene.now))}.",
            help=f"Mend what the last failure names; the pause ends with the first success, or by antfarm job resume {job.job_id}.",
        )


def _alone(scene: Scene, job: Job, index: int) -> Iterator[Finding]:
    alone, note = scene.state.alone.get((job.number, index)), job.notes.get(index)
    if alone is None or note is None:
        return
    worker, others = alone.worker, ""
    if worker is None:
        where = "when a worker is kept for it"
        kept = sorted(one.worker_id for one in scene.state.workers.values() if one.alone_for is not None)
        others = f" {_listed(kept)} {'is' if len(kept) == 1 else 'are'} kept for others before it." if kept else ""
    elif alone.running:
        where = f"on {worker.worker_id} now"
    else:
        where = f"on {worker.worker_id} as soon as nothing else runs there"
        busy = len(worker.live) + len(worker.stopping)
        others = f" {plural(busy, 'task')} there {'ends' if busy == 1 else 'end'} first." if busy else ""
    if note.crashes:
        why = f"{crash_count(scene.config, note.crashes).capitalize()}. Alone it harms no other task, and shows whose fault it is."
        cure = f"Wait; look at its memory and native code (antfarm task logs {name_of(job, index)})."
    else:
        why = "It may have brought them down: if its worker dies again while nothing else runs there, that is a crash of the task."
        cure = "Wait."
    yield Finding(
        what=f"It {' and '.join(_suspicions(note))}; it is tried alone, {where}.", why=f"{why}{others}", help=cure
    )


def _suspicions(note: TaskNote) -> Iterator[str]:
    """What a task is suspected for, said of it."""
    if note.crashes:
        yield f"crashed {_times(note.crashes)}"
    if note.suspected > note.crashes:
        yield f"was {_times(note.suspected - note.crashes)} on a worker or process that died"


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count:,} times")


def suspicion(note: TaskNote | None) -> str:
    """Why a task runs alone, in short, said of it."""
    if note is not None and note.crashes and note.crashes == note.suspected:
        return f"crashed {_times(note.crashes)}"
    return "is suspected of bringing workers down"


def _none_takes_work(scene: Scene, job: Job, index: int) -> Iterator[Finding]:
    able, alone = _fit(scene, job), scene.state.alone.get((job.number, index))
    if job.states[index] != _QUEUED or not able or any(_takes_work(worker) for worker in able):
        return
    if alone is not None and alone.worker is not None:  # which takes nothing else, for its sake
        return
    draining = sorted(worker.worker_id for worker in able if worker.draining)
    going = sorted(worker.worker_id for worker in able if is_leaving(worker))
    if draining:
        cure = f"antfarm worker undrain {draining[0]}"
    elif going:
        cure = f"Start {going[0]} again when it has left"
    elif any(worker.able for worker in able):  # in quarantine or reserved: that ends by itself
        cure = "Wait"
    else:
        cure = "Look at these workers and their network"
    yield Finding(
        what="No worker that can run it takes work now.",
        why=_all_away(scene, able),
        help=f"{cure}, or start another worker.",
    )


def _takes_work(worker: Worker) -> bool:
    return worker.assignable and worker.window > 0


def is_leaving(worker: Worker) -> bool:
    """True when an attached worker grants no places, as the protocol has it of one that drains, asked to or by itself."""
    return worker.window == 0 and worker.session is not None and not (worker.orchestrator or worker.gone or worker.lost)


def leaving(worker: Worker) -> str:
    """That, said of it: nobody here can tell it from one whose children do not start, or whose reports pile up."""
    if worker.draining:
        return "was drained, and is leaving"
    return "grants no places: it is leaving, cannot load its tasks, or waits until its reports are taken (its log says which)"


def _all_away(scene: Scene, workers: Sequence[Worker]) -> str:
    return " ".join(f"{worker.worker_id} {_away(scene, worker)}." for worker in workers[:NAMES_MAX])


def reservation(state: State, task: tuple[int, int]) -> str:
    """What a worker is reserved for, said of the worker."""
    job, alone = state.jobs.get(task[0]), state.alone.get(task)
    name = name_of(job, task[1]) if job is not None else "a task"
    how = "runs" if alone is not None and alone.running else "becomes empty for"
    return f"{how} {name}, which {suspicion(job.notes.get(task[1]) if job is not None else None)}"


def keeping(state: State, worker: Worker) -> str:
    """What a worker's free places are kept for, said of the worker; empty when for nothing."""
    kept = state.kept_for
    if kept is None or kept.worker is not worker:
        return ""
    return f"keeps its free places for a task of type {one_line(kept.lane.template.type, 128)}, which needs more than ends at once"


def _away(scene: Scene, worker: Worker) -> str:
    """Why a worker that is known gets no work."""
    if worker.draining and is_leaving(worker):
        return leaving(worker)
    if worker.draining:
        return "is being drained"
    if worker.able and worker.quarantine is not None:
        return f"is in quarantine ({one_line(probation_text(worker.quarantine, scene.now))})"
    if worker.able and worker.alone_for is not None:
        return f"{reservation(scene.state, worker.alone_for)}, and takes nothing beside it"
    if worker.able and worker.window == 0:
        return "asks for no work now" if worker.orchestrator else leaving(worker)
    silent_ns = scene.now - worker.heard_ns
    left = span(worker.lease_ns - silent_ns)
    if worker.session is None:
        return f"has lost its connection, and is given up in {left} unless it comes back"
    return f"has been silent for {span(silent_ns)}, and is given up in {left} unless it is heard"


def _at_limit(scene: Scene, job: Job, index: int) -> Iterator[Finding]:
    limit = job.template.limit
    if job.states[index] == _QUEUED and limit is not None and job.lane.limit is not None and job.lane.limit.room <= 0:
        bound, live = min(job.lane.limit.bounds, default=0), job.lane.limit.live
        yield Finding(
            what=f"The concurrency limit {one_line(limit.name, 128)} is reached.",
            why=f"{bound:,} may run at a time under that name, over all jobs, and {live:,} do.",
            help="Wait, or submit with a higher max_active; the smallest of all jobs that name the limit holds.",
        )


def _ready(scene: Scene, job: Job) -> list[Worker]:
    return [worker for worker in _fit(scene, job) if _takes_work(worker)]


def _is_placed(scene: Scene, job: Job, index: int) -> bool:
    """True when the task waits for a place among others; one that is to run alone does not."""
    return job.states[index] == _QUEUED and (job.number, index) not in scene.state.alone


def _free(worker: Worker, job: Job) -> bool:
    """True when it has places for a task of the job; one that needs more than all goes to an empty worker."""
    return worker.window > worker.taken and (worker.taken + job.lane.slots <= worker.window or not worker.live)


def _kept_for(scene: Scene, job: Job, index: int) -> Iterator[Finding]:
    """A worker that is kept for tasks which need much at once: theirs, or those that do not get its free places."""
    if scene.state.kept_for is None or not _is_placed(scene, job, index):
        return
    worker, lane = scene.state.kept_for.worker, scene.state.kept_for.lane
    patience = span(scene.config.room_patience_ns)
    if lane is job.lane:
        yield Finding(
            what=f"{worker.worker_id} is kept for it: it begins there when enough has ended.",
            why=f"For more than {patience} so much had not ended at once anywhere.",
            help="Wait.",
        )
    elif [worker] == [one for one in _ready(scene, job) if _free(one, job)]:
        yield Finding(
            what=f"{worker.worker_id} has places free, which are kept for a task of type {one_line(lane.template.type, 128)}.",
            why=f"That needs more than ends at once there, and has waited for more than {patience}.",
            help="Wait, or start more workers.",
        )


def _resources_taken(scene: Scene, job: Job, index: int) -> Iterator[Finding]:
    if not _is_placed(scene, job, index) or (job.lane.limit is not None and job.lane.limit.room <= 0):
        return
    ready = _ready(scene, job)
    free = [worker for worker in ready if _free(worker, job)]
    if free and not any(room(worker, job.lane) > 0 for worker in free):
        wanted = ", ".join(
            f"{one_line(name, 80)}={amount:g}" for name, amount in sorted(job.template.resources.items())
        )
        yield Finding(
            what="The resources that it needs are taken by other tasks.",
            why=f"It needs {wanted}; {_listed([worker.worker_id for worker in free])} can give that when others end.",
            help="Wait, ask for less, or start more workers.",
        )


def _avoids(scene: Scene, job: Job, index: int) -> Iterator[Finding]:
    note = job.notes.get(index)
    if not _is_placed(scene, job, index) or note is None or not note.failed_on:
        return
    ready = _ready(scene, job)
    shunned = sorted(worker.worker_id for worker in ready if worker.worker_id in note.failed_on and _free(worker, job))
    others = [worker for worker in ready if worker.worker_id not in note.failed_on]
    if shunned and others and not any(_free(worker, job) for worker in others):
        yield Finding(
            what=f"It waits for another worker than {_listed(shunned)}.",
            why="It failed there, and a retry goes elsewhere while another worker can run it.",
            help=f"Wait for {_listed(sorted(worker.worker_id for worker in others))}, or start more workers.",
        )


def _all_taken(scene: Scene, job: Job, index: int) -> Iterator[Finding]:
    ready = _ready(scene, job)
    if not _is_placed(scene, job, index) or not ready or any(_free(worker, job) for worker in ready):
        return
    away = [worker for worker in _fit(scene, job) if not _takes_work(worker)]
    # What depends on others is given out as it becomes ready, and what was out already before what never was: only else the index tells.
    ordered = not job.dependencies and index not in job.notes
    before = job.states.count(_QUEUED, 0, index) if ordered else 0
    rivals = sum(
        other.counts[_QUEUED]
        for other in scene.state.jobs.values()
        if other is not job and other.lane is job.lane and not other.paused
    )
    here = sum(number == job.number for worker in ready for number, _ in worker.live)
    others = sum(len(worker.live) for worker in ready) - here
    held = " and ".join(
        f"{plural(count, 'task')} of {whose}" for count, whose in ((here, "its job"), (others, "other jobs")) if count
    )
    facts = [f"They have {held}." if held else ""]
    if before:
        facts.append(f"{plural(before, 'queued task')} of its job {'is' if before == 1 else 'are'} before it.")
    if rivals:
        facts.append(
            f"{plural(rivals, 'queued task')} of other jobs {'shares' if rivals == 1 else 'share'} the places."
        )
    wide = job.lane.slots > 1
    yield Finding(
        what=(
            f"No worker that can run it has {job.lane.slots:g} places free"
            if wide
            else "All places of the workers that can run it are taken"
        )
        + f": {plural(len(ready), 'worker')} with {plural(sum(worker.window for worker in ready), 'place')}.",
        why=" ".join(filter(None, [*facts, _all_away(scene, away)])),
        help="Wait, start more workers, or submit with a higher priority.",
    )


# ---- the task is WAITING ---------------------------------------------------------------------------------------------


def _backs_off(scene: Scene, job: Job, index: int) -> Iterator[Finding]:
    note = job.notes.get(index)
    if job.states[index] != _WAITING or note is None or note.wait_until_ns is None:
        return
    failure = note.last_failure
    last = f"{failure.kind}: {failure.message}" if failure is not None else ""
    alone = ", alone on its worker" if note.suspected >= scene.config.suspicions_max else ""
    look = trace(name_of(job, index), failure) if failure is not None else ""
    longer = more_time(job, failure) if failure is not None else ""
    yield Finding(
        what=f"It failed and is tried again in {span(note.wait_until_ns - scene.now)}{alone}.",
        why=f"{one_line(last)} ({budget(scene.config, job, note)})",
        help=f"Wait{f'; {look}' if look else ''}.{f' {longer}.' if longer else ''}",
    )


def more_time(job: Job, failure: Failure) -> str:
    """What helps against a run or progress timeout, which its worker words; empty for another failure."""
    timeouts = job.template.timeouts
    if failure.kind != "timeout" or failure.traceback:  # an exception may be called anything
        return ""
    if timeouts.progress_ns is not None and (timeouts.run_ns is None or "progress" in failure.message):
        return (
            f"Call ctx.progress at least every {limit(timeouts.progress_ns)}, or submit it anew with a longer progress="
        )
    if timeouts.run_ns is not None:
        return f"If it needs longer than {limit(timeouts.run_ns)}, submit it anew with a longer run="
    return ""


def stopping(scene: Scene, job: Job, index: int) -> list[Finding]:
    """Attempts of a task that has ended which may run still."""
    return [
        Finding(
            what=f"Attempt {attempt} on {worker.worker_id} was told to stop, and may run still.",
            why="Its end does not count any more.",
        )
        for worker in scene.state.workers.values()
        for job_id, place, _, attempt in worker.stopping
        if (job_id, place) == (job.job_id, index)
    ]


def trace(task: str, failure: Failure) -> str:
    """Where more of a failure is to be read; empty when there is nothing."""
    if failure.traceback:
        return f"`antfarm task show {task}` has the traceback"
    return f"`antfarm task logs {task}` has what it wrote last" if failure.log_tail else ""


def budget(config: CoreConfig, job: Job, note: TaskNote) -> str:
    """How much of each budget a task has used."""
    used = [
        (note.app_failures, f"{note.app_failures} of {plural(job.template.retry.max_attempts, 'attempt')} used"),
        (note.crashes, crash_count(config, note.crashes)),
        (
            note.infra_failures,
            f"{note.infra_failures} of {config.infra_failures_max} tolerated losses and infrastructure failures",
        ),
    ]
    return ", ".join(text for count, text in used if count)


def crash_count(config: CoreConfig, crashes: int) -> str:
    """A task's last crash, which did not end it, against the limit as `isolation.is_proven` judges it."""
    if crashes < config.crashes_max:
        return f"crash {crashes} of {config.crashes_max}"
    return f"crash {crashes}, not the last one: it did not run alone, or another worker could run it"


def unmet(job: Job, index: int) -> Iterator[tuple[Job, DependencyKind, int]]:
    """What a WAITING task waits for: (job, kind, index there)."""
    note = job.notes.get(index)
    if job.states[index] == _WAITING and not (note is not None and note.wait_until_ns is not None):
        for other, kind, offset in job.dependencies:
            if not dependency_ready(other, kind, index + offset):
                yield other, kind, index + offset


def _depends(scene: Scene, job: Job, index: int) -> Iterator[Finding]:
    for other, kind, wanted in unmet(job, index):
        if kind is DependencyKind.ALL:
            ended = f"{other.ended_count:,} of its {plural(other.task_count, 'task')} have ended"
            yield Finding(
                what=f"It waits for the whole of job {other.job_id}.",
                why=f"{ended}{'' if other.closed else ', and it is still open for more'}.",
                help=f"antfarm job explain {other.job_id}",
            )
        elif wanted >= other.task_count:
            yield Finding(
                what=f"It waits for task {other.job_id}/{wanted}, which does not exist yet.",
                why=f"Job {other.job_id} is open and has {plural(other.task_count, 'task')}.",
                help="Append the missing tasks, or close that job: what waits for more than it has then fails.",
            )
        else:
            yield Finding(
                what=f"It waits for task {name_of(other, wanted)}, which is {TaskState(other.states[wanted]).name}.",
                help=f"antfarm task explain {name_of(other, wanted)}",
            )


def blocker(job: Job, index: int) -> tuple[Job, int]:
    """The task at the end of the chain of what a task waits for: itself when it waits for none."""
    seen: set[int] = set()
    while job.number not in seen and len(seen) < CHAIN_MAX:
        seen.add(job.number)
        for other, kind, wanted in unmet(job, index):
            place = first_open(other) if kind is DependencyKind.ALL else wanted
            if place is not None and place < other.task_count:
                job, index = other, place
                break
    return job, index


def first_open(job: Job) -> int | None:
    """The first task of a job that has not ended."""
    found = [place for state in (_WAITING, _QUEUED, _ACTIVE) if (place := job.states.find(state)) >= 0]
    return min(found, default=None)


# ---- the task is ACTIVE ----------------------------------------------------------------------------------------------


def _held(scene: Scene, job: Job, index: int) -> Iterator[Finding]:
    attempt = job.live.get(index)
    if attempt is None:
        return
    worker = attempt.worker
    since = span(scene.now - attempt.assigned_ns)
    if worker.orchestrator:
        yield Finding(
            what=f"Attempt {attempt.attempt} is with {worker.worker_id}, an orchestrator below, since {since}.",
            why="It has begun there." if attempt.started else "Nothing was heard of its start there.",
            help=f"Ask there: antfarm job list -c ITS_ADDRESS shows the jobs up/{name_of(job, index)}/...",
        )
    elif _taken_up(scene, job, attempt):
        known = scene.state.knows_epoch(attempt.epoch)
        before = "the worker fell silent" if known else "the orchestrator was started again"
        yield Finding(
            what=f"{worker.worker_id} came back with attempt {attempt.attempt} {since} ago and goes on with it.",
            why=f"It was given out before {before}: nothing is repeated.",
        )
    elif attempt.started:
        yield Finding(
            what=f"Attempt {attempt.attempt} runs on {worker.worker_id}, given to it {since} ago.",
            why=_progress(attempt),
            help=_slow(job, index),
        )
    else:
        yield Finding(
            what=f"Attempt {attempt.attempt} was given to {worker.worker_id} {since} ago, and nothing was heard of its start.",
            why=f"{worker.worker_id} holds {plural(len(worker.live), 'task')} and runs {worker.slots:,} at a time; short ones are told of when they end.",
        )
    backup = job.backups.get(index)
    if backup is not None:
        yield Finding(
            what=f"Attempt {backup.attempt} is its backup, given to {backup.worker.worker_id} {span(scene.now - backup.assigned_ns)} ago.",
            why="The first attempt takes far longer than others of the job did; the first success counts, and the other one is stopped.",
        )
    benign = (
        "handed back, which counts on nothing" if not job.template.at_most_once else "given up: it runs at most once"
    )
    if worker.drain_limit_ns is not None:
        yield Finding(
            what=f"{worker.worker_id} is being drained: what runs there may go on for {span(worker.drain_limit_ns)} from then on.",
            why=f"What has not ended by then is stopped and {benign}.",
            help=f"antfarm worker undrain {worker.worker_id}",
        )
    elif not worker.able:
        yield Finding(
            what=f"{worker.worker_id} {_away(scene, worker)}.",
            why="Then the task is queued again, and a success that comes late still counts."
            if not job.template.at_most_once
            else "It runs at most once, so nobody else gets it.",
            help="Look at that worker and its network.",
        )
    elif is_leaving(worker):
        yield Finding(
            what=f"{worker.worker_id} {leaving(worker)}.",
            why=f"When it leaves, what has not ended in its time for that is stopped and {benign}.",
        )


def _taken_up(scene: Scene, job: Job, attempt: Attempt) -> bool:
    """True when the attempt is older than what this process, or its worker's present lease, knows of.

    What runs at most once is on record from its issue on: that alone makes it no older.
    """
    note = job.notes.get(attempt.index)
    past = note.past.get((attempt.epoch, attempt.attempt)) if note is not None else None
    return not scene.state.knows_epoch(attempt.epoch) or (past is not None and past[1] is not Past.ISSUED)


def _progress(attempt: Attempt) -> str:
    done = f"{attempt.progress:.0%} done" if attempt.progress is not None else "It has told of no progress"
    text = one_line(attempt.progress_text, 256)
    return f"{done}{': ' if text else '.'}{text}"


def _slow(job: Job, index: int) -> str:
    timeouts = job.template.timeouts
    if timeouts.run_ns is not None:
        return f"Its worker ends it when it runs for more than {limit(timeouts.run_ns)}."
    ends = []
    if timeouts.progress_ns is not None:
        ends.append(f"its worker ends it after {limit(timeouts.progress_ns)} without progress")
    if timeouts.total_ns is not None:
        ends.append(f"it expires {limit(timeouts.total_ns)} after its submission")
    else_ended = f"but {' and '.join(ends)}" if ends else "so nothing else ends it"
    follow = f"antfarm task logs -f {name_of(job, index)}"
    return f"If it hangs: {follow}, or antfarm task cancel {name_of(job, index)}. It has no run timeout, {else_ended}."


def _orphaned(scene: Scene, job: Job, index: int) -> Iterator[Finding]:
    note = job.notes.get(index)
    if job.states[index] != _ACTIVE or index in job.live or note is None or note.wait_until_ns is None:
        return
    holder, _ = note.past.get((note.epoch, note.attempt), ("its worker", None))
    left = span(note.wait_until_ns - scene.now)
    worker = scene.state.workers.get(holder)
    if worker is not None and (worker.gone or worker.session is not None):  # what it has, its hello would have said
        yield Finding(
            what=f"{holder} {'has left' if worker.gone else 'is back'} without it; whether it ran is not known; it is given up in {left}.",
            why="It runs at most once, so nobody else gets it.",
            help=f"Look at what it has done already; antfarm task cancel {name_of(job, index)} ends it at once. "
            "Leave out at_most_once if the task may be repeated.",
        )
        return
    yield Finding(
        what=f"{holder} was given the task and has fallen silent; it is given up in {left}.",
        why="It runs at most once, so nobody else gets it; a success that comes until then counts.",
        help=f"Start {holder} again with its state directory; leave out at_most_once if the task may be repeated.",
    )


# ---- its times -------------------------------------------------------------------------------------------------------


def _expires(scene: Scene, job: Job, index: int) -> Iterator[Finding]:
    timeouts, note = job.template.timeouts, job.notes.get(index)
    passed_ns = (
        scene.now - job.begun_ns[job.batch_number(index)]
    )  # as it is timed: a wall clock that is set ends nothing
    begun = job.states[index] == _ACTIVE or (note is not None and note.last_failure is not None)
    if timeouts.queue_ns is not None and not begun:
        yield Finding(
            what=f"It expires in {span(timeouts.queue_ns - passed_ns)} unless it begins before (queue timeout)."
        )
    if timeouts.total_ns is not None:
        yield Finding(
            what=f"It expires in {span(timeouts.total_ns - passed_ns)} unless it ends before (total timeout)."
        )


REASONS: tuple[Reason, ...] = (
    _paused, _type_paused, _restarted, _alone, _no_worker, _no_fit, _none_takes_work, _at_limit, _kept_for, _resources_taken, _avoids, _all_taken,
    _backs_off, _depends, _held, _orphaned, _expires,
)  # fmt: skip


def reasons(scene: Scene, job: Job, index: int) -> list[Finding]:
    """Why a task that has not ended is where it is."""
    found = [finding for reason in REASONS for finding in reason(scene, job, index)]
    if not found and job.states[index] == _QUEUED:
        found.append(Finding(what="Nothing keeps it: it is about to be given out."))
    return found
