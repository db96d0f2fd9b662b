"""What the measurements share: the machine, seconds, CPU of programs, results that are right, and how figures of several rounds are shown."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from bench.peers.processes import TICKS_S


def machine() -> str:
    """The line that stands above every table: without it the figures mean nothing."""
    return f"{platform.machine()}, {os.cpu_count()} cores, CPython {platform.python_version()}, {time.strftime('%Y-%m-%d')}"


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def check(results: Iterable[object], count: int) -> None:
    """Read all results and see that each is right: 0, 1, 2 and so on, `count` of them. Else the measurement ends in one line."""
    if list(results) != list(range(count)):
        raise SystemExit("results are wrong")


def cpu_s(roots: Iterable[int]) -> float:
    """CPU seconds that these processes, their children and their process groups have used so far, user and system."""
    wanted = set(roots) - {0}  # a program that does not run; 0 is also the parent of all the kernel's threads
    ticks = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(entry.name) in wanted or int(fields[1]) in wanted or int(fields[2]) in wanted:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_S


def spread(values: Sequence[float], form: str) -> str:
    """`min / median / max`, or the one value there is; `form` is a format such as "{:.1f}"."""
    if len(values) == 1:
        return form.format(values[0])
    return " / ".join(form.format(f(values)) for f in (min, statistics.median, max))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Of the medians. Infinite when theirs is 0: a window too short for the clock of CPU time, which counts in 10 ms."""
    peer = statistics.median(theirs)
    return statistics.median(ours) / peer if peer else float("inf")
