"""`make bench-million`: a million empty tasks from the submission to the last result, window by window.

Of each window of results: the rate, the resident memory of every program at its end, and the longest that a heartbeat waited for its answer. The
heartbeats are those of a further worker that offers a type which nobody submits: a process of its own (`bench.herd`), whose two streams are as a
worker's but which beats every 20 ms, so that no pause falls between two beats.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import antfarm as af
from antfarm.local import LocalFarm
from bench.idle import PATIENCE_S, Program
from bench.measure import machine, spread
from bench.peers.processes import resident_bytes
from bench.tasks import noop

SLOTS = 2
WINDOWS = 10
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Window:
    """What was seen while a tenth of the results came."""

    rate: float
    """Results a second."""
    mib: dict[str, float]
    """Resident memory of each program at its end."""
    beats: int
    slowest_ms: int
    """The longest that a heartbeat waited for its answer."""


# ---- the farm -----------------------------------------------------------------------------------------------------------


def main() -> int:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m bench.million", description="Measure a large job as it goes.")
    parser.add_argument("--tasks", type=int, default=1_000_000, help="empty tasks (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="how many such jobs, one after the other (%(default)s)")
    options = parser.parse_args()
    print(f"{machine()}; {options.tasks:,} empty tasks, a worker of {SLOTS} slots\n", flush=True)
    with LocalFarm() as local:
        local.start_orchestrator()
        local.start_worker(slots=SLOTS, app=["bench.tasks"])
        with af.connect(local.address) as farm, Program("beats", local.address) as beats:
            beats.line(PATIENCE_S)
            pids = {name: [program.pid] for name, program in local.programs.items()} | {"client": [os.getpid()]}
            list(farm.map(noop, range(1_000)).results())  # warm
            for number in range(1, options.jobs + 1):
                show(number, options.tasks, list(windows(farm, options.tasks, beats, pids)))
    return 0


def windows(farm: af.Farm, tasks: int, beats: Program, pids: dict[str, list[int]]) -> Iterator[Window]:
    """Submit, run and read one job; ends in one line when a result is wrong."""
    size = max(tasks // WINDOWS, 1)
    beats.ask()
    began = time.perf_counter()
    expected = 0
    for result in farm.map(noop, range(tasks)).results():
        if result != expected:
            raise SystemExit("results are wrong")
        expected += 1
        if expected % size == 0:
            now = time.perf_counter()
            mib = {name: resident_bytes(of) / MIB for name, of in pids.items()}
            count, slowest_ms = beats.ask()
            yield Window(size / (now - began), mib, count, slowest_ms)
            began = now
    if expected != tasks:
        raise SystemExit("results are missing")


def show(number: int, tasks: int, seen: list[Window]) -> None:
    """One job as a table, and its sum in a line."""
    names = list(seen[0].mib)
    print(
        f"| results of job {number} | tasks/s | slowest heartbeat, ms | {' | '.join(f'{name}, MiB' for name in names)} |"
    )
    print(f"|---|---|---|{'---|' * len(names)}")
    for place, window in enumerate(seen, 1):
        memory = " | ".join(f"{window.mib[name]:.0f}" for name in names)
        print(f"| {tasks * place // len(seen):,} | {window.rate:,.0f} | {window.slowest_ms} | {memory} |")
    seconds = sum(tasks / len(seen) / window.rate for window in seen)
    rates = spread([window.rate for window in seen], "{:,.0f}")
    beats = sum(window.beats for window in seen)
    slowest_ms = max(window.slowest_ms for window in seen)
    print(
        f"\n{tasks / seconds:,.0f} tasks/s in all; by window {rates}; {beats:,} heartbeats, the slowest {slowest_ms} ms\n",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
