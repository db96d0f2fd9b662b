"""`make bench`: no-op tasks a second end to end with the durable journal, the round trip of one task, memory of a queued task.

One orchestrator, one worker of two slots (as `antfarm up` starts it on two cores), Storage, and the client, all on this machine, each a process of its own. Beside every figure stands
the same work on a ProcessPoolExecutor with two processes (which is not durable), measured in turn in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import antfarm as af
from antfarm.local import LocalFarm
from bench.measure import check, cpu_s, machine, ratio, spread, timed
from bench.peers.processes import resident_bytes
from bench.tasks import identity, noop

SLOTS = 2
APP = Path(__file__).with_name("tasks.py")


def main() -> int:
    """Run all measurements and print a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the farm on this machine.")
    parser.add_argument("--tasks", type=int, default=100_000, help="no-op tasks a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (%(default)s)")
    parser.add_argument("--trips", type=int, default=500, help="single tasks one after the other (%(default)s)")
    options = parser.parse_args()
    rows = []
    with LocalFarm() as local, pool() as processes:
        local.start_storage()
        local.start_orchestrator()
        queued = memory_per_queued_task(local, options.tasks)
        local.start_worker(slots=SLOTS, app=["bench.tasks"])
        with af.connect(local.address) as farm:
            list(farm.map(noop, range(1_000)).results())  # warm
            list(processes.map(identity, range(1_000)))
            burst_farm, burst_pool, cpu = [], [], []
            pids = [program.pid for program in local.programs.values()]
            for _ in range(options.rounds):
                before = cpu_s(pids)
                burst_farm.append(
                    options.tasks / timed(lambda: check(farm.map(noop, range(options.tasks)).results(), options.tasks))
                )
                cpu.append((cpu_s(pids) - before) / options.tasks * 1e6)
                burst_pool.append(10_000 / timed(lambda: check(processes.map(identity, range(10_000)), 10_000)))
            trips_farm = [timed(lambda: farm.submit(noop, 1).result()) for _ in range(options.trips)]
            trips_pool = [timed(lambda: processes.submit(identity, 1).result()) for _ in range(options.trips)]
    rows.append(row(f"no-op tasks/s, {options.tasks:,} tasks", burst_farm, burst_pool, "{:,.0f}"))
    rows.append(row("CPU of orchestrator, worker and storage, us/task", cpu, [], "{:.1f}"))
    for name, quantile in (("p50", 0.5), ("p99", 0.99)):
        ours, theirs = (1e3 * sorted(trips)[int(len(trips) * quantile)] for trips in (trips_farm, trips_pool))
        rows.append(row(f"round trip of one task, ms {name}", [ours], [theirs], "{:.2f}"))
    rows.append(row("orchestrator memory per queued task, bytes", [queued], [], "{:,.0f}"))
    print(f"{machine()}\n")
    print(
        "| measure | AntFarm, durable: min / median / max | ProcessPoolExecutor, not durable | ratio of medians |\n|---|---|---|---|"
    )
    print("\n".join(rows))
    return 0


def pool() -> ProcessPoolExecutor:
    """The peer: processes that are spawned, as ours are."""
    return ProcessPoolExecutor(SLOTS, mp_context=get_context("spawn"))


def row(name: str, ours: Sequence[float], theirs: Sequence[float], form: str) -> str:
    """One line of the table."""
    figures = spread(ours, form)
    if not theirs:
        return f"| {name} | {figures} | | |"
    return f"| {name} | {figures} | {form.format(statistics.median(theirs))} | {ratio(ours, theirs):.2f} |"


def memory_per_queued_task(local: LocalFarm, count: int) -> float:
    """Growth of the orchestrator's resident memory over a job that nobody runs, which is then cancelled and purged."""
    pid = local.program("orchestrator").pid
    with af.connect(local.address) as farm:
        before = resident_bytes([pid])
        job = farm.map("bench.nobody", range(count), name="queued")
        grown = resident_bytes([pid]) - before
        job.cancel()
    return grown / count


if __name__ == "__main__":
    sys.exit(main())
