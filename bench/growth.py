"""`make bench-growth`: throughput and latency as the work grows: more tasks, more workers, larger payloads, more levels.

Each axis is measured on a real farm of its own (an orchestrator, Storage, workers of one slot, this client), new in every round, and rounds go over all
axes before the next begins. At each point one job of empty tasks gives the throughput, from the first submission to the last result; then single tasks,
one after the other on the farm that has nothing else to do, give the round trip, while the orchestrator still keeps the job's results. Then the job is purged.

- tasks: two workers, jobs of 1,000 to 1,000,000 tasks.
- workers: real programs with their children, 1 to 64; they share the cores of this machine, so from some number on more of them only cost.
- simulated workers: links of a few processes that answer at once (`bench.simulated`), 1 to 1,000; what is left is the orchestrator.
- payload bytes: two workers, 16 bytes to 64 KiB of arguments on the wire, small results; fewer tasks where they are large.
- levels: one to three orchestrators one below the other, which hand the tasks down as they are; two workers at the lowest.

CPU is told apart by program, because the model (`bench.model`) is made of that.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import antfarm as af
from antfarm.client.blocking import Farm
from antfarm.local import LocalFarm
from bench import constants, growth_chart, growth_record
from bench.growth_record import (
    AGENTS,
    BELOW,
    CHILDREN,
    CLIENT,
    HOSTS,
    LEVELS,
    ORCHESTRATOR,
    PAYLOAD,
    SIMULATED,
    STORAGE,
    TASKS,
    WORKERS,
    Growth,
    Point,
)
from bench.measure import timed
from bench.peers import noise, processes
from bench.simulated import Hosts, hosts
from bench.tasks import noop, payload_text, weigh

PICTURE = Path(__file__).parents[1] / "docs" / "growth.svg"
FEW_WORKERS = 2
BYTES_MAX = 64 << 20
"""Payloads of one job on the axis of payloads; at least TASKS_MIN tasks all the same."""
TASKS_MIN = 1_000
STARTS_AT_ONCE = 4
IDLE_S = 6.0
"""How long the beats of the most simulated workers are watched: two beats of each."""
BEAT_S = 3.0
"""The orchestrator's default heartbeat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured."""

    tasks: tuple[int, ...]
    workers: tuple[int, ...]
    simulated: tuple[int, ...]
    payloads: tuple[int, ...]
    levels: tuple[int, ...]
    rounds: int
    burst: int
    trips: int

    def points(self) -> list[Point]:
        """All of them, unmeasured, axis by axis, each axis upwards."""
        return [
            *(Point(axis=TASKS, tasks=count, workers=FEW_WORKERS) for count in self.tasks),
            *(Point(axis=WORKERS, tasks=self.burst, workers=count) for count in self.workers),
            *(Point(axis=SIMULATED, tasks=self.burst, workers=count) for count in self.simulated),
            *(
                Point(axis=PAYLOAD, tasks=self._tasks_of(size), workers=FEW_WORKERS, payload_bytes=size)
                for size in self.payloads
            ),
            *(Point(axis=LEVELS, tasks=self.burst, workers=FEW_WORKERS, levels=count) for count in self.levels),
        ]

    def _tasks_of(self, payload_bytes: int) -> int:
        return min(self.burst, max(BYTES_MAX // payload_bytes, TASKS_MIN))


def main() -> int:
    """Measure, print Markdown, and keep record and picture if asked."""
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description="Measure the farm as the work grows.")
    add_options(parser)
    parser.add_argument("--save", action="store_true", help="keep the record in bench/history and the picture in docs")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print and draw a record again, measure nothing")
    parser.add_argument("--record", type=Path, metavar="FILE", help="keep the record in a file of this name as well")
    parser.add_argument("--picture", type=Path, metavar="FILE", help=f"where to draw (with --save: {PICTURE.name})")
    options = parser.parse_args()
    growth = growth_record.load(options.show) if options.show else measure(plan_of(options))
    print(growth_record.markdown(growth))
    if options.record:
        options.record.write_text(growth.to_json())
    if options.save and not options.show:
        print(f"\nkept as {growth.save()}", file=sys.stderr)
    picture = options.picture or (PICTURE if options.save else None)
    if picture:
        picture.write_text(growth_chart.chart(growth))
    return 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """The points and how often; empty text leaves an axis out."""
    for name, default, what in (
        ("tasks", "1000,10000,100000,1000000", "tasks of one job"),
        ("workers", "1,2,4,8,16,32,64", "worker processes"),
        ("simulated", "1,10,100,1000", "simulated workers"),
        ("payloads", "16,64,256,1024,4096,16384,65536", "bytes of a task's arguments"),
        ("levels", "1,2,3", "orchestrators one below the other"),
    ):
        parser.add_argument(
            f"--{name}", type=_numbers, default=default, metavar="N,N,...", help=f"{what} (%(default)s)"
        )
    parser.add_argument("--rounds", type=int, default=3, help="rounds (%(default)s)")
    parser.add_argument("--burst", type=int, default=100_000, help="tasks of one job on the other axes (%(default)s)")
    parser.add_argument("--trips", type=int, default=300, help="single tasks at each point (%(default)s)")


def _numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(sorted({int(part) for part in text.split(",") if part.strip()}))
    if numbers and numbers[0] < 1:
        raise argparse.ArgumentTypeError(f"{numbers[0]}: give numbers of at least 1")
    return numbers


def plan_of(options: argparse.Namespace) -> Plan:
    """What the options ask for."""
    names = ("tasks", "workers", "simulated", "payloads", "levels", "rounds", "burst", "trips")
    plan = Plan(**{name: getattr(options, name) for name in names})
    if plan.payloads and not 16 <= plan.payloads[0] <= plan.payloads[-1] <= 64 << 10:
        raise SystemExit("--payloads: give 16 to 65536; what is larger goes by Storage")
    return plan


# ---- rounds -----------------------------------------------------------------------------------------------------------


def measure(plan: Plan) -> Growth:
    """All points, round after round. What it is doing goes to the standard error."""
    growth = growth_record.begin(plan.rounds)
    growth.points = plan.points()
    axes: dict[str, Callable[[Growth, list[Point], Plan], None]] = {
        TASKS: _few_workers,
        PAYLOAD: _few_workers,
        WORKERS: _more_workers,
        SIMULATED: _simulated,
        LEVELS: _levels,
    }
    for number in range(plan.rounds):
        _note(growth, constants.of_machine())
        for name, axis in axes.items():
            points = [point for point in growth.points if point.axis == name]
            if points:
                growth.noise_ms.append(noise.loop_ms())
                print(f"round {number + 1}: {name}", file=sys.stderr, flush=True)
                axis(growth, points, plan)
    return growth


def _note(growth: Growth, found: dict[str, float]) -> None:
    for name, value in found.items():
        growth.constants.setdefault(name, []).append(value)


@contextmanager
def _farm() -> Iterator[tuple[LocalFarm, Farm]]:
    """Storage, an orchestrator and a connection; both end with the block."""
    with LocalFarm() as local:
        local.start_storage()
        local.start_orchestrator()
        with af.connect(local.address) as farm:
            yield local, farm


def _start_workers(local: LocalFarm, count: int, connect: str = "") -> None:
    """Start so many more, a few at a time: the start of one is mostly its imports. `connect`: another orchestrator than the first."""
    for begun in range(0, count, STARTS_AT_ONCE):
        with local.together():
            for _ in range(min(STARTS_AT_ONCE, count - begun)):
                local.start_worker(slots=1, app=["bench.tasks"], connect=connect)


def _few_workers(growth: Growth, points: Sequence[Point], plan: Plan) -> None:
    with _farm() as (local, farm):
        _start_workers(local, FEW_WORKERS)
        if points[0].axis == TASKS:
            _note(growth, constants.of_farm(farm))
        for point in points:
            _measure(point, plan, local, farm)


def _more_workers(growth: Growth, points: Sequence[Point], plan: Plan) -> None:
    with _farm() as (local, farm):
        running = 0
        for point in points:
            _start_workers(local, point.workers - running)
            running = point.workers
            _measure(point, plan, local, farm)


def _simulated(growth: Growth, points: Sequence[Point], plan: Plan) -> None:
    with _farm() as (local, farm), hosts(local.address) as herd:
        for point in points:
            herd.grow(point.workers)
            _measure(point, plan, local, farm, herd)
        _note(growth, _beats(local, herd))


def _levels(growth: Growth, points: Sequence[Point], plan: Plan) -> None:
    for point in points:
        with _farm() as (local, farm):
            lowest = local.address
            for level in range(2, point.levels + 1):
                lowest = local.start_orchestrator(f"level{level}", upstream=lowest, as_=(noop.name,))
            _start_workers(local, FEW_WORKERS, lowest)
            _measure(point, plan, local, farm)


def _beats(local: LocalFarm, herd: Hosts) -> dict[str, float]:
    """What idle time costs on either side, per heartbeat."""
    sides = {constants.BEAT_US: [local.program("orchestrator").pid], constants.BEAT_WORKER_US: herd.pids}
    before = {name: processes.cpu_s(pids) for name, pids in sides.items()}
    time.sleep(IDLE_S)
    beats = herd.workers * IDLE_S / BEAT_S
    return {name: (processes.cpu_s(pids) - before[name]) / beats * 1e6 for name, pids in sides.items()}


# ---- a point ----------------------------------------------------------------------------------------------------------


def _measure(point: Point, plan: Plan, local: LocalFarm, farm: Farm, herd: Hosts | None = None) -> None:
    """Warm up, a job, single tasks."""
    one, calls = _work(point)
    list(farm.map(one, calls(TASKS_MIN + 100 * point.workers)).results())
    before, frames = _cpu_s(local, herd), herd.frames() if herd else (0, 0)
    job: Any = None

    def burst() -> None:
        nonlocal job
        job = farm.map(one, calls(point.tasks))
        if list(job.results()) != list(range(point.tasks)):
            raise SystemExit("results are wrong")

    point.tasks_s.append(point.tasks / timed(burst))
    for program, after_s in _cpu_s(local, herd).items():
        used_us = (after_s - before.get(program, 0.0)) / point.tasks * 1e6
        point.cpu_us.setdefault(program, []).append(used_us)
    if herd:
        frame_count, task_count = (after - at for after, at in zip(herd.frames(), frames, strict=True))
        point.frame_tasks.append(task_count / frame_count)
    argument = next(iter(calls(1)))
    trips = sorted(1e3 * timed(lambda: farm.submit(one, argument).result()) for _ in range(plan.trips))
    point.p50_ms.append(trips[len(trips) // 2])
    point.p99_ms.append(trips[int(len(trips) * 0.99)])
    job.purge()
    print(f"    {point.x:,}: {point.tasks_s[-1]:,.0f} tasks/s", file=sys.stderr, flush=True)


def _work(point: Point) -> tuple[Any, Callable[[int], Iterator[Any]]]:
    """The task, and what makes arguments for so many, each of which comes back as its number."""
    if not point.payload_bytes:
        return noop, lambda count: iter(range(count))
    return weigh, lambda count: (payload_text(number, point.payload_bytes) for number in range(count))


def _cpu_s(local: LocalFarm, herd: Hosts | None) -> dict[str, float]:
    """CPU seconds so far, by program."""
    pids: dict[str, list[int]] = {ORCHESTRATOR: [], BELOW: [], STORAGE: [], AGENTS: []}
    for program in local.programs.values():
        pids[{"worker": AGENTS, "down-stream": BELOW}.get(program.role, program.role)].append(program.pid)
    pids[CHILDREN] = processes.children(pids[AGENTS])
    pids[HOSTS] = herd.pids if herd else []
    return {CLIENT: time.process_time(), **{name: processes.cpu_s(found) for name, found in pids.items()}}


if __name__ == "__main__":
    sys.exit(main())
