"""AntFarm: an orchestrator with its durable journal, one worker of two slots, functions in processes of their own, Storage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import antfarm_tasks
from peer import SLOTS, Peer, burn, serve

import antfarm as af
from antfarm.local import LocalFarm

TASKS = Path(__file__).with_name("antfarm_tasks.py")


class AntFarm(Peer):
    """As users start it, on this machine."""

    def start(self) -> None:
        self.local = LocalFarm()
        self.local.start_storage()
        self.local.start_orchestrator()
        self.local.start_worker(slots=SLOTS, app=[str(TASKS)])
        self.farm = af.connect(self.local.address)

    def run(self, function: Callable[[int], int], count: int) -> Sequence[int]:
        task = antfarm_tasks.burn if function is burn else antfarm_tasks.noop
        job = self.farm.map(task, range(count))
        results = list(job.results())
        job.purge()
        return results

    def one(self, number: int) -> int:
        return self.farm.submit(antfarm_tasks.noop, number).result()

    def scheduler(self) -> Sequence[int]:
        return [self.local.program("orchestrator").pid]

    def workers(self) -> Sequence[int]:
        return [program.pid for name, program in self.local.programs.items() if name.startswith("worker-")]

    def revive(self) -> bool:
        self.local.restart("worker-1")
        return True

    def hold(self, count: int) -> bool:
        self.farm.map("bench.nobody", range(count))
        return True

    def stop(self) -> None:
        self.farm.close()
        self.local.stop()


if __name__ == "__main__":
    serve(AntFarm())
