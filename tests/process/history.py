"""The history of a run, and what is wrong with it: what clients submitted and had acknowledged, what handlers executed, what is recorded.

A task that was executed twice is no fault by itself: the farm promises at least one execution and exactly one record. It is one when nothing
excuses it: the worker of the older attempt had not died, been cut off or stood still between the two executions. An orchestrator's death excuses
no repeat but one: assignments leave before the commit of a submission that nobody has been told of yet, and such a submission dies with the
orchestrator (it is known by the later epoch; one that was durable when its acknowledgement was lost cannot be told from it). One token is never
executed twice. All times are of one machine's wall clock.
"""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

Task = tuple[str, int]
"""(job id, index)"""
NOBODY = 0
"""The agent of a fault that was done to no worker."""


@dataclass(slots=True)
class Execution:
    """One begun execution. `agent` is the worker process whose child it ran in; `ended_at` is None when it was cut short."""

    job_id: str
    index: int
    token: tuple[int, int]
    pid: int
    agent: int
    began_at: float
    ended_at: float | None = None

    @property
    def task(self) -> Task:
        return self.job_id, self.index


@dataclass(frozen=True, slots=True)
class Fault:
    """Something was done to a program. `agent`: the worker process whose tasks may be given to others because of that.

    `until`: when that worker was seen to be its old self again; a killed process never is.
    """

    name: str
    at: float
    agent: int = NOBODY
    until: float = math.inf


@dataclass(frozen=True, slots=True)
class Outcome:
    """One recorded outcome as a client was told it."""

    index: int
    succeeded: bool
    attempt: int
    result: bytes
    state: int = 0


@dataclass(slots=True)
class History:
    """All that was seen. Clients and faults are noted as they happen; executions come from the file that the handlers write."""

    submitted: dict[str, int] = field(default_factory=dict)
    """Tasks per job that somebody asked for, acknowledged or not."""
    acknowledged: dict[str, float] = field(default_factory=dict)
    """When each job's submission was acknowledged."""
    recorded: dict[str, list[Outcome]] = field(default_factory=lambda: defaultdict(list))
    """What StreamResults says from the beginning of each job, when all is over."""
    told: list[tuple[str, Outcome]] = field(default_factory=list)
    """What clients were told on the way; each must be what is recorded in the end."""
    cancelled: set[str] = field(default_factory=set)
    """Jobs whose cancel was asked for: their tasks may end without success."""
    expanded: set[str] = field(default_factory=set)
    """Jobs whose tasks become jobs of the level below: nobody executes them as such."""
    relayed: set[str] = field(default_factory=set)
    """Jobs whose tasks are executed below as they are, under tokens of the orchestrator there."""
    faults: list[Fault] = field(default_factory=list)
    executions: list[Execution] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the checker found. The lists name tasks, so that a failure shows where to look."""

    tasks: int
    faults: int
    executions: int
    lost: list[Task]
    double_recorded: list[Task]
    wrong: list[str]
    repeated: int
    unexcused: list[Task]
    premature: int
    """Repeats of what had begun before its submission was acknowledged, over an orchestrator's death."""
    unexpected: list[Task]
    recovered: int
    slowest_detection_s: float | None

    @property
    def clean(self) -> bool:
        """Nothing lost, recorded twice or wrongly, unexpected, or repeated without excuse."""
        return not (self.lost or self.double_recorded or self.wrong or self.unexcused or self.unexpected)

    def __str__(self) -> str:
        slowest = "none" if self.slowest_detection_s is None else f"{self.slowest_detection_s:.2f} s"
        line = (
            f"{self.faults} faults, {self.tasks} tasks, {self.executions} executions: {len(self.lost)} lost, "
            f"{len(self.double_recorded)} double-recorded, {len(self.wrong)} recorded wrongly, {self.repeated} executed more than once "
            f"({len(self.unexcused)} without excuse, {self.premature} begun before their submission was acknowledged), {len(self.unexpected)} unexpected, {self.recovered} recovered, "
            f"slowest detection {slowest}"
        )
        for name in ("lost", "double_recorded", "wrong", "unexcused", "unexpected"):
            found = getattr(self, name)
            if found:
                line += f"\n  {name}: {found[:10]}{' ...' if len(found) > 10 else ''}"
        return line


def square(task: Task) -> bytes:
    """The right result of the tasks of the process tests."""
    return b"%d" % task[1] ** 2


