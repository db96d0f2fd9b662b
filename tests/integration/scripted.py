"""A real orchestrator in this process behind a real socket, and peers of it that do exactly what a test says."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from antfarm import net, program, wire
from antfarm.errors import AntFarmError
from antfarm.v1 import (
    common_pb2,
    job_pb2,
    job_pb2_grpc,
    report_queue_pb2,
    report_queue_pb2_grpc,
    system_pb2_grpc,
    task_pb2_grpc,
    work_queue_pb2,
    work_queue_pb2_grpc,
    worker_pb2_grpc,
)
from services.orchestrator.app import Orchestrator
from services.orchestrator.journal.sqlite import SqliteJournal
from services.orchestrator.settings import OrchestratorSettings

Token = tuple[str, int, int, int]
PATIENCE_S = 15.0
SUCCEEDED = report_queue_pb2.ENDING_SUCCEEDED
FAILED = report_queue_pb2.ENDING_FAILED
RELEASED = report_queue_pb2.ENDING_RELEASED
REVOKED = report_queue_pb2.ENDING_REVOKED


class Running:
    """An orchestrator that serves, and stubs of its services."""

    def __init__(self, settings: OrchestratorSettings) -> None:
        self.settings = settings
        self.address = ""
        self.orchestrator: Orchestrator
        self.journal: SqliteJournal
        self._stop: asyncio.Event
        self._task: asyncio.Task[int] | None = None
        self._channel: grpc.aio.Channel

    async def start(self) -> None:
        """Serve on a free port, or the one it had before. Stubs are fresh."""
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(program, "ready", lambda line: ready.set_result(line.rpartition(" ")[2]))
            patch.setattr(program, "tune_gc", lambda: None)
            self.journal = SqliteJournal(self.settings.state_directory)
            self._stop = asyncio.Event()
            self.orchestrator = Orchestrator(self.settings, self.journal, None)
            self._task = asyncio.create_task(self.orchestrator.run(self._stop))
            waiting: list[asyncio.Future[Any]] = [self._task, ready]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if self._task.done():
                self._task.result()
            self.address = ready.result()
        host, _, port = self.address.rpartition(":")
        self.settings = replace(self.settings, host=host, port=int(port))
        self._channel = net.open_channel(self.address, None)
        self.jobs: Any = job_pb2_grpc.JobServiceStub(self._channel)
        self.tasks: Any = task_pb2_grpc.TaskServiceStub(self._channel)
        self.workers: Any = worker_pb2_grpc.WorkerServiceStub(self._channel)
        self.system: Any = system_pb2_grpc.SystemServiceStub(self._channel)

    async def stop(self) -> None:
        """End it as SIGTERM does."""
        if self._task is None:
            return
        await self._channel.close()
        self._stop.set()
        task, self._task = self._task, None
        try:
            assert await asyncio.wait_for(task, PATIENCE_S) == 0
        finally:
            self.journal.close()

    async def restart(self) -> None:
        """End it and serve again from what its journal holds, on the same port."""
        await self.stop()
        await self.start()

    @property
    def channel(self) -> grpc.aio.Channel:
        """The clients' channel."""
        return self._channel

    # ---- clients ----------------------------------------------------------------------------------------------------

    async def create(
        self, job_id: str, payloads: int | Sequence[bytes] = 1, *, close: bool = True, **fields: Any
    ) -> job_pb2.CreateJobResponse:
        """CreateJob; `fields` are those of the template, or of the spec."""
        named = {name: fields.pop(name) for name in ("dependencies", "name", "max_failures", "labels") & fields.keys()}
        spec = job_pb2.JobSpec(template=common_pb2.TaskTemplate(**{"type": "t", **fields}), **named)
        request = job_pb2.CreateJobRequest(job_id=job_id, spec=spec, payloads=payloads_of(payloads), close=close)
        answer: job_pb2.CreateJobResponse = await self.jobs.CreateJob(request)
        return answer

    async def job(self, job_id: str) -> job_pb2.Job:
        """GetJob."""
        answer = await self.jobs.GetJob(job_pb2.GetJobRequest(job_id=job_id))
        job: job_pb2.Job = answer.job
        return job

    async def results(self, job_id: str, **fields: Any) -> list[common_pb2.TaskResult]:
        """StreamResults to its end."""
        return [result for message in await self.messages(job_id, **fields) for result in message.results]

    async def messages(self, job_id: str, **fields: Any) -> list[job_pb2.StreamResultsResponse]:
        """The messages of StreamResults to its end."""
        call = self.jobs.StreamResults(job_pb2.StreamResultsRequest(job_id=job_id, **fields), timeout=PATIENCE_S)
        return [message async for message in call]

    def worker(self, worker_id: str = "w1", **fields: Any) -> ScriptedWorker:
        """A scripted worker that has not attached."""
        return ScriptedWorker(self, worker_id, **fields)


