"""A farm of real programs for a test, what its tasks noted, and the check that nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from antfarm import aio
from antfarm.client.farm import AsyncFarm
from antfarm.local import LocalFarm
from antfarm.v1 import task_pb2, worker_pb2

APP = str(Path(__file__).parent / "farm_app.py")
PATIENCE_S = 30.0
H_S = 0.3
"""Heartbeat of the tests in which a lease has to end."""
LEASE_S = 4 * H_S
SWEEP_S = H_S / 4
CALM_S = 1.0
"""Heartbeat of the tests in which none may end, on however busy a machine."""


@dataclass(frozen=True)
class Note:
    """One execution, as the task noted it when it began."""

    what: str
    index: int
    attempt: int
    pid: int
    at: float


class Notes:
    """The file in which tasks note that they run."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def all(self) -> list[Note]:
        """What was noted so far, in order."""
        try:
            lines = Path(self.path).read_text().splitlines()
        except FileNotFoundError:
            return []
        fields = [line.split() for line in lines]
        return [Note(f[0], int(f[1]), int(f[2]), int(f[3]), float(f[4])) for f in fields]

    def count(self, prefix: str = "") -> int:
        """Executions whose name begins so."""
        return sum(note.what.startswith(prefix) for note in self.all())

    def open_gate(self) -> None:
        """Let what a stage of kind "gated" made go on."""
        Path(f"{self.path}.gate").touch()

    def often(self) -> Counter[str]:
        """How often each thing was executed."""
        return Counter(note.what for note in self.all())

    def once(self, *prefixes: str) -> bool:
        """Whether nothing of those names was executed twice."""
        return all(number == 1 for what, number in self.often().items() if what.startswith(prefixes or ("",)))


@contextmanager
def local_farm(directory: Path) -> Iterator[LocalFarm]:
    """A farm whose programs, ports and temporary files are gone in the end."""
    temporary = directory / "tmp"
    temporary.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(temporary))
        patch.setenv("HOME", str(directory))
        patch.setenv("PYTHONWARNINGS", "error")
        with LocalFarm(directory / "farm", grace_s=15) as farm:
            try:
                yield farm
            finally:
                tell(farm)
        addresses = {program.address for program in farm.programs.values() if program.role != "worker"}
    deadline = time.monotonic() + 5
    while left := processes_of(directory):
        assert time.monotonic() < deadline, left
        time.sleep(0.01)
    for address in filter(None, addresses):
        host, _, port = address.rpartition(":")
        with socket.socket() as probe:
            assert probe.connect_ex((host, int(port))) != 0, f"{address} is still served"
    assert list(temporary.iterdir()) == []
    for log in (directory / "farm" / "logs").glob("*.log"):
        assert "Traceback" not in log.read_text(), log.read_text()


def tell(farm: LocalFarm) -> None:
    """Print the logs: pytest shows them when the test has failed."""
    for log in sorted((farm.state_dir / "logs").glob("*.log")):
        print(f"---- {log.name}\n{log.read_text()[-4000:]}")  # noqa: T201 - for whoever reads the failure


def processes_of(directory: Path) -> list[str]:
    """Command lines of living processes that name the directory, this one apart."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().decode("utf-8", "replace").replace("\0", " ")
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if str(directory) in words and state != "Z" and int(path.name) != os.getpid():
            found.append(words)
    return found


async def until(condition: Callable[[], Any], what: str = "", timeout_s: float = PATIENCE_S) -> Any:
    """Poll until the condition, which may be awaitable, is true; its value."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what or condition}"
        await asyncio.sleep(0.01)


async def kill_and_restart(farm: LocalFarm, *names: str, pause: Callable[[], Any] | None = None) -> None:
    """SIGKILL to programs, one after the other, then start them again in that order; between the two `pause` comes true."""
    for name in names:
        await asyncio.to_thread(farm.kill, name)
    if pause is not None:
        await until(pause)
    for name in names:
        await asyncio.to_thread(farm.restart, name)


async def tasks_of(client: AsyncFarm, job_id: str) -> list[task_pb2.Task]:
    """All tasks of a job as ListTasks tells them."""
    request = task_pb2.ListTasksRequest(job_id=job_id, page_size=1_000)
    answer = await client.connection.tasks.ListTasks(request)
    assert not answer.next_page_token
    return list(answer.tasks)


async def worker_of(client: AsyncFarm, worker_id: str) -> worker_pb2.Worker:
    """One worker as its orchestrator sees it."""
    answer = await client.connection.workers.GetWorker(worker_pb2.GetWorkerRequest(worker_id=worker_id))
    worker: worker_pb2.Worker = answer.worker
    return worker


def memory_mib(pid: int, what: str = "VmRSS") -> float:
    """The memory that a process has; with VmHWM, the most that it ever had."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition(f"{what}:")[2].split()[0]) / 1024


async def connect(address: str, patience: float = PATIENCE_S) -> AsyncFarm:
    """A client. Use it as `async with await connect(...)`."""
    return await aio.connect(address, patience=patience)
