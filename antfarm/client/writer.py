"""Sending a job so that nothing is lost: `JobWriter` in batches, `Feed` from sources of unknown pace.

A job is created with its first batch; what follows is streamed, and after a broken call what was not acknowledged is sent again: the orchestrator
knows by index and content what it has. What is not acknowledged yet is kept (a few MiB), so memory is constant however many tasks a source yields.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TypeAlias

import grpc.aio

from antfarm import model, net
from antfarm.client.connection import REFUSALS, Connection
from antfarm.errors import AntFarmError, Conflict, JobClosed, Weather
from antfarm.model import BATCH_BYTES_MAX, JobSpec
from antfarm.v1 import job_pb2
from antfarm.wire import error_from_rpc, spec_to_wire

BATCH_TASKS_MAX = 4_000
"""Payloads in one message: enough to cost nothing, few enough to arrive evenly."""
_WINDOW_BATCHES = 8
"""Batches under way in one AppendTasks call; each call's answer makes them durable."""
_LOOK_S = 2.0
_FEED_BYTES_MAX = 4 * BATCH_BYTES_MAX
_FEED_TASKS_MAX = 4 * BATCH_TASKS_MAX

_AppendCall: TypeAlias = "grpc.aio.StreamUnaryCall[job_pb2.AppendTasksRequest, job_pb2.AppendTasksResponse]"


def new_job_id(task_name: str) -> str:
    """A fresh id that people recognise, e.g. "squares.square-3f9a0c12be"."""
    stem = re.sub(r"[^A-Za-z0-9._-]", "-", task_name).strip(".-_")[:64] or "job"
    return f"{stem}-{secrets.token_hex(5)}"


def batches(payloads: Iterable[bytes]) -> Iterator[tuple[list[bytes], bool]]:
    """(batch, last) of payloads, each batch up to BATCH_TASKS_MAX and BATCH_BYTES_MAX; the last one may be empty.

    Payloads above the inline limit are left as they are; the writer spills them.
    """
    batch: list[bytes] = []
    size = 0
    for encoded in payloads:
        size += weight(encoded)
        if size > BATCH_BYTES_MAX or len(batch) >= BATCH_TASKS_MAX:
            yield batch, False
            batch, size = [], weight(encoded)
        batch.append(encoded)
    yield batch, True


def weight(encoded: bytes) -> int:
    """What a payload takes of a message: above the inline limit only a reference travels."""
    length = len(encoded)
    return length + 8 if length <= model.PAYLOAD_BYTES_MAX else 512