@asynccontextmanager
async def orchestrator(directory: Path, heartbeat_s: float = 3.0) -> AsyncIterator[Running]:
    """An orchestrator for one `async with` block."""
    running = Running(OrchestratorSettings(port=0, state=str(directory), heartbeat_s=heartbeat_s))
    await running.start()
    try:
        yield running
    finally:
        await running.stop()


def payloads_of(payloads: int | Sequence[bytes], first: int = 0) -> list[bytes]:
    """That many distinct payloads, or those given."""
    return [b"[%d]" % i for i in range(first, first + payloads)] if isinstance(payloads, int) else list(payloads)


async def refusal(call: Any) -> AntFarmError:
    """The error that a call ends with."""
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return wire.error_from_rpc(error)
    raise AssertionError("it was not refused")


async def poll(condition: Callable[[], Awaitable[Any]], what: str = "") -> Any:
    """Ask until the answer is true; the answer."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        answer = await condition()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: {what}"
        await asyncio.sleep(0.005)


async def to_the_end(call: Any, *first: Any) -> None:
    """Send frames, then read until the other side ends the call."""
    for frame in first:
        await call.write(frame)
    while await asyncio.wait_for(call.read(), PATIENCE_S) is not grpc.aio.EOF:
        pass


def counts(job: job_pb2.Job) -> dict[str, int]:
    """Tasks of a job by state."""
    prefix = len("TASK_STATE_")
    return {common_pb2.TaskState.Name(entry.state)[prefix:]: entry.count for entry in job.counts}


class ScriptedWorker:
    """Speaks both queues by hand. It holds what it was given until a final verdict, as the protocol says, and beats when told to."""

    def __init__(
        self,
        running: Running,
        worker_id: str,
        *,
        types: Sequence[str] = ("t",),
        slots: int = 1,
        window: int | None = None,
    ) -> None:
        self._running = running
        self.worker_id = worker_id
        self.types = types
        self.slots = slots
        self.window = slots if window is None else window
        self.incarnation = os.urandom(16)
        self.held: dict[Token, bytes] = {}
        self.reported: dict[int, Token] = {}
        self.given: list[Token] = []
        """Every assignment that ever came, in order."""
        self.in_columns = 0
        """How many of them came in columns."""
        self.revoked: list[Token] = []
        self.drain_asked = False
        self.acks: list[int] = []
        self.frames = 0
        self.beats = 0
        self.epoch_seen = 0
        self.end: AntFarmError | None = None
        """How the Work Queue ended."""
        self._next_report = 1
        self._changed = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._channel: grpc.aio.Channel | None = None

    async def attach(self, **changes: Any) -> work_queue_pb2.Welcome:
        """Hello, Welcome, ReportHello. Raises what Hello is refused with. `changes` are fields of Hello."""
        await self.drop()
        self._channel = net.open_channel(self._running.address, None)
        self.frames = self.beats = 0
        self.end = None
        self._work: Any = work_queue_pb2_grpc.WorkQueueServiceStub(self._channel).PullTasks()
        fields: dict[str, Any] = {
            "protocol_major": 1,
            "worker_id": self.worker_id,
            "incarnation": self.incarnation,
            "slots": self.slots,
            "window": self.window,
            "task_types": self.types,
            "max_epoch_seen": self.epoch_seen,
            "held": wire.tokens_to_wire(list(self.held)),
            **changes,
        }
        try:
            await self._write(hello=work_queue_pb2.Hello(**fields))
            frame: Any = await asyncio.wait_for(self._work.read(), PATIENCE_S)
            if frame is grpc.aio.EOF:
                raise AssertionError(f"no welcome: {await self._work.code()} {await self._work.details()}")
        except grpc.aio.AioRpcError as error:
            await self.drop()
            raise wire.error_from_rpc(error) from None
        welcome: work_queue_pb2.Welcome = frame.welcome
        assert welcome.session_id, f"the first frame is no Welcome: {frame}"
        self.epoch_seen = welcome.epoch
        for token in wire.tokens_from_wire(welcome.revoked):
            self.held.pop(token, None)
            self.revoked.append(token)
        self._reports: Any = report_queue_pb2_grpc.ReportQueueServiceStub(self._channel).PushReports()
        hello = report_queue_pb2.ReportHello(session_id=welcome.session_id)
        await self._reports.write(report_queue_pb2.PushReportsRequest(hello=hello))
        self._reader = asyncio.create_task(self._read())
        return welcome

    async def reports_are_open(self) -> None:
        """Wait until the Report Queue has answered our hello there."""
        await asyncio.wait_for(self._reports.initial_metadata(), PATIENCE_S)
        assert not self._reports.done(), "it has ended, with this worker's lease, and nothing came before"

    async def _write(self, **frame: Any) -> None:
        await self._work.write(work_queue_pb2.PullTasksRequest(**frame))

    async def _read(self) -> None:
        try:
            while (frame := await self._work.read()) is not grpc.aio.EOF:
                self._take(frame)
                self._changed.set()
        except grpc.aio.AioRpcError as error:
            self.end = wire.error_from_rpc(error)
        finally:
            self._changed.set()

    def _take(self, frame: work_queue_pb2.PullTasksResponse) -> None:
        match frame.WhichOneof("frame"):
            case "tasks":
                self.frames += 1
                for group in frame.tasks.groups:
                    for index, attempt, payload, _, _ in wire.assigned_in(group):
                        token = (group.job_id, index, group.epoch, attempt)
                        assert token not in self.held, f"given twice: {token}"
                        self.held[token] = payload
                        self.given.append(token)
                    self.in_columns += len(group.columns.indices)
            case "revoke":
                self.revoked.extend(wire.tokens_from_wire(frame.revoke.attempts))
            case "heartbeat_ack":
                self.acks.append(frame.heartbeat_ack.number)
                for token in wire.tokens_from_wire(frame.heartbeat_ack.revoked):
                    self.held.pop(token, None)
                    self.revoked.append(token)
            case "drain":
                self.drain_asked = True

    async def ended(self) -> AntFarmError:
        """Wait until the orchestrator ended the Work Queue; why it did."""
        assert self._reader is not None
        await asyncio.wait_for(asyncio.shield(self._reader), PATIENCE_S)
        assert self.end is not None, "it ended without an error"
        return self.end

    async def until(self, condition: Any, what: str = "") -> None:
        """Wait until frames made the condition true."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                assert self.end is None, f"the stream ended: {self.end}"
                self._changed.clear()
                await self._changed.wait()

    async def tasks(self, count: int = 1) -> list[Token]:
        """The first `count` of what is held and not reported, once there are that many."""
        await self.until(lambda: len(self.free()) >= count)
        return self.free()[:count]

    def free(self) -> list[Token]:
        """What is held and not reported."""
        reported = set(self.reported.values())
        return [token for token in self.held if token not in reported]

    async def beat(self, held: Iterable[Token] | None = None) -> None:
        """One heartbeat, and its acknowledgement."""
        self.beats += 1
        tokens = list(self.held if held is None else held)
        await self._write(
            heartbeat=work_queue_pb2.Heartbeat(
                number=self.beats, tasks_frames_received=self.frames, held=wire.tokens_to_wire(tokens)
            )
        )
        number = self.beats
        await self.until(lambda: number in self.acks)

    async def credit(self, window: int) -> None:
        """Set the window."""
        await self._write(credit=work_queue_pb2.Credit(window=window))

    async def goodbye(self) -> None:
        """Leave for good."""
        await self._write(goodbye=work_queue_pb2.Goodbye(cause="the test is over"))
        assert self._reader is not None
        await asyncio.wait_for(asyncio.shield(self._reader), PATIENCE_S)

    async def send(self, *tokens: Token, ending: Any = SUCCEEDED, **fields: Any) -> dict[int, Token]:
        """Send reports; do not wait for a verdict. Returns their numbers."""
        numbers: dict[int, Token] = {}
        reports = report_queue_pb2.Reports()
        for token in tokens:
            job_id, index, epoch, attempt = token
            number, self._next_report = self._next_report, self._next_report + 1
            numbers[number] = token
            result = b"%d" % index if ending == SUCCEEDED else b""
            outcome = report_queue_pb2.Outcome(
                **{
                    "report_no": number,
                    "index": index,
                    "attempt": attempt,
                    "ending": ending,
                    "result": result,
                    **fields,
                }
            )
            if not reports.outcomes or (reports.outcomes[-1].job_id, reports.outcomes[-1].epoch) != (job_id, epoch):
                reports.outcomes.add(job_id=job_id, epoch=epoch)
            reports.outcomes[-1].outcomes.append(outcome)
        self.reported.update(numbers)
        await self._reports.write(report_queue_pb2.PushReportsRequest(reports=reports))
        return numbers

    async def report(self, *tokens: Token, ending: Any = SUCCEEDED, **fields: Any) -> list[str]:
        """Send reports in one frame and wait for all their verdicts, told in the order of the tokens."""
        numbers = await self.send(*tokens, ending=ending, **fields)
        found: dict[int, str] = {}
        async with asyncio.timeout(PATIENCE_S):
            while found.keys() != numbers.keys():
                frame = await self._reports.read()
                if frame is grpc.aio.EOF:
                    raise AssertionError(f"the Report Queue ended: {await self._reports.details()}")
                for verdict in frame.verdicts:
                    name = report_queue_pb2.VerdictCode.Name(verdict.code).removeprefix("VERDICT_CODE_")
                    for number in verdict.report_nos:
                        found[number] = name
                        self.held.pop(self.reported[number], None)
        return [found[number] for number in numbers]

    async def say(self, token: Token, **fields: Any) -> None:
        """A word of a running attempt."""
        job_id, index, epoch, attempt = token
        word = report_queue_pb2.Running(job_id=job_id, index=index, epoch=epoch, attempt=attempt, **fields)
        await self._reports.write(report_queue_pb2.PushReportsRequest(reports=report_queue_pb2.Reports(running=[word])))

    async def work(self, count: int) -> None:
        """Run `count` tasks as they come, whatever a window brings in one frame."""
        done = 0
        while done < count:
            await self.tasks()
            tokens = self.free()[: count - done]
            assert set(await self.report(*tokens)) == {"ACCEPTED"}
            done += len(tokens)

    async def drop(self) -> None:
        """Lose the connection without a word."""
        if self._channel is None:
            return
        channel, self._channel = self._channel, None
        await channel.close()
        if self._reader is not None:
            with suppress(asyncio.CancelledError):
                await self._reader
            self._reader = None
