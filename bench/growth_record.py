"""What a growth run measured, as a file and as Markdown: for each point of each axis throughput, round trip, and the CPU of each program."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.peers import record

PREFIX = "growth-"

TASKS, WORKERS, SIMULATED, PAYLOAD, LEVELS = AXES = ("tasks", "workers", "simulated workers", "payload bytes", "levels")
"""What grows: tasks of one job, worker processes, workers without a program, bytes of each task's arguments on the wire, orchestrators one below the other."""

CLIENT, ORCHESTRATOR, BELOW, STORAGE, AGENTS, CHILDREN, HOSTS = PROGRAMS = (
    "client",
    "orchestrator",
    "orchestrators below",
    "storage",
    "workers",
    "their children",
    "simulated workers",
)
"""Whose CPU is told apart. A worker's own process and the child that runs its tasks are two."""


@dataclass(slots=True, kw_only=True)
class Point:
    """One place on one axis, and what was measured there: one value a round."""

    axis: str
    tasks: int
    workers: int
    """Processes of one slot, or simulated ones on the axis of these."""
    payload_bytes: int = 0
    """Of a task's arguments on the wire; 0 where they are a small number."""
    levels: int = 1
    """Orchestrators that a task passes through, as it is."""
    tasks_s: list[float] = field(default_factory=list)
    """Tasks a second, from the first submission to the last result."""
    p50_ms: list[float] = field(default_factory=list)
    """Round trip of a single task on the idle farm."""
    p99_ms: list[float] = field(default_factory=list)
    cpu_us: dict[str, list[float]] = field(default_factory=dict)
    """Program -> microseconds a task, of all its processes."""
    frame_tasks: list[float] = field(default_factory=list)
    """Tasks in a frame of work, on the axis of simulated workers, which count them."""

    @property
    def x(self) -> int:
        """Its place on the axis."""
        return {TASKS: self.tasks, PAYLOAD: self.payload_bytes, LEVELS: self.levels}.get(self.axis, self.workers)

    @property
    def rate(self) -> float:
        """Median tasks a second."""
        return statistics.median(self.tasks_s)

    def cpu(self, program: str) -> float:
        """Median microseconds a task; 0 for a program that was not there."""
        found = self.cpu_us.get(program)
        return statistics.median(found) if found else 0.0


@dataclass(slots=True, kw_only=True)
class Growth:
    """One run."""

    revision: str
    date: str
    machine: str
    cores: int
    rounds: int
    noise_ms: list[float] = field(default_factory=list)
    """A fixed loop before each axis of each round."""
    constants: dict[str, list[float]] = field(default_factory=dict)
    """What `bench.constants` measured, one value a round."""
    points: list[Point] = field(default_factory=list)

    def axis(self, name: str) -> list[Point]:
        """Its points that were measured, in order."""
        return sorted((point for point in self.points if point.axis == name and point.tasks_s), key=lambda p: p.x)

    def constant(self, name: str) -> float:
        """Median of the rounds; 0 when it was not measured."""
        found = self.constants.get(name)
        return statistics.median(found) if found else 0.0

    def save(self) -> Path:
        """Write it to the history, beside the runs of the peers."""
        record.HISTORY.mkdir(exist_ok=True)
        path = record.HISTORY / f"{PREFIX}{self.date.replace(':', '').replace(' ', '-')}-{self.revision}.json"
        path.write_text(self.to_json())
        return path

    def to_json(self) -> str:
        """Itself, as `load` reads it."""
        return json.dumps(asdict(self), indent=1) + "\n"


def begin(rounds: int) -> Growth:
    """A run that begins now, of the checked out revision."""
    head = record.begin(rounds)
    cores = len(os.sched_getaffinity(0))
    return Growth(revision=head.revision, date=head.date, machine=head.machine, cores=cores, rounds=rounds)


def load(path: Path) -> Growth:
    """Read one of the history."""
    content = json.loads(path.read_text())
    return Growth(**{**content, "points": [Point(**point) for point in content["points"]]})


# ---- Markdown ---------------------------------------------------------------------------------------------------------


def markdown(growth: Growth) -> str:
    """Where it was measured, then one table for each axis."""
    lines = [
        f"Revision {growth.revision}, {growth.date}, {growth.machine}; {growth.rounds} interleaved rounds: medians.",
        f"A fixed loop took {min(growth.noise_ms):.0f} to {max(growth.noise_ms):.0f} ms meanwhile, median {statistics.median(growth.noise_ms):.0f}.",
    ]
    for name in AXES:
        points = growth.axis(name)
        if points:
            lines += ["", *_table(name, points)]
    return "\n".join(lines)


def _table(name: str, points: Sequence[Point]) -> Iterable[str]:
    programs = [program for program in PROGRAMS if any(point.cpu(program) >= 0.05 for point in points)]
    columns = [name, "tasks/s (min – max)", "round trip ms p50", "p99", *(f"CPU µs/task: {one}" for one in programs)]
    if points[0].frame_tasks:
        columns.append("tasks a frame")
    if name != TASKS:
        columns.insert(1, "tasks")
    yield "| " + " | ".join(columns) + " |"
    yield "|---" * len(columns) + "|"
    for point in points:
        cells = [f"{point.x:,}", *([f"{point.tasks:,}"] if name != TASKS else [])]
        cells += [f"{point.rate:,.0f} ({min(point.tasks_s):,.0f} – {max(point.tasks_s):,.0f})"]
        cells += [f"{statistics.median(series):.2f}" if series else "" for series in (point.p50_ms, point.p99_ms)]
        cells += [f"{point.cpu(program):.1f}" for program in programs]
        cells += [f"{statistics.median(point.frame_tasks):,.0f}"] if point.frame_tasks else []
        yield "| " + " | ".join(cells) + " |"
