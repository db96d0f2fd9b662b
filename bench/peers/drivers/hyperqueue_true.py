"""HyperQueue: a server with a worker of two cores in a process of its own; each task starts the program `true`, its kind of task."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hyperqueue import Client, Job
from peer import SLOTS, Peer, serve

SERVER = """
import sys
from hyperqueue import LocalCluster
from hyperqueue.cluster import WorkerConfig
cluster = LocalCluster(sys.argv[1], WorkerConfig(cores=int(sys.argv[2])))
print("serves", cluster.cluster.server_dir, flush=True)
sys.stdin.read()
"""


class HyperQueue(Peer):
    """Its tasks give no results back: that all have succeeded is what can be asked. The journal is off, as by default."""

    no_trips = "its Python client asks once a second whether a job has ended"

    def start(self) -> None:
        directory = Path("hq").absolute()
        directory.mkdir()
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(directory), str(SLOTS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        served = next(line.split()[1] for line in self.server.stdout if line.startswith("serves "))
        self.client = Client(served)

    def add(self, job: Job, function: Callable[[int], int], number: int) -> None:
        """One task."""
        job.program(["true"], stdout=None, stderr=None)

    def run(self, function: Callable[[int], int], count: int) -> Sequence[int]:
        job = Job()
        for number in range(count):
            self.add(job, function, number)
        submitted = self.client.submit(job)
        self.client.wait_for_jobs([submitted])
        self.client.forget(submitted)
        return range(count)

    def one(self, number: int) -> int:
        self.run(_, 1)
        return number

    def scheduler(self) -> Sequence[int]:
        return [self.server.pid]

    def stop(self) -> None:
        self.server.stdin.close()
        self.server.wait(20)


def _(number: int) -> int:
    return number


if __name__ == "__main__":
    serve(HyperQueue())
