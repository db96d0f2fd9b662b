"""CPU and memory of all processes of a contender, read from /proc: they carry a mark in their environment."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

MARK = "BENCH_PEER"
TICKS_S = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def marked(mark: str) -> Iterator[int]:
    """Process ids that carry this mark."""
    wanted = f"{MARK}={mark}\0".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if wanted in (entry / "environ").read_bytes() + b"\0":
                    yield int(entry.name)


def children(parents: Iterable[int]) -> list[int]:
    """Processes that these have started and that run, but for this one."""
    wanted, found = set(parents), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError, IndexError):  # it has ended meanwhile
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) in wanted:
                    found.append(int(entry.name))
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """Seconds of CPU that these have used, with the children that they have waited for."""
    ticks = 0
    for pid in pids:
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / TICKS_S


def resident_bytes(pids: Iterable[int]) -> int:
    """Resident memory of these."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    return total


def end_all(mark: str) -> None:
    """Kill whatever a contender has left behind."""
    for pid in list(marked(mark)):
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
