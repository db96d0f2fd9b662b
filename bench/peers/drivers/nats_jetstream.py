"""NATS JetStream as a raw queue: a work-queue stream on files, two workers that pull, run, publish the result and acknowledge.

No task state, no retries by class, no results that are kept: the least that a durable queue can do. `BENCH_NATS_SYNC=always` syncs each write.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import nats
import peer
from nats.js.api import ConsumerConfig, RetentionPolicy, StreamConfig
from peer import SLOTS, Peer, serve

FUNCTIONS = {"noop": peer.noop, "burn": peer.burn}
FETCHED = 64
"""Tasks a worker asks for at a time."""


async def work(url: str) -> None:
    """A worker process."""
    client = await nats.connect(url)
    stream = client.jetstream()
    tasks = await stream.pull_subscribe("tasks", durable="workers", stream="TASKS")
    while True:
        try:
            messages = await tasks.fetch(FETCHED, timeout=5)
        except (TimeoutError, nats.errors.TimeoutError):
            continue
        for message in messages:
            order = json.loads(message.data)
            value = FUNCTIONS[order["function"]](order["number"])
            await client.publish(order["reply"], b"%d %d" % (order["number"], value))
            await message.ack()


class Nats(Peer):
    """The caller counts the results."""

    def start(self) -> None:
        program = shutil.which("nats-server") or str(Path(sys.executable).with_name("nats-server"))
        sync = os.environ.get("BENCH_NATS_SYNC", "2m")
        configuration = Path("nats.conf")
        configuration.write_text(
            f'host: 127.0.0.1\nport: -1\nports_file_dir: "."\njetstream {{ store_dir: "{Path("nats").absolute()}", sync_interval: {sync} }}\n'
        )
        self.server = subprocess.Popen([program, "-c", str(configuration)], stderr=subprocess.DEVNULL)
        while not (ports := list(Path().glob("*.ports"))):
            time.sleep(0.01)
        while not (text := ports[0].read_text()):
            time.sleep(0.01)
        self.url = json.loads(text)["nats"][0]
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self._connect())
        command = [sys.executable, __file__, "work", self.url]
        self.programs = [subprocess.Popen(command) for _ in range(SLOTS)]

    async def _connect(self) -> None:
        self.client = await nats.connect(self.url)
        self.stream = self.client.jetstream(publish_async_max_pending=4096)
        subjects = StreamConfig(name="TASKS", subjects=["tasks", "nobody"], retention=RetentionPolicy.WORK_QUEUE)
        await self.stream.add_stream(subjects)
        consumer = ConsumerConfig(durable_name="workers", filter_subject="tasks", ack_wait=30, max_ack_pending=4096)
        await self.stream.add_consumer("TASKS", consumer)

    async def _many(self, function: Callable[[int], int], numbers: Sequence[int]) -> list[int]:
        inbox = self.client.new_inbox()
        results: dict[int, int] = {}
        done = asyncio.get_running_loop().create_future()

        async def take(message: nats.aio.msg.Msg) -> None:
            number, value = map(int, message.data.split())
            results[number] = value
            if len(results) == len(numbers) and not done.done():
                done.set_result(None)

        subscription = await self.client.subscribe(inbox, cb=take)
        for number in numbers:
            order = {"function": function.__name__, "number": number, "reply": inbox}
            await self.stream.publish_async("tasks", json.dumps(order).encode(), wait_stall=60)
        await self.stream.publish_async_completed()
        await done
        await subscription.unsubscribe()
        return [results[number] for number in numbers]

    def run(self, function: Callable[[int], int], count: int) -> Sequence[int]:
        return self.loop.run_until_complete(self._many(function, range(count)))

    def one(self, number: int) -> int:
        return self.loop.run_until_complete(self._many(peer.noop, [number]))[0]

    def scheduler(self) -> Sequence[int]:
        return [self.server.pid]

    def workers(self) -> Sequence[int]:
        return [program.pid for program in self.programs]

    def revive(self) -> bool:
        self.programs.append(subprocess.Popen([sys.executable, __file__, "work", self.url]))
        return True

    async def _hold(self, count: int) -> None:
        for number in range(count):
            await self.stream.publish_async("nobody", b'{"number": %d}' % number, wait_stall=60)
        await self.stream.publish_async_completed()

    def hold(self, count: int) -> bool:
        self.loop.run_until_complete(self._hold(count))
        return True

    def stop(self) -> None:
        for program in self.programs:
            program.kill()
            program.wait()
        self.server.terminate()
        self.server.wait(10)


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        asyncio.run(work(sys.argv[2]))
    else:
        serve(Nats())
