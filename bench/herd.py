"""The programs of `bench.idle`: many idle workers in one process, real or raw, and the server that the raw ones talk to.

    python -m bench.herd serve HEARTBEAT_S                           says `ready on ADDRESS`
    python -m bench.herd links|streams ADDRESS NAME COUNT PER_S      says `attached`, then answers each line with `ATTACHED BROKEN`
    python -m bench.herd beats ADDRESS                               says `attached`, then answers each line with `BEATS SLOWEST_MS`

A raw worker has what a real one has while it is idle: a connection of its own, a Work Queue on which it beats and is answered, and a silent Report
Queue, all in the messages and with the gRPC options of the farm. What is missing is the farm: no session, no lease, no core, one coroutine a stream.
Every program ends with its standard input, so with whoever started it.
"""

# ruff: noqa: N802 - methods have the names of their RPCs
from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import grpc.aio
import uvloop

from antfarm import net, wire
from antfarm.link import Link, WorkerIdentity
from antfarm.model import PROTOCOL_MAJOR, PROTOCOL_MINOR, SECOND_NS
from antfarm.program import tune_gc
from antfarm.v1 import report_queue_pb2, report_queue_pb2_grpc, work_queue_pb2, work_queue_pb2_grpc

Stream = grpc.aio.StreamStreamCall[Any, Any]

BEAT_S = 0.02
"""Between two heartbeats of the worker that does nothing else."""
BEATS_MISSED_MAX = 3
"""A raw worker whose last answer is older than this many beats counts as not attached."""


