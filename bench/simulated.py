"""Simulated workers: many links in one process, each with a connection of its own, that answer every task at once and execute none.

To the orchestrator each is a worker of one slot. What a worker's program and its children cost is missing, so that a thousand of them fit on one
machine, and what is measured is the orchestrator. `Hosts` starts a few such processes; each is told what to do by lines on its standard input:

    add COUNT     attach so many more; answers `attached COUNT` when all of them are
    frames        answers `frames FRAMES TASKS`: frames of work received so far, and tasks in them

It ends when its standard input does, so it outlives nobody.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvloop

from antfarm import wire
from antfarm.link import Link, OutcomeParts, WorkerIdentity
from antfarm.v1 import report_queue_pb2, work_queue_pb2

PROCESSES = 4
WINDOW = 1 + 1_024
"""What a worker of one slot asks for when tasks are empty."""
TASK = "bench.noop"


# ---- in the host ------------------------------------------------------------------------------------------------------


class Answering:
    """Reports for each task that it returned its argument, as `bench.noop` does."""

    def __init__(self, host: Host) -> None:
        self.link: Link
        self._host = host

    def on_welcome(self, welcome: work_queue_pb2.Welcome) -> None: ...

    def on_tasks(self, groups: list[work_queue_pb2.TaskGroup]) -> None:
        """Answer all of them."""
        self._host.frames += 1
        for group in groups:
            assigned = wire.assigned_in(group)
            self._host.tasks += len(assigned)
            for one in assigned:
                # The payload is a JSON list of one value, and the result is that value.
                self.link.report(
                    group.job_id,
                    group.epoch,
                    OutcomeParts(
                        index=one.index,
                        attempt=one.attempt,
                        ending=report_queue_pb2.ENDING_SUCCEEDED,
                        result=one.payload[1:-1],
                        run_us=1,
                    ),
                )

    def on_revoke(self, tokens: list[tuple[str, int, int, int]], cause: str) -> None: ...

    def on_drain(self, limit_s: float) -> None: ...


class Host:
    """The links of one process."""

    def __init__(self, address: str, name: str) -> None:
        self.frames = 0
        self.tasks = 0
        self._address, self._name = address, name
        self._links: list[Link] = []
        self._running: set[asyncio.Task[None]] = set()

    async def add(self, count: int) -> None:
        """Start so many more links and wait until they are attached."""
        added = [self._open(len(self._links) + number) for number in range(count)]
        self._links += added
        self._running |= {asyncio.create_task(link.run()) for link in added}
        await asyncio.gather(*(link.first_attached() for link in added))

    def _open(self, number: int) -> Link:
        identity = WorkerIdentity(
            worker_id=f"{self._name}-{number}", slots=1, window=WINDOW, task_types=(TASK,), host=self._name
        )
        answering = Answering(self)
        answering.link = Link(addresses=[self._address], identity=identity, handler=answering)
        return answering.link

    async def serve(self) -> None:
        """Obey the lines of the standard input until it ends."""
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := (await reader.readline()).decode():
            order, _, count = line.strip().partition(" ")
            if order == "add":
                await self.add(int(count))
                print(f"attached {len(self._links)}", flush=True)
            elif order == "frames":
                print(f"frames {self.frames} {self.tasks}", flush=True)
        await asyncio.gather(*(link.goodbye("the measurement is over") for link in self._links))


# ---- who starts it ----------------------------------------------------------------------------------------------------


class Hosts:
    """A few processes and their links, as one."""

    def __init__(self, address: str, count: int) -> None:
        self._processes = [_start(address, f"simulated-{number}") for number in range(count)]
        self.workers = 0

    @property
    def pids(self) -> list[int]:
        """Of the processes."""
        return [process.pid for process in self._processes]

    def grow(self, workers: int) -> None:
        """Attach more until there are so many; they are dealt evenly to the processes."""
        orders = []
        for number, process in enumerate(self._processes):
            before, after = (
                (total + len(self._processes) - 1 - number) // len(self._processes) for total in (self.workers, workers)
            )
            if after > before:
                orders.append(process)
                _tell(process, f"add {after - before}")
        for process in orders:
            _answer(process, "attached")
        self.workers = workers

    def frames(self) -> tuple[int, int]:
        """Frames of work received so far, and tasks in them."""
        frames = tasks = 0
        for process in self._processes:
            _tell(process, "frames")
            words = _answer(process, "frames")
            frames, tasks = frames + int(words[1]), tasks + int(words[2])
        return frames, tasks

    def close(self) -> None:
        """Let all of them leave."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


@contextmanager
def hosts(address: str, count: int = PROCESSES) -> Iterator[Hosts]:
    """The processes, without a link yet; they end with the block."""
    started = Hosts(address, count)
    try:
        yield started
    finally:
        started.close()


def _start(address: str, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.simulated", address, name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


def _tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _answer(process: subprocess.Popen[str], word: str) -> list[str]:
    assert process.stdout is not None
    words = process.stdout.readline().split()
    if words[:1] != [word]:
        raise SystemExit(f"a process of simulated workers said {' '.join(words) or 'nothing'} in place of {word}")
    return words


if __name__ == "__main__":
    uvloop.run(Host(sys.argv[1], sys.argv[2]).serve())
