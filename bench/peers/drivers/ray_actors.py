"""Ray, two actors that are called by turns: its fastest way for small calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ray
from peer import SLOTS, serve
from ray_tasks import RayTasks


@ray.remote(max_restarts=-1, max_task_retries=-1)
class Runner:
    """Runs what it is given."""

    def call(self, function: Callable[[int], int], number: int) -> int:
        """One call."""
        return function(number)

    def noop(self, number: int) -> int:
        """The empty task."""
        return number

    def pid(self) -> int:
        """Of its process."""
        import os

        return os.getpid()


class RayActors(RayTasks):
    """Calls to actors keep their order and their process."""

    def start(self) -> None:
        super().start()
        self.runners = [Runner.remote() for _ in range(SLOTS)]

    def run(self, function: Callable[[int], int], count: int) -> Sequence[int]:
        if function.__name__ == "noop":
            return ray.get([self.runners[number % SLOTS].noop.remote(number) for number in range(count)])
        shared = ray.put(function)
        return ray.get([self.runners[number % SLOTS].call.remote(shared, number) for number in range(count)])

    def one(self, number: int) -> int:
        return ray.get(self.runners[0].noop.remote(number))

    def workers(self) -> Sequence[int]:
        return ray.get([runner.pid.remote() for runner in self.runners])

    def hold(self, count: int) -> bool:
        return False


if __name__ == "__main__":
    serve(RayActors())