class RawWorkQueue(work_queue_pb2_grpc.WorkQueueServiceServicer):
    """Answers each beat with its number."""

    def __init__(self, heartbeat_s: float) -> None:
        heartbeat = wire.duration_to_wire(round(heartbeat_s * SECOND_NS))
        self._welcome = work_queue_pb2.PullTasksResponse(welcome=work_queue_pb2.Welcome(heartbeat=heartbeat))

    async def PullTasks(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        """Welcome, then answers until the worker ends."""
        await context.read()
        await context.write(self._welcome)
        while (frame := await context.read()) is not grpc.aio.EOF:
            ack = work_queue_pb2.HeartbeatAck(number=frame.heartbeat.number)
            await context.write(work_queue_pb2.PullTasksResponse(heartbeat_ack=ack))


class RawReportQueue(report_queue_pb2_grpc.ReportQueueServiceServicer):
    """Open and silent."""

    async def PushReports(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        """Read until the worker ends."""
        await context.send_initial_metadata(())
        while await context.read() is not grpc.aio.EOF:
            pass


async def serve(heartbeat_s: float) -> None:
    """Serve raw workers until the process is ended; garbage collection is set as in every program of the farm."""
    questions()
    server = net.make_server()
    work_queue_pb2_grpc.add_WorkQueueServiceServicer_to_server(RawWorkQueue(heartbeat_s), server)
    report_queue_pb2_grpc.add_ReportQueueServiceServicer_to_server(RawReportQueue(), server)
    port = net.bind(server, "127.0.0.1", 0, None, insecure=False)
    await server.start()
    tune_gc()
    print(f"ready on 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


class Idle(Protocol):
    """A worker that does nothing but live."""

    @property
    def breaks(self) -> int:
        """How often it lost its connection."""
        ...

    @property
    def attached(self) -> bool:
        """True while it is welcome, connected and answered."""
        ...

    async def run(self) -> None:
        """Attach and beat until cancelled."""
        ...


class LinkedWorker:
    """A real link. It offers a task type that nobody submits."""

    def __init__(self, address: str, name: str) -> None:
        self._welcomes = 0
        identity = WorkerIdentity(worker_id=name, slots=1, window=1, task_types=("bench.nothing",))
        self._link = Link(addresses=[address], identity=identity, handler=self)

    @property
    def attached(self) -> bool:
        """True while the link is, and its beats are acknowledged."""
        return self._link.attached and not self._link.self_lease_over

    @property
    def breaks(self) -> int:
        """Welcomes after the first."""
        return max(self._welcomes - 1, 0)

    async def run(self) -> None:
        """The link's life."""
        await self._link.run()

    def on_welcome(self, welcome: work_queue_pb2.Welcome) -> None:
        """Attached, for the first time or again."""
        self._welcomes += 1

    def on_tasks(self, groups: list[work_queue_pb2.TaskGroup]) -> None:
        """Not to be: nobody submits its type."""
        raise AssertionError("an idle worker was given a task")

    def on_revoke(self, tokens: list[tuple[str, int, int, int]], cause: str) -> None:
        """Not to be: it holds nothing."""
        raise AssertionError("an idle worker has nothing to give up")

    def on_drain(self, limit_s: float) -> None:
        """It holds nothing that it could finish."""


class RawWorker:
    """Two bare streams on a connection of their own; the beat comes as often as the server says."""

    def __init__(self, address: str, name: str) -> None:
        self._address = address
        self._name = name
        self._heartbeat_s = 0.0
        self._answered_at = 0.0
        self._over = False

    @property
    def breaks(self) -> int:
        """0 or 1: its stream is not opened again, because one that breaks has spoilt the measurement anyway."""
        return int(self._over)

    @property
    def attached(self) -> bool:
        """True while its beats are answered."""
        silent_s = asyncio.get_running_loop().time() - self._answered_at
        return self._answered_at > 0 and silent_s < BEATS_MISSED_MAX * self._heartbeat_s

    async def run(self) -> None:
        """Beat until the stream breaks."""
        channel = net.open_channel(self._address)
        try:
            await self._beat(await self._attach(channel))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the latter: a write into a stream that is over
            pass
        finally:
            self._over = True
            self._answered_at = 0.0
            await channel.close()

    async def _attach(self, channel: grpc.aio.Channel) -> Stream:
        work: Stream = work_queue_pb2_grpc.WorkQueueServiceStub(channel).PullTasks()
        hello = work_queue_pb2.Hello(worker_id=self._name, incarnation=os.urandom(16), slots=1, window=1)
        await work.write(work_queue_pb2.PullTasksRequest(hello=hello))
        welcome: Any = await work.read()
        if welcome is not grpc.aio.EOF:
            self._heartbeat_s = wire.duration_from_wire(welcome.welcome.heartbeat) / SECOND_NS
        self._reports: Stream = report_queue_pb2_grpc.ReportQueueServiceStub(channel).PushReports()
        first = report_queue_pb2.ReportHello(session_id=self._name)
        await self._reports.write(report_queue_pb2.PushReportsRequest(hello=first))
        return work

    async def _beat(self, work: Stream) -> None:
        now = asyncio.get_running_loop().time
        number, answer, next_beat = 0, None, now() + self._heartbeat_s
        while answer is not grpc.aio.EOF:
            self._answered_at = now()
            await asyncio.sleep(next_beat - now())
            next_beat = now() + self._heartbeat_s
            number += 1
            beat = work_queue_pb2.Heartbeat(number=number)
            await work.write(work_queue_pb2.PullTasksRequest(heartbeat=beat))
            answer = await work.read()


async def host(make: Callable[[str, str], Idle], address: str, name: str, count: int, per_s: float) -> None:
    """Start that many workers, so many a second: beats are then spread over time as those of workers that came one by one."""
    asked = questions()
    workers = [make(address, f"{name}-{number}") for number in range(count)]
    tasks = []
    for worker in workers:
        tasks.append(asyncio.create_task(worker.run()))
        await asyncio.sleep(1 / per_s)
    while not all(worker.attached for worker in workers):
        for task in tasks:
            if task.done():
                task.result()  # what no further dial can cure ends the program
        await asyncio.sleep(0.1)
    print("attached", flush=True)
    while True:
        await asked.wait()
        asked.clear()
        print(sum(worker.attached for worker in workers), sum(worker.breaks for worker in workers), flush=True)


def questions() -> asyncio.Event:
    """An event that each line of standard input sets. The end of the input ends the process."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()

    def read() -> None:
        for _ in sys.stdin:
            loop.call_soon_threadsafe(event.set)
        os._exit(0)  # nothing is worth tidying, and thousands of connections go at once with the process

    threading.Thread(target=read, daemon=True).start()
    return event


async def beat(address: str) -> None:
    """Attach, say `attached`, beat; answer each line of standard input with the count of beats since the last and the slowest in ms."""
    asked = questions()
    async with net.open_channel(address) as channel:
        work: Any = work_queue_pb2_grpc.WorkQueueServiceStub(channel).PullTasks()
        hello = work_queue_pb2.Hello(
            protocol_major=PROTOCOL_MAJOR,
            protocol_minor=PROTOCOL_MINOR,
            worker_id="beating",
            incarnation=os.urandom(16),
            slots=1,
            window=1,
            task_types=["bench.nothing"],
            dial=1,
        )
        await work.write(work_queue_pb2.PullTasksRequest(hello=hello))
        welcome = await work.read()
        reports: Any = report_queue_pb2_grpc.ReportQueueServiceStub(channel).PushReports()
        first = report_queue_pb2.ReportHello(session_id=welcome.welcome.session_id)
        await reports.write(report_queue_pb2.PushReportsRequest(hello=first))
        print("attached", flush=True)
        waits_ms: list[float] = []
        for number in range(1, sys.maxsize):
            waits_ms.append(await answer_ms(work, number))
            if asked.is_set():
                asked.clear()
                print(len(waits_ms), round(max(waits_ms)), flush=True)
                waits_ms.clear()
            await asyncio.sleep(BEAT_S)


async def answer_ms(work: Any, number: int) -> float:
    """Send one heartbeat and wait for its answer, in ms."""
    began = time.perf_counter()
    await work.write(work_queue_pb2.PullTasksRequest(heartbeat=work_queue_pb2.Heartbeat(number=number)))
    while (frame := await work.read()) is not grpc.aio.EOF:
        if frame.heartbeat_ack.number == number:
            return 1e3 * (time.perf_counter() - began)
    raise SystemExit("the orchestrator hung up")


def main() -> None:
    """Read the words, then serve or host."""
    logging.disable(logging.WARNING)  # a link that dials again says so; the answers count it
    match sys.argv[1:]:
        case ["serve", heartbeat_s]:
            uvloop.run(serve(float(heartbeat_s)))
        case ["links", address, name, count, per_s]:
            uvloop.run(host(LinkedWorker, address, name, int(count), float(per_s)))
        case ["streams", address, name, count, per_s]:
            uvloop.run(host(RawWorker, address, name, int(count), float(per_s)))
        case ["beats", address]:
            uvloop.run(beat(address))
        case _:
            raise SystemExit(
                "python -m bench.herd serve HEARTBEAT_S | links|streams ADDRESS NAME COUNT PER_S | beats ADDRESS"
            )


if __name__ == "__main__":
    main()
