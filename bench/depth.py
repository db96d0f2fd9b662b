"""`make bench-depth`: no-op tasks a second through one, two and three levels of orchestrators, and the CPU of each level.

The workers, two of one slot, are attached to the lowest orchestrator only. Two ways through a hierarchy are measured beside the client's own job on one
orchestrator:

- relayed: tasks of a type without a plan are handed down as they are, neighbours in one job at every level below the top;
- as a stage: one request is handed down, and a plan makes all tasks of it at the lowest level; the summary that comes up says that all were right. One
  level has no stages, because only what comes from above is expanded.

All farms are up all the time, on one Storage, and take turns round by round: those that wait only beat. A way that would take longer than the limit, as
far as a small round tells, gets fewer tasks.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import antfarm as af
from antfarm.client.blocking import Farm
from antfarm.errors import AntFarmError
from antfarm.local import LocalFarm
from bench.measure import check, cpu_s, machine, ratio, spread, timed
from bench.tasks import noop

DEPTH_MAX = 3
WORKERS = 2
WARM = 500
TYPES = ("bench.noop", "bench.spread")
GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class Tree:
    """A farm of some levels, and a client at its top."""

    depth: int
    client: Farm
    pids: Mapping[str, list[int]]
    """Processes of each part, orchestrators from top to bottom."""


@dataclass(slots=True)
class Figures:
    """One way through one tree, a value a round."""

    way: str
    tree: Tree
    run: Callable[[Farm, int], None]
    """Sends so many tasks through and sees that all results are right."""
    tasks: int = 0
    """How many a round."""
    rates: list[float] = field(default_factory=list)
    """Tasks a second."""
    cpu_us: dict[str, list[float]] = field(default_factory=dict)
    """By part: microseconds of CPU a task."""
    shares: dict[str, list[float]] = field(default_factory=dict)
    """By part: percent of all cores while it ran."""


def main() -> int:
    """Measure and print two Markdown tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.depth", description="Measure hierarchies on this machine.")
    parser.add_argument("--tasks", type=int, default=50_000, help="no-op tasks a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (%(default)s)")
    parser.add_argument("--levels", type=int, default=DEPTH_MAX, help="levels of the deepest farm (%(default)s)")
    parser.add_argument(
        "--limit-s", type=float, default=30.0, help="seconds that one way may take in a round (%(default)s)"
    )
    options = parser.parse_args()
    print(f"{machine()}\n", flush=True)
    try:
        figures = run(options.levels, options.rounds, options.tasks, options.limit_s)
    except AntFarmError as error:
        raise SystemExit(" ".join(str(error).split())) from None
    show(figures)
    return 0


def run(levels: int, rounds: int, tasks: int, limit_s: float) -> list[Figures]:
    """Start all farms and let every way take its turns."""
    with LocalFarm(grace_s=GRACE_S) as local, ExitStack() as clients:
        local.start_storage()
        trees = [plant(local, depth, clients) for depth in range(1, levels + 1)]
        figures = [Figures("directly", trees[0], relayed)]
        figures += [Figures("relayed", tree, relayed) for tree in trees[1:]]
        figures += [Figures("as a stage", tree, staged) for tree in trees[1:]]
        for one in figures:
            one.tasks = affordable(one, tasks, limit_s)
        for _ in range(rounds):
            for one in figures:
                measure(one)
    return figures


def plant(local: LocalFarm, depth: int, clients: ExitStack) -> Tree:
    """Start a farm of so many levels."""
    pids: dict[str, list[int]] = {}
    top = lowest = ""
    for level in range(1, depth + 1):
        name = f"depth{depth}-level{level}"
        lowest = local.start_orchestrator(name, upstream=lowest, as_=TYPES if lowest else ())
        top = top or lowest
        pids[f"orchestrator {level}"] = [local.program(name).pid]
    names = [
        local.start_worker(f"depth{depth}-worker{number}", connect=lowest, slots=1, app=["bench.tasks"])
        for number in range(WORKERS)
    ]
    pids["workers"] = [local.program(name).pid for name in names]
    pids["Storage"] = [local.program("storage").pid]
    return Tree(depth, clients.enter_context(af.connect(top)), pids)


def relayed(farm: Farm, count: int) -> None:
    """A job of many tasks, at whatever level they are run."""
    check(farm.map(noop, range(count)).results(), count)


def staged(farm: Farm, count: int) -> None:
    """One task, which the lowest level expands; its summary has checked the results."""
    if farm.submit("bench.spread", count).result() != count:
        raise SystemExit("results are wrong")


def affordable(one: Figures, tasks: int, limit_s: float) -> int:
    """How many tasks fit into the limit, at most those asked for, as a few tell that also warm it up."""
    one.run(one.tree.client, WARM)
    rate = WARM / timed(lambda: one.run(one.tree.client, WARM))
    return min(tasks, max(int(rate * limit_s), WARM))


def measure(one: Figures) -> None:
    """One round of one way."""
    tasks = one.tasks
    before, own_s = {name: cpu_s(pids) for name, pids in one.tree.pids.items()}, time.process_time()
    took_s = timed(lambda: one.run(one.tree.client, tasks))
    used_s = {name: cpu_s(pids) - before[name] for name, pids in one.tree.pids.items()}
    used_s["client"] = time.process_time() - own_s
    one.rates.append(tasks / took_s)
    for name, seconds in used_s.items():
        one.cpu_us.setdefault(name, []).append(1e6 * seconds / tasks)
        one.shares.setdefault(name, []).append(100 * seconds / took_s / (os.cpu_count() or 1))


def show(figures: list[Figures]) -> None:
    """Rates, then where the CPU went."""
    print("| tasks reach the workers | levels | tasks a round | tasks/s: min / median / max | of one level |")
    print("|---|---|---|---|---|")
    for one in figures:
        of_one = ratio(one.rates, figures[0].rates)
        print(f"| {one.way} | {one.tree.depth} | {one.tasks:,} | {spread(one.rates, '{:,.0f}')} | {of_one:.2f} |")
    print(
        f"\n| tasks reach the workers | levels | part | CPU, us a task: min / median / max | % of {os.cpu_count()} cores |"
    )
    print("|---|---|---|---|---|")
    for one in figures:
        for name, values in one.cpu_us.items():
            share = statistics.median(one.shares[name])
            print(f"| {one.way} | {one.tree.depth} | {name} | {spread(values, '{:.1f}')} | {share:.0f} |")


if __name__ == "__main__":
    sys.exit(main())