class JobWriter:
    """Creates a job and appends to it. `send` takes batches and waits only when too much is under way; `finish` waits for the end."""

    def __init__(
        self, connection: Connection, job_id: str, spec: JobSpec, total: int | None = None, *, along: bool = False
    ) -> None:
        """Make one; nothing is sent before `send`.

        Args:
            connection: to the orchestrator.
            job_id: the job's.
            spec: likewise.
            total: how many tasks there will be, where that is known; for people.
            along: the first batch goes beside what others ask for, on the connection's open stream.
        """
        self.job_id = job_id
        self._create_call = connection.line.create if along else connection.jobs.CreateJob
        self._total = total
        self._taken = 0  # tasks that the orchestrator has, as far as it has said
        self._found: job_pb2.Job | None = None  # as it was when it was created
        self.begun = False
        """The orchestrator has been asked to make the job, and may have it."""
        self.created = asyncio.Event()
        """Set when the orchestrator has the job."""
        self._connection = connection
        self._spec = spec
        self._sent = 0
        self._queue: asyncio.Queue[job_pb2.AppendTasksRequest] = asyncio.Queue(maxsize=_WINDOW_BATCHES)
        self._pump: asyncio.Task[None] | None = None
        self.stopped = False
        """The job takes no more, because it was cancelled. What is sent is dropped."""

    @property
    def task_count(self) -> int:
        """Tasks that were sent, or that the job had before."""
        return max(self._sent, self._found.task_count if self._found is not None else 0)

    @property
    def taken_count(self) -> int:
        """Tasks that the orchestrator is known to have."""
        return self._taken

    async def send(self, batch: list[bytes], *, last: bool) -> None:
        """Take one batch. With the first one the job is created; an error of an earlier batch is raised here."""
        if any(len(encoded) > model.PAYLOAD_BYTES_MAX for encoded in batch):
            batch = [await self._connection.spill(encoded) for encoded in batch]
        if self._found is None:
            await self._create(batch, last)
        elif not self.stopped:
            await self._append(batch, last)

    async def _create(self, batch: list[bytes], last: bool) -> None:
        spec = spec_to_wire(self._spec)
        if len(spec.template.common_payload) > model.PAYLOAD_BYTES_MAX:
            spec.template.common_payload = await self._connection.spill(spec.template.common_payload)
        request = job_pb2.CreateJobRequest(job_id=self.job_id, spec=spec, payloads=batch, close=last)
        self.begun = True
        answer = await self._connection.call(self._create_call, request)
        self._sent = len(batch)
        self._taken = answer.job.task_count
        stopped = answer.job.state == job_pb2.JOB_STATE_CANCELLED and not last
        if last:
            self._demand_all(self._sent)
        elif stopped and self._total is not None:  # nothing more is sent, so that it is not counted
            self._demand_all(self._total)
        self._found = answer.job
        self.created.set()
        self.stopped = stopped

    def _demand_all(self, count: int) -> None:
        """Conflict when the job has more than the `count` tasks of this input, whose beginning alone is the same.

        Before all is sent it may have more: another process got further with the same input.
        """
        if self._taken > count:
            raise Conflict(
                f"job {self.job_id} has {self._taken:,} tasks, not {count:,}: it was submitted with more input; choose another job id"
            )

    async def _append(self, batch: list[bytes], last: bool) -> None:
        request = job_pb2.AppendTasksRequest(job_id=self.job_id, first_index=self._sent, payloads=batch, close=last)
        self._sent += len(batch)
        if last:
            self._demand_all(self._sent)  # as far as is known: that job is not to be closed by this input
        if self._pump is None:
            self._pump = asyncio.create_task(self._run_pump())
        put = asyncio.ensure_future(self._queue.put(request))
        await asyncio.wait({put, self._pump}, return_when=asyncio.FIRST_COMPLETED)
        if not put.done():
            put.cancel()
            await self._pump  # it failed, or was stopped: nobody will take more

    async def finish(self) -> None:
        """Return when everything is durable and the job is closed. Conflict when it has more tasks than were sent."""
        if self._pump is not None:
            await self._pump

    async def abandon(self) -> None:
        """Stop sending, after an error in the user's generator. The job stays open with what it has; cancel it or go on later."""
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait({self._pump})
            if not self._pump.cancelled():
                self._pump.exception()  # was told by `send` or `finish`, or does not matter any more

    async def _run_pump(self) -> None:
        ended = False
        while not (ended or self.stopped):
            window = [await self._queue.get()]
            while len(window) < _WINDOW_BATCHES and not self._queue.empty():
                window.append(self._queue.get_nowait())
            ended = window[-1].close
            await self._push(window)
        if not self.stopped:
            self._demand_all(self._sent)

    async def _push(self, window: list[job_pb2.AppendTasksRequest]) -> None:
        """Make the batches durable, in one call or, after broken ones, in several.

        What may have arrived is sent again: only the orchestrator can tell whether tasks that it has are these. That it takes what it had
        already is no progress, which alone makes patience begin anew.
        """
        patience = self._connection.patience()
        at_once = len(window)
        while window:
            before = self._taken
            error = await self._append_now(window[:at_once])
            if error is None:
                if self._taken > before:
                    patience.relieved()
                del window[:at_once]
                at_once = len(window)
            elif isinstance(error, JobClosed) and await self._cancelled():
                window.clear()
            else:
                at_once = 1  # alone, a batch gets to hear why it was refused
                if isinstance(error, Weather):
                    await self._look()
                try:
                    await patience.bear(error)
                except Weather as last:
                    raise type(last)(f"{last}; {self._left_open(last)}", last.retry_after_s) from None

    def _left_open(self, error: Weather) -> str:
        """What has become of the job when there is no more patience, and what to do."""
        known = "" if isinstance(error, REFUSALS) else "at least "
        total = "" if self._total is None else f" of {self._total:,}"
        return (
            f"{known}{self._taken:,}{total} tasks are in job {self.job_id}, which stays open: "
            f"submit all of it again with job_id={self.job_id!r} to go on, or cancel it"
        )

    async def _append_now(self, window: list[job_pb2.AppendTasksRequest]) -> AntFarmError | None:
        """Send the batches in one call; what went wrong, or None when all of them are durable."""
        self._connection.demand_open()
        call = self._connection.jobs.AppendTasks()
        # Beside the wait for the answer, because gRPC forgets a write whose call ends before it begins: it never returns.
        writing = asyncio.create_task(_write(call, window))
        try:
            with self._connection.closable():
                self._taken = max(self._taken, (await call).task_count)
            return None
        except grpc.aio.AioRpcError as error:
            return error_from_rpc(error)
        finally:
            writing.cancel()
            call.cancel()

    async def _look(self) -> None:
        """Note how many tasks of a broken call have arrived, if that can be told at once."""
        with self._connection.closable(), suppress(grpc.aio.AioRpcError):
            request = job_pb2.GetJobRequest(job_id=self.job_id)
            answer = await self._connection.jobs.GetJob(request, timeout=_LOOK_S)
            self._taken = max(self._taken, answer.job.task_count)

    async def _cancelled(self) -> bool:
        """Whether somebody has cancelled the job, which its results will tell: then nothing more is sent."""
        request = job_pb2.GetJobRequest(job_id=self.job_id)
        job = (await self._connection.call(self._connection.jobs.GetJob, request)).job
        if job.state != model.JobState.CANCELLED.value:
            return False
        self.stopped, self._sent = True, job.task_count
        return True


