"""`make bench-idle`: what an idle worker costs its orchestrator, in CPU and memory, beside raw grpc.aio streams with the same beat.

Real links on the default heartbeat, each on a connection of its own, hosted by a few processes. A raw worker is two streams on a connection, because a
real one has two (antfarm/link/client.py): the Work Queue beats, the Report Queue is open and silent. So the ratio is the price of sessions, leases and
the core alone. See `bench.herd` for both.

Both are attached at the same time and measured in the same window: what a wake-up costs depends on what else the machine does, and changes by the
minute. Where the cores cannot serve both at once, `--apart` measures one after the other. Each round has fresh servers, so that memory is the growth
since before the first worker came.
"""

from __future__ import annotations

import argparse
import resource
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field

from antfarm.local import LocalFarm
from antfarm.program import allow_open_files
from bench.measure import machine, ratio, spread
from bench.peers.processes import cpu_s, resident_bytes
from services.orchestrator.settings import OrchestratorSettings

HEARTBEAT_S = OrchestratorSettings().heartbeat_s
ATTACH_PER_S = 400.0
"""Workers of a kind that dial in a second, over all hosts. Slow enough for both servers, so that beats are spread alike."""
PATIENCE_S = 120.0
"""How long the last worker may take beyond its turn."""
ANSWER_S = 20.0
DESCRIPTORS_BESIDE = 256
"""Descriptors that the server needs beside one a worker."""
CPU_RATIO_GOAL = 1.3
KIB_GOAL = 40.0


@dataclass(slots=True)
class Figures:
    """What one kind of worker costs the server, a value a round."""

    cpu_percent: list[float] = field(default_factory=list)
    """CPU of the server's process while nothing but beats come, in percent of one core."""
    kib: list[float] = field(default_factory=list)
    """Resident memory of the server's process, in KiB a worker."""


def main() -> int:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m bench.idle", description="Measure idle workers on this machine.")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[1000, 5000], help="idle workers (%(default)s)", metavar="N"
    )
    parser.add_argument("--window-s", type=float, default=30.0, help="seconds of each measurement (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (%(default)s)")
    parser.add_argument("--hosts", type=int, default=4, help="processes that the workers are hosted in (%(default)s)")
    parser.add_argument("--apart", action="store_true", help="one kind of worker at a time, not both in one window")
    options = parser.parse_args()
    if min(options.workers) < 1 or options.hosts < 1:
        parser.error("give at least one worker and one host")
    demand_descriptors(max(options.workers))
    print(f"{machine()}; a beat each {HEARTBEAT_S:g} s, windows of {options.window_s:g} s\n", flush=True)
    farm, raw = ({count: Figures() for count in options.workers} for _ in range(2))
    for _ in range(options.rounds):
        for count in options.workers:
            ours, theirs = Kind("links", farm_server, farm[count]), Kind("streams", raw_server, raw[count])
            for kinds in ((ours,), (theirs,)) if options.apart else ((ours, theirs),):
                measure(count, options.hosts, options.window_s, kinds)
    print(
        "| idle workers | measure | AntFarm: min / median / max | raw streams: min / median / max | ratio of medians | goal |"
    )
    print("|---|---|---|---|---|---|")
    for count in options.workers:
        show(count, farm[count], raw[count])
    return 0


def show(count: int, farm: Figures, raw: Figures) -> None:
    """The two lines of one size."""
    for name, ours, theirs, goal in (
        ("CPU, % of a core", farm.cpu_percent, raw.cpu_percent, f"ratio at most {CPU_RATIO_GOAL:g}"),
        ("memory, KiB a worker", farm.kib, raw.kib, f"at most {KIB_GOAL:g}"),
    ):
        figures = f"{spread(ours, '{:.1f}')} | {spread(theirs, '{:.1f}')} | {ratio(ours, theirs):.2f}"
        print(f"| {count:,} | {name} | {figures} | {goal} |")


