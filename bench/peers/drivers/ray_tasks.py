"""Ray, stateless tasks with two CPUs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import ray
from peer import SLOTS, Peer, burn, noop, serve


def system_pids() -> list[int]:
    """Processes of Ray's own programs: its control store, its scheduler of this node, its monitors."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
                marked = os.environ["BENCH_PEER"].encode() in (entry / "environ").read_bytes()
            except OSError:
                continue
            if marked and (b"gcs_server" in command or b"raylet/raylet" in command):
                found.append(int(entry.name))
    return found


def pid() -> int:
    """Of the process that runs it."""
    return os.getpid()


class RayTasks(Peer):
    """Tasks that Ray may repeat."""

    def start(self) -> None:
        ray.init(num_cpus=SLOTS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        self.remote = {function: ray.remote(function).options(max_retries=3) for function in (noop, burn)}

    def run(self, function: Callable[[int], int], count: int) -> Sequence[int]:
        remote = self.remote[function]
        return ray.get([remote.remote(number) for number in range(count)])

    def one(self, number: int) -> int:
        return ray.get(self.remote[noop].remote(number))

    def scheduler(self) -> Sequence[int]:
        return system_pids()

    def workers(self) -> Sequence[int]:
        return ray.get([ray.remote(pid).remote() for _ in range(20)])

    def stop(self) -> None:
        ray.shutdown()


if __name__ == "__main__":
    serve(RayTasks())
