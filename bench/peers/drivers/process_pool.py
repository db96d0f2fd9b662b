"""concurrent.futures.ProcessPoolExecutor: no queue but the caller's memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from peer import SLOTS, Peer, noop, serve


class ProcessPool(Peer):
    """Spawned processes, one task a message."""

    chunk = 1

    def start(self) -> None:
        self.pool = ProcessPoolExecutor(SLOTS, mp_context=get_context("spawn"))

    def run(self, function: Callable[[int], int], count: int) -> Sequence[int]:
        return list(self.pool.map(function, range(count), chunksize=self.chunk))

    def one(self, number: int) -> int:
        return self.pool.submit(noop, number).result()

    def workers(self) -> Sequence[int]:
        return list(self.pool._processes)

    def stop(self) -> None:
        self.pool.shutdown(cancel_futures=True)


if __name__ == "__main__":
    serve(ProcessPool())