def check(history: History, expected: Callable[[Task], bytes] = square) -> Verdict:
    """Judge a whole run, after its end. `expected`: the right result of each task."""
    by_task: dict[Task, list[Execution]] = defaultdict(list)
    for execution in sorted(history.executions, key=lambda e: e.began_at):
        by_task[execution.task].append(execution)
    lost: list[Task] = []
    double: list[Task] = []
    wrong: list[str] = []
    final: dict[Task, Outcome] = {}
    for job_id in sorted(history.acknowledged):
        outcomes = history.recorded.get(job_id, [])
        times = Counter(outcome.index for outcome in outcomes)
        final.update({(job_id, outcome.index): outcome for outcome in outcomes})
        for index in range(history.submitted[job_id]):
            if times[index] == 0:
                lost.append((job_id, index))
            elif times[index] > 1:
                double.append((job_id, index))
    for (job_id, index), outcome in final.items():
        complaint = _complaint(history, by_task, job_id, outcome, expected)
        if complaint:
            wrong.append(f"{job_id}/{index}: {complaint}")
    for job_id, outcome in history.told:
        if final.get((job_id, outcome.index)) != outcome:
            wrong.append(f"{job_id}/{outcome.index}: a client was told otherwise")
    submitted = history.submitted
    known = {(job_id, outcome.index) for job_id, outcomes in history.recorded.items() for outcome in outcomes}
    unexpected = sorted(task for task in known | by_task.keys() if not 0 <= task[1] < submitted.get(task[0], 0))
    unexcused, premature, interrupted, slowest = _repeats(history, by_task)
    return Verdict(
        tasks=sum(submitted[job_id] for job_id in history.acknowledged),
        faults=len(history.faults),
        executions=len(history.executions),
        lost=lost,
        double_recorded=double,
        wrong=wrong,
        repeated=sum(len(executions) > 1 for executions in by_task.values()),
        unexcused=unexcused,
        premature=premature,
        unexpected=unexpected,
        recovered=sum(task in final and final[task].succeeded for task in interrupted),
        slowest_detection_s=slowest,
    )


def _complaint(
    history: History,
    by_task: Mapping[Task, list[Execution]],
    job_id: str,
    outcome: Outcome,
    expected: Callable[[Task], bytes],
) -> str:
    """What is wrong with a recorded outcome, "" when nothing is."""
    if not outcome.succeeded:
        return "" if job_id in history.cancelled else f"it ended in state {outcome.state}"
    task = job_id, outcome.index
    right = expected(task)
    if outcome.result != right:
        return f"its result is {outcome.result[:40]!r}, not {right[:40]!r}"
    if task[0] in history.expanded:
        return ""
    attempts = [e.token[1] for e in by_task.get(task, ()) if e.ended_at is not None]
    if outcome.attempt not in attempts and not (attempts and task[0] in history.relayed):
        return f"attempt {outcome.attempt}, which is said to have won, was not executed to its end"
    return ""


def _repeats(
    history: History, by_task: Mapping[Task, list[Execution]]
) -> tuple[list[Task], int, list[Task], float | None]:
    """Tasks repeated without excuse, how many repeats were premature, tasks that a fault interrupted, longest time from a fault to the next execution."""
    of_agent: dict[int, list[Fault]] = defaultdict(list)
    for fault in history.faults:
        of_agent[fault.agent].append(fault)
    unexcused: list[Task] = []
    interrupted: list[Task] = []
    premature = 0
    slowest: float | None = None
    for task, executions in by_task.items():
        acknowledged_at = history.acknowledged.get(task[0], -math.inf)
        relayed = task[0] in history.relayed
        for older, newer in pairwise(executions if relayed else sorted(executions, key=lambda e: e.token)):
            first, last = sorted((older.began_at, newer.began_at))
            excuses = [f for f in of_agent.get(older.agent, ()) if f.at <= last and f.until >= first]
            if relayed and not excuses and older.began_at < acknowledged_at:
                premature += 1  # an orchestrator above died; tokens of several do not tell
            elif older.token == newer.token:
                unexcused.append(task)
            elif excuses:
                late_s = newer.began_at - max(fault.at for fault in excuses)
                slowest = late_s if slowest is None else max(slowest, late_s)
            elif older.began_at < acknowledged_at and older.token[0] < newer.token[0]:
                premature += 1
            else:
                unexcused.append(task)
        if any(e.ended_at is None and e.agent in of_agent for e in executions):
            interrupted.append(task)
    return unexcused, premature, interrupted, slowest


# ---- the file that handlers write ---------------------------------------------------------------------------------------


def note_begin(path: str, job_id: str, index: int, epoch: int, attempt: int, at: float) -> None:
    """One line, whole or not at all, however many processes write."""
    _append(path, f"begin {job_id} {index} {epoch} {attempt} {os.getpid()} {os.getppid()} {at!r}\n")


def note_end(path: str, job_id: str, index: int, epoch: int, attempt: int, at: float) -> None:
    """The same at the end."""
    _append(path, f"end {job_id} {index} {epoch} {attempt} {os.getpid()} {os.getppid()} {at!r}\n")


def _append(path: str, line: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def read_executions(path: Path) -> list[Execution]:
    """What the handlers noted, in the order in which they began."""
    executions: list[Execution] = []
    running: dict[tuple[str, ...], Execution] = {}
    text = path.read_text() if path.exists() else ""
    for line in text.splitlines():
        what, job_id, index, epoch, attempt, pid, agent, at = line.split(" ")
        key = job_id, index, epoch, attempt, pid
        if what == "begin":
            token = int(epoch), int(attempt)
            execution = Execution(job_id, int(index), token, int(pid), int(agent), float(at))
            executions.append(execution)
            running[key] = execution
        else:
            running[key].ended_at = float(at)
    return executions
