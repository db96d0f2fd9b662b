"""Celery with Redis as broker and result store: prefork with two processes, late acknowledgement."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import celery
import peer
from peer import SLOTS, Peer, serve
from redis_broker import SOCKET, Redis

app = celery.Celery("celery_redis", broker=f"redis+socket://{SOCKET}", backend=f"redis+socket://{SOCKET}")
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=64,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)
noop = app.task(name="noop")(peer.noop)
burn = app.task(name="burn")(peer.burn)


class Celery(Peer):
    """As its documentation sets it up for tasks that must not be lost with their worker."""

    def start(self) -> None:
        self.redis = Redis()
        path = os.path.dirname(os.path.abspath(__file__))
        command = [sys.executable, "-m", "celery", "-A", "celery_redis", "worker", "-c", str(SLOTS), "-l", "ERROR"]
        self.worker = subprocess.Popen(
            [*command, "--without-gossip", "--without-mingle"],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
        )

    def run(self, function: Callable[[int], int], count: int) -> Sequence[int]:
        task = burn if function is peer.burn else noop
        group = celery.group(task.s(number) for number in range(count))()
        return group.get(disable_sync_subtasks=False)

    def one(self, number: int) -> int:
        return noop.delay(number).get()

    def scheduler(self) -> Sequence[int]:
        return [self.redis.server.pid]

    def workers(self) -> Sequence[int]:
        replies = app.control.inspect(timeout=3).stats() or {}
        return [pid for stats in replies.values() for pid in stats["pool"]["processes"]]

    def hold(self, count: int) -> bool:
        for number in range(count):
            noop.apply_async((number,), queue="nobody")
        return True

    def stop(self) -> None:
        self.worker.terminate()
        self.worker.wait(30)
        self.redis.stop()


if __name__ == "__main__":
    sys.modules["celery_redis"] = sys.modules["__main__"]
    serve(Celery())
