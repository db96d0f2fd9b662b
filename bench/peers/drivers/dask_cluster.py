"""Dask distributed: LocalCluster with two processes of one thread each."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence

from distributed import Client, LocalCluster
from peer import SLOTS, Peer, noop, serve

logging.getLogger("distributed").setLevel(logging.ERROR)


class Dask(Peer):
    """The scheduler lives in the caller's process, as LocalCluster does it."""

    def start(self) -> None:
        self.cluster = LocalCluster(
            n_workers=SLOTS, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
        )
        self.client = Client(self.cluster)

    def run(self, function: Callable[[int], int], count: int) -> Sequence[int]:
        return self.client.gather(self.client.map(function, range(count), pure=False))

    def one(self, number: int) -> int:
        return self.client.submit(noop, number, pure=False).result()

    def scheduler(self) -> Sequence[int]:
        return [os.getpid()]

    def workers(self) -> Sequence[int]:
        return list(self.client.run(os.getpid).values())

    def hold(self, count: int) -> bool:
        self.held = self.client.map(noop, range(count), pure=False, resources={"nobody": 1})
        return True

    def stop(self) -> None:
        self.client.close()
        self.cluster.close()


if __name__ == "__main__":
    serve(Dask())