def demand_descriptors(workers: int) -> None:
    """Raise this process's limit of open files to the hard one, which programs started from now on inherit; end when that is too few."""
    allow_open_files()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = workers + DESCRIPTORS_BESIDE
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise SystemExit(
            f"{workers:,} workers need {needed:,} open files, the hard limit is {hard:,}: raise it (ulimit -Hn)"
        )


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of worker."""

    name: str
    """As `bench.herd` calls it."""
    serve: Callable[[], AbstractContextManager[tuple[int, str]]]
    """Starts its server: process id and address."""
    figures: Figures


@dataclass(frozen=True, slots=True)
class Side:
    """A server with all its workers attached."""

    pid: int
    herd: list[Program]
    before: int
    """Its resident bytes before the first worker came."""
    figures: Figures


def measure(count: int, hosts: int, window_s: float, kinds: Sequence[Kind]) -> None:
    """One round: the kinds' servers, `count` workers at each, and a window in which they only beat; ends in one line when one of them did not."""
    with ExitStack() as stack:
        servers = [stack.enter_context(kind.serve()) for kind in kinds]
        sides = [
            attach(kind.name, *server, count, hosts, kind.figures, stack)
            for kind, server in zip(kinds, servers, strict=True)
        ]
        time.sleep(HEARTBEAT_S)  # everybody has beaten once, and what attaching left behind is done
        broken = [demand_attached(side.herd, count) for side in sides]
        used_s, began = [cpu_s([side.pid]) for side in sides], time.monotonic()
        time.sleep(window_s)
        used_s = [cpu_s([side.pid]) - before for side, before in zip(sides, used_s, strict=True)]
        took_s = time.monotonic() - began
        for side, seconds in zip(sides, used_s, strict=True):
            side.figures.cpu_percent.append(100 * seconds / took_s)
            side.figures.kib.append((resident_bytes([side.pid]) - side.before) / count / 1024)
        if [demand_attached(side.herd, count) for side in sides] != broken:
            raise SystemExit("a worker lost its connection while it was measured: the machine is too busy")


def attach(kind: str, pid: int, address: str, count: int, hosts: int, figures: Figures, stack: ExitStack) -> Side:
    """Start the hosts of `count` workers of a kind and wait until all are attached. The stack ends them."""
    before = resident_bytes([pid])
    shares = [count // hosts + (number < count % hosts) for number in range(hosts)]
    herd = [
        stack.enter_context(Program(kind, address, f"host{number}", str(share), str(ATTACH_PER_S / hosts)))
        for number, share in enumerate(shares)
        if share
    ]
    for program in herd:
        program.line(count / ATTACH_PER_S + PATIENCE_S)
    return Side(pid, herd, before, figures)


def demand_attached(herd: list[Program], count: int) -> int:
    """See that all workers are attached and answered. How many connections were lost so far."""
    attached, broken = map(sum, zip(*(program.ask() for program in herd), strict=True))
    if attached != count:
        raise SystemExit(
            f"{attached:,} of {count:,} workers are attached: the machine is too busy, or a limit is reached"
        )
    return broken


@contextmanager
def farm_server() -> Iterator[tuple[int, str]]:
    """An orchestrator at its defaults: process id and address."""
    with LocalFarm() as local:
        local.start_orchestrator()
        yield local.program("orchestrator").pid, local.address


@contextmanager
def raw_server() -> Iterator[tuple[int, str]]:
    """The bare server, likewise."""
    with Program("serve", str(HEARTBEAT_S)) as program:
        yield program.pid, program.line(PATIENCE_S).split()[-1]


class Program:
    """A process of `bench.herd`, killed at the end of the block."""

    def __init__(self, *words: str) -> None:
        command = [sys.executable, "-m", "bench.herd", *words]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._name = " ".join(words[:3])

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def line(self, timeout_s: float) -> str:
        """The next line that it says; it says one at a time."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        text = self._process.stdout.readline() if ready else ""
        if not text:
            raise SystemExit(
                f"bench.herd {self._name}: {'it has died' if ready else f'nothing within {timeout_s:.0f} s'}"
            )
        return text

    def ask(self) -> tuple[int, int]:
        """What it answers: of idle workers those that are attached now, and connections that these have lost so far."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        first, second = map(int, self.line(ANSWER_S).split())
        return first, second


if __name__ == "__main__":
    sys.exit(main())
