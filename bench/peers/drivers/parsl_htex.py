"""Parsl with its high-throughput executor: two worker processes, prefetch of 64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider
from peer import SLOTS, Peer, burn, noop, serve


class Parsl(Peer):
    """Functions are sent by value; failed tasks are retried."""

    def start(self) -> None:
        executor = HighThroughputExecutor(
            label="htex",
            address="127.0.0.1",
            max_workers_per_node=SLOTS,
            prefetch_capacity=64,
            encrypted=False,
            provider=LocalProvider(init_blocks=1, max_blocks=1, min_blocks=1),
        )
        self.kernel = parsl.load(Config(executors=[executor], retries=3, run_dir="parsl", usage_tracking=0))
        self.apps = {function: parsl.python_app(function) for function in (noop, burn)}

    def run(self, function: Callable[[int], int], count: int) -> Sequence[int]:
        app = self.apps[function]
        return [future.result() for future in [app(number) for number in range(count)]]

    def one(self, number: int) -> int:
        return self.apps[noop](number).result()

    def stop(self) -> None:
        self.kernel.cleanup()
        parsl.clear()


if __name__ == "__main__":
    serve(Parsl())
