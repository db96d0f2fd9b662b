"""`make bench-trip`: single tasks one after the other, and where the CPU of a round trip goes: by program and by kind of thread.

One orchestrator, one worker of two slots, Storage and the client, as in `python -m bench`. CPU and switches are the kernel's own counts (schedstat and
status of each thread in /proc), so that nothing is slowed down by being watched.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import antfarm as af
from antfarm.local import LocalFarm
from bench.measure import machine, timed
from bench.peers import processes
from bench.tasks import noop

FIRST, OTHERS, GRPC = "first thread", "other threads of Python", "gRPC's own threads"
"""The first thread of a service is its event loop, that of the client is the caller, whose loop is among the others. Beside it Python has the journal's
thread and one that waits for gRPC's events."""
KINDS = (FIRST, OTHERS, GRPC)
NAMES = ("client", "orchestrator", "worker", "its children")
WARM = 100
Counts = Mapping[tuple[int, str, str], tuple[int, int]]
"""(process, thread, kind) -> nanoseconds on a core, times that it was switched off one."""


def main() -> int:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m bench.trip", description="Measure the round trip of one task.")
    parser.add_argument("--trips", type=int, default=1_000, help="single tasks one after the other (%(default)s)")
    options = parser.parse_args()
    with LocalFarm() as local:
        local.start_storage()
        local.start_orchestrator()
        local.start_worker(slots=2, app=["bench.tasks"])
        worker = local.program("worker-1").pid
        programs = {os.getpid(): "client", local.program("orchestrator").pid: "orchestrator", worker: "worker"}
        with af.connect(local.address) as farm:
            for _ in range(WARM):
                farm.submit(noop, 1).result()
            programs |= dict.fromkeys(processes.children([worker]), "its children")
            before = dict(counts(programs))
            trips_s = [timed(lambda: farm.submit(noop, 1).result()) for _ in range(options.trips)]
            after = dict(counts(programs))
    show(trips_s, programs, before, after)
    return 0


def counts(pids: Mapping[int, str]) -> Iterator[tuple[tuple[int, str, str], tuple[int, int]]]:
    """What the threads of these processes have used so far."""
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            name = (thread / "comm").read_text().strip()
            kind = FIRST if thread.name == str(pid) else OTHERS if name.startswith("python") else GRPC
            on_core_ns = int((thread / "schedstat").read_text().split()[0])
            status = (thread / "status").read_text().splitlines()
            switches = sum(int(line.split()[1]) for line in status if "ctxt_switches" in line)
            yield (pid, thread.name, kind), (on_core_ns, switches)


def show(trips_s: list[float], programs: Mapping[int, str], before: Counts, after: Counts) -> None:
    """The table."""
    count = len(trips_s)
    ns: Counter[tuple[str, str]] = Counter()
    switches: Counter[str] = Counter()
    for key, (on_core_ns, switched) in after.items():
        pid, _, kind = key
        earlier_ns, earlier = before.get(key, (0, 0))
        ns[programs[pid], kind] += on_core_ns - earlier_ns
        switches[programs[pid]] += switched - earlier
    ordered = sorted(trips_s)
    p50, p99 = (1e3 * ordered[int(count * quantile)] for quantile in (0.5, 0.99))
    print(f"{machine()}; {count:,} tasks one after the other: p50 {p50:.2f} ms, p99 {p99:.2f} ms\n")
    print(f"| CPU of a trip, ms | {' | '.join(KINDS)} | all | switches |\n|---|---|---|---|---|---|")
    for name in NAMES:
        used = [ns[name, kind] / count / 1e6 for kind in KINDS]
        cells = [f"{ms:.2f}" for ms in (*used, sum(used))]
        print(f"| {name} | {' | '.join(cells)} | {switches[name] / count:.0f} |")
    total = [sum(ns[name, kind] for name in NAMES) / count / 1e6 for kind in KINDS]
    cells = [f"{ms:.2f}" for ms in (*total, sum(total))]
    print(f"| all programs | {' | '.join(cells)} | {sum(switches.values()) / count:.0f} |")


if __name__ == "__main__":
    sys.exit(main())