async def _write(call: _AppendCall, window: Iterable[job_pb2.AppendTasksRequest]) -> None:
    """Write all of a call's requests; how the call ended, its status says."""
    try:
        with suppress(grpc.aio.AioRpcError, *net.CALL_ENDED):
            for request in window:
                await call.write(request)
            await call.done_writing()
    except Exception:
        call.cancel()  # the answer would wait for the rest
        raise


class Feed:
    """Takes payloads one by one, at whatever pace they come and from whatever thread, and sends what is there whenever the writer is free.

    A slow source is not held back by batching, a fast one fills batches while the former travel. `run` sends, on the loop.
    """

    def __init__(self, writer: JobWriter, loop: asyncio.AbstractEventLoop) -> None:
        self._writer = writer
        self._loop = loop
        self._lock = threading.Lock()
        self._waiting: list[bytes] = []
        self._size_bytes = 0
        self._ended = False
        self._failed = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    def put(self, encoded: bytes) -> bool:
        """Take one more; True when the caller should await `room` before the next."""
        with self._lock:
            self._waiting.append(encoded)
            self._size_bytes += weight(encoded)
            count = len(self._waiting)
            full = self._size_bytes > _FEED_BYTES_MAX or count >= _FEED_TASKS_MAX or self._failed
        if count == 1:
            self._loop.call_soon_threadsafe(self._news.set)
        return full

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._loop.call_soon_threadsafe(self._news.set)

    async def room(self) -> None:
        """Return when there is room again, or when sending failed, which `run` raises."""
        while not self.ended and (self._size_bytes > _FEED_BYTES_MAX or len(self._waiting) >= _FEED_TASKS_MAX):
            self._room.clear()
            await self._room.wait()

    @property
    def ended(self) -> bool:
        """True when there is no use in putting more: sending failed, or the job takes nothing."""
        return self._failed or self._writer.stopped

    async def run(self) -> None:
        """Send until the end and return when all of it is durable."""
        try:
            ended = False
            while not ended:
                await self._news.wait()
                self._news.clear()
                with self._lock:
                    ended = self._ended
                    taken, self._waiting, self._size_bytes = self._waiting, [], 0
                self._room.set()
                if taken or ended:
                    for batch, last in batches(taken):
                        await self._writer.send(batch, last=last and ended)
            await self._writer.finish()
        except BaseException:
            self._failed = True
            self._room.set()
            await self._writer.abandon()
            raise
