"""taskiq with a Redis stream as broker and Redis as result store: two worker processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import peer
import taskiq_redis
from peer import SLOTS, Peer, serve
from redis_broker import SOCKET, Redis

URL = f"unix://{SOCKET}"
broker = taskiq_redis.RedisStreamBroker(URL).with_result_backend(
    taskiq_redis.RedisAsyncResultBackend(URL, result_ex_time=600)
)
noop = broker.task(task_name="noop")(peer.noop)
burn = broker.task(task_name="burn")(peer.burn)


class Taskiq(Peer):
    """Results are awaited one after the other, as its interface has it."""

    def start(self) -> None:
        self.redis = Redis()
        path = os.path.dirname(os.path.abspath(__file__))
        command = [sys.executable, "-m", "taskiq", "worker", "taskiq_streams:broker", "-w", str(SLOTS)]
        self.worker = subprocess.Popen(
            [*command, "--max-async-tasks", "1", "--log-level", "ERROR"],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
        )
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(broker.startup())

    async def _many(self, function: Callable[[int], int], numbers: Sequence[int]) -> list[int]:
        task = burn if function is peer.burn else noop
        handles = [await task.kiq(number) for number in numbers]
        return [(await handle.wait_result(check_interval=0.001)).return_value for handle in handles]

    def run(self, function: Callable[[int], int], count: int) -> Sequence[int]:
        return self.loop.run_until_complete(self._many(function, range(count)))

    def one(self, number: int) -> int:
        return self.loop.run_until_complete(self._many(peer.noop, [number]))[0]

    def scheduler(self) -> Sequence[int]:
        return [self.redis.server.pid]

    def workers(self) -> Sequence[int]:
        children = f"/proc/{self.worker.pid}/task/{self.worker.pid}/children"
        return [int(pid) for pid in open(children).read().split()]

    def stop(self) -> None:
        self.loop.run_until_complete(broker.shutdown())
        self.worker.terminate()
        self.worker.wait(30)
        self.redis.stop()


if __name__ == "__main__":
    sys.modules["taskiq_streams"] = sys.modules["__main__"]
    serve(Taskiq())
