"""`make bench-million`: a million empty tasks from the submission to the last result, window by window.

Of each window of results: the rate, the resident memory of every program at its end, and the longest that a heartbeat waited for its answer. The
heartbeats are those of a further worker that offers a type which nobody submits: a process of its own, `python -m bench.million --beat ADDRESS`, whose
two streams are as a worker's but which beats every 20 ms, so that no pause falls between two beats.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc.aio
import uvloop

import antfarm as af
from antfarm import net
from antfarm.local import LocalFarm
from antfarm.model import PROTOCOL_MAJOR, PROTOCOL_MINOR
from antfarm.v1 import report_queue_pb2, report_queue_pb2_grpc, work_queue_pb2, work_queue_pb2_grpc
from bench.herd import questions
from bench.measure import machine, spread
from bench.peers.processes import resident_bytes
from bench.tasks import noop

WORKERS = 2
WINDOWS = 10
BEAT_S = 0.02
ANSWER_S = 20.0
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Window:
    """What was seen while a tenth of the results came."""

    rate: float
    """Results a second."""
    mib: dict[str, float]
    """Resident memory of each program at its end."""
    beats: int
    slowest_ms: float
    """The longest that a heartbeat waited for its answer."""


# ---- the farm -----------------------------------------------------------------------------------------------------------


def main() -> int:
    """Measure and print a Markdown table, or beat."""
    parser = argparse.ArgumentParser(prog="python -m bench.million", description="Measure a large job as it goes.")
    parser.add_argument("--tasks", type=int, default=1_000_000, help="empty tasks (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="how many such jobs, one after the other (%(default)s)")
    parser.add_argument("--beat", metavar="ADDRESS", help="only beat there, as the measurement's own process does")
    options = parser.parse_args()
    if options.beat:
        uvloop.run(beat(options.beat))
        return 0
    print(f"{machine()}; {options.tasks:,} empty tasks, {WORKERS} workers\n", flush=True)
    with LocalFarm() as local:
        local.start_orchestrator()
        for _ in range(WORKERS):
            local.start_worker(slots=1, app=["bench.tasks"])
        with af.connect(local.address) as farm, Beats(local.address) as beats:
            pids = {name: [program.pid] for name, program in local.programs.items()} | {"client": [os.getpid()]}
            list(farm.map(noop, range(1_000)).results())  # warm
            for number in range(1, options.jobs + 1):
                show(number, options.tasks, list(windows(farm, options.tasks, beats, pids)))
    return 0


def windows(farm: af.Farm, tasks: int, beats: Beats, pids: dict[str, list[int]]) -> Iterator[Window]:
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
        print(f"| {tasks * place // len(seen):,} | {window.rate:,.0f} | {window.slowest_ms:.0f} | {memory} |")
    seconds = sum(tasks / len(seen) / window.rate for window in seen)
    rates = spread([window.rate for window in seen], "{:,.0f}")
    beats = sum(window.beats for window in seen)
    slowest_ms = max(window.slowest_ms for window in seen)
    print(
        f"\n{tasks / seconds:,.0f} tasks/s in all; by window {rates}; {beats:,} heartbeats, the slowest {slowest_ms:.0f} ms\n",
        flush=True,
    )


# ---- the heartbeats -----------------------------------------------------------------------------------------------------


class Beats:
    """The process that beats."""

    def __init__(self, address: str) -> None:
        command = [sys.executable, "-m", "bench.million", "--beat", address]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._line()

    def __enter__(self) -> Beats:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def ask(self) -> tuple[int, float]:
        """Beats answered since the last question, and the longest wait of one in ms."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        count, slowest_ms = self._line().split()
        return int(count), float(slowest_ms)

    def _line(self) -> str:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], ANSWER_S)[0]:
            raise SystemExit("the process that beats says nothing")
        if not (line := self._process.stdout.readline()):
            raise SystemExit("the process that beats has ended: its stream broke")
        return line


async def beat(address: str) -> None:
    """Attach, say `attached`, beat; answer each line of standard input with the count of beats since the last and the slowest in ms."""
    asked = questions()
    async with net.open_channel(address) as channel:
        work: Any = work_queue_pb2_grpc.WorkQueueServiceStub(channel).PullTasks()
        hello = work_queue_pb2.Hello(
            protocol_major=PROTOCOL_MAJOR,
            protocol_minor=PROTOCOL_MINOR,
            worker_id="beating",
            incarnation=os.urandom(16),
            slots=1,
            window=1,
            task_types=["bench.nothing"],
            dial=1,
        )
        await work.write(work_queue_pb2.PullTasksRequest(hello=hello))
        welcome = await work.read()
        reports: Any = report_queue_pb2_grpc.ReportQueueServiceStub(channel).PushReports()
        first = report_queue_pb2.ReportHello(session_id=welcome.welcome.session_id)
        await reports.write(report_queue_pb2.PushReportsRequest(hello=first))
        print("attached", flush=True)
        waits_ms: list[float] = []
        for number in range(1, sys.maxsize):
            waits_ms.append(await answer_ms(work, number))
            if asked.is_set():
                asked.clear()
                print(len(waits_ms), max(waits_ms), flush=True)
                waits_ms.clear()
            await asyncio.sleep(BEAT_S)


async def answer_ms(work: Any, number: int) -> float:
    """Send one heartbeat and wait for its answer, in ms."""
    began = time.perf_counter()
    await work.write(work_queue_pb2.PullTasksRequest(heartbeat=work_queue_pb2.Heartbeat(number=number)))
    while (frame := await work.read()) is not grpc.aio.EOF:
        if frame.heartbeat_ack.number == number:
            return 1e3 * (time.perf_counter() - began)
    raise SystemExit("the orchestrator hung up")


if __name__ == "__main__":
    sys.exit(main())
