"""Many idle workers in one process, each with a link and a connection of its own: `python herd_workers.py ADDRESS FILE NAME ...`.

Each time one is attached it appends a line `NAME TIME` to the file.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time

from antfarm.link import Link, WorkerIdentity
from antfarm.v1 import work_queue_pb2


class _Idle:
    """Notes when it is attached, and is never given anything: it offers a task type that nobody submits."""

    def __init__(self, name: str, file: int) -> None:
        self._name, self._file = name, file

    def on_welcome(self, welcome: work_queue_pb2.Welcome) -> None:
        os.write(self._file, f"{self._name} {time.time()!r}\n".encode())

    def on_tasks(self, groups: list[work_queue_pb2.TaskGroup]) -> None:
        raise AssertionError("an idle worker was given a task")

    def on_revoke(self, tokens: list[tuple[str, int, int, int]], cause: str) -> None:
        raise AssertionError("an idle worker has nothing to give up")

    def on_drain(self, limit_s: float) -> None: ...


async def run(address: str, path: str, names: list[str]) -> None:
    """Serve until the process is ended."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def link(name: str) -> Link:
        identity = WorkerIdentity(worker_id=name, slots=1, window=1, task_types=("herd.nothing",))
        return Link(addresses=[address], identity=identity, handler=_Idle(name, file))

    await asyncio.gather(*(link(name).run() for name in names))


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], sys.argv[2], sys.argv[3:]))
