"""Jobs and their tasks as asynchronous handles. The blocking ones (antfarm.client.blocking) are thin faces over these.

A handle holds names, not state: the job lives in the orchestrator, and a handle made anywhere by `farm.job(...)` is as good as the one that `map`
returned. Iterating reads a stream of its own from the start, in constant memory; futures of single tasks share one stream per job,
started when somebody first waits, and keep what arrived.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from typing import Any, Generic, TypeVar

from antfarm import model, wire
from antfarm.client.connection import Connection
from antfarm.client.handle import FutureHandle, JobHandle
from antfarm.client.writer import new_job_id
from antfarm.duration import Duration, seconds
from antfarm.errors import AntFarmError, InvalidArgument, TaskError, TaskNotFound, Unavailable
from antfarm.model import Explanation, JobState, JobStatus, TaskState
from antfarm.payload import decode_result
from antfarm.pipeline import Outcome, outcome_of
from antfarm.task import is_whole
from antfarm.text import is_text
from antfarm.v1 import job_pb2, task_pb2
from antfarm.wire import Arrived

R = TypeVar("R")

_SUCCEEDED = TaskState.SUCCEEDED.value


def value_of(
    message: Arrived,
    job_id: str,
    data: bytes,
    *,
    get: Callable[[model.BlobRef], bytes] | None = None,
    allow_pickle: bool,
) -> Any:
    """The value of a recorded outcome whose bytes are `data` (`get` reads those in Storage); raises the TaskError of its cause."""
    if message.state == _SUCCEEDED:
        return decode_result(data, get=get, allow_pickle=allow_pickle)
    return outcome_of(wire.result_from_wire(message), job_id=job_id).result()


class AsyncFuture(FutureHandle, Generic[R]):
    """One task of a job. `await future` gives its result or raises the error of its cause."""

    __slots__ = ("_index", "_job", "_message")

    def __init__(self, job: AsyncJob[R], index: int, message: Arrived | None = None) -> None:
        self._job = job
        self._index = index
        self._message = message

    @property
    def job(self) -> AsyncJob[R]:
        """The job it belongs to."""
        return self._job

    @property
    def job_id(self) -> str:
        """The job."""
        return self._job.job_id

    @property
    def index(self) -> int:
        """Its index in the job."""
        return self._index

    @property
    def key(self) -> Any:
        """What people call it: as given by `key=`, else its first argument where that is known, else its index."""
        return self._job.key_of(self._index)

    @property
    def state(self) -> TaskState | None:
        """How it ended; None while this process does not know of its end."""
        message = self.message
        return None if message is None else wire.task_state_from_wire(message.state)

    @property
    def message(self) -> Arrived | None:
        """The recorded outcome as it came, if it came."""
        if self._message is None:
            self._message = self._job.known(self._index)
        return self._message

    def __repr__(self) -> str:
        state = self.state
        return f"<future {self.job_id}/{self.index}{'' if state is None else ' ' + state.name.lower()}>"

    def __await__(self) -> Generator[Any, None, R]:
        return self.result().__await__()

    def done(self) -> bool:
        """True when its outcome has arrived here, or none will come because its submission failed, which `result` raises.

        An outcome arrives only while somebody waits for the job.
        """
        return self.message is not None or self._job.unmade

    async def arrive(self, timeout: Duration | None = None) -> Arrived:
        """Wait for the recorded outcome. TimeoutError when it takes longer; the task goes on."""
        if self.message is None:
            limit_s = None if timeout is None else seconds(timeout)
            waiter = self._job.waiter(self._index)
            try:
                async with asyncio.timeout(limit_s):
                    self._message = await waiter
            except asyncio.CancelledError:
                self._job.drop(self._index, waiter)
                raise
            except TimeoutError:
                self._job.drop(self._index, waiter)
                raise TimeoutError(f"task {self.job_id}/{self.index} has not ended within {limit_s:g} s") from None
        assert self._message is not None
        return self._message

    async def result(self, timeout: Duration | None = None) -> R:
        """Its value; raises `TaskFailed` or the like with the remote traceback, `TimeoutError` after `timeout`."""
        message = await self.arrive(timeout)
        return await self._job.decode(message)

    async def exception(self, timeout: Duration | None = None) -> TaskError | None:
        """The error that `result` would raise, or None."""
        message = await self.arrive(timeout)
        return outcome_of_failure(message, self.job_id)

    async def outcome(self, timeout: Duration | None = None) -> Outcome:
        """All that is recorded of its end; does not raise when the task failed."""
        message = await self.arrive(timeout)
        return await self._job.decode_outcome(message)

    async def explain(self) -> Explanation:
        """How the task stands, in words: why it waits, was repeated, is slow or failed, and what would help. `print` it."""
        await self._job.ready()
        connection = self._job.connection
        request = task_pb2.ExplainTaskRequest(job_id=self.job_id, index=self.index)
        return wire.findings_from_wire((await connection.call(connection.tasks.ExplainTask, request)).findings)

    async def cancel(self, cause: str = "") -> bool:
        """Cancel the task; True when it ended as cancelled, False when it had ended otherwise before."""
        await self._job.ready()
        connection = self._job.connection
        request = task_pb2.CancelTaskRequest(job_id=self.job_id, index=self.index, cause=_text(cause))
        answer = await connection.call(connection.tasks.CancelTask, request)
        return bool(answer.task.state == TaskState.CANCELLED.value)

    def add_done_callback(self, callback: Callable[[AsyncFuture[R]], None]) -> None:
        """Call it on the loop once the outcome has arrived (also when waiting for it failed)."""
        self._job.waiter(self._index).add_done_callback(lambda waiter: callback(self))


def _text(cause: object) -> str:
    if not is_text(cause):
        raise InvalidArgument(f"cause={cause!r}: give a text")
    return cause


def outcome_of_failure(message: Arrived, job_id: str) -> TaskError | None:
    """The error of an outcome without success, else None."""
    if message.state == _SUCCEEDED:
        return None
    return outcome_of(wire.result_from_wire(message), job_id=job_id).error()


class Making:
    """How far a job is that somebody submits in the background."""

    def __init__(self) -> None:
        self.sent = asyncio.Event()
        """It has left for the orchestrator, or will not leave."""
        self.made = asyncio.Event()
        """The orchestrator has it, or `error` says why not."""
        self.error: AntFarmError | None = None
        self.told = False
        """Somebody has been told of the error."""

    def end(self, error: AntFarmError | None) -> None:
        """It is there, or never will be."""
        self.error = error
        self.sent.set()
        self.made.set()


class AsyncJob(JobHandle, Generic[R]):
    """Tasks that were submitted together. `async for done in job.as_completed()`, `async for value in job.results()`."""

    def __init__(
        self,
        connection: Connection,
        job_id: str,
        *,
        keys: Sequence[Any] | None = None,
        task_count: int | None = None,
        making: Making | None = None,
    ) -> None:
        """`making`: how far it is, when it is not there yet."""
        self.connection = connection
        self.job_id = job_id
        self.keys = keys
        self.task_count = task_count
        self._making = making
        self._messages: dict[int, Arrived] = {}
        self._waiters: dict[int, list[asyncio.Future[Arrived]]] = {}
        self._watcher: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<job {self.job_id}>"

    # ---- being made -------------------------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Return when the orchestrator has the job; raise what kept it from being made."""
        if self._making is not None:
            await self._making.made.wait()
            if self._making.error is not None:
                self._making.told = True
                raise self._making.error
            self._making = None

    def leaves(self) -> None:
        """It is sent now."""
        assert self._making is not None
        self._making.sent.set()

    def made(self, error: AntFarmError | None = None) -> None:
        """The orchestrator has the job, or `error` says why not."""
        assert self._making is not None
        self._making.end(error)
        if error is not None and self._watcher is not None:
            self._watcher.cancel()  # it waits for a job that will not come

    def untold(self) -> AntFarmError | None:
        """Why it was not made, the first time that this is asked, and None if somebody was told before."""
        making = self._making
        if making is None or making.told:
            return None
        making.told = True
        return making.error

    @property
    def unmade(self) -> bool:
        """True when it was submitted in the background and that failed."""
        return self._making is not None and self._making.error is not None

    async def count(self) -> int:
        """How many tasks it has; asked for again while it may get more."""
        if self.task_count is not None:
            return self.task_count
        status = await self.status()
        if status.state is not JobState.OPEN:
            self.task_count = status.task_count
        return status.task_count

    def key_of(self, index: int) -> Any:
        """What people call a task; its index where nothing better is known."""
        keys = self.keys
        return keys[index] if keys is not None and index < len(keys) else index

    # ---- futures ----------------------------------------------------------------------------------------------------

    def future(self, index: int) -> AsyncFuture[R]:
        """One task. Nothing is asked of the orchestrator."""
        if not is_whole(index):
            raise InvalidArgument(f"{index!r} is no task: give its index, a whole number")
        if index < 0 or (self.task_count is not None and index >= self.task_count):
            raise TaskNotFound(f"job {self.job_id} has no task {index}")
        return AsyncFuture(self, index)

    __getitem__ = future

    async def futures(self) -> list[AsyncFuture[R]]:
        """All its tasks in the order of their input."""
        return [AsyncFuture(self, index) for index in range(await self.count())]

    def known(self, index: int) -> Arrived | None:
        """The outcome of a task if it has arrived."""
        return self._messages.get(index)

    def waiter(self, index: int) -> asyncio.Future[Arrived]:
        """A future for the outcome of a task. Starts the stream of outcomes if it does not run. Call it on the loop."""
        waiter: asyncio.Future[Arrived] = asyncio.get_running_loop().create_future()
        message = self._messages.get(index)
        if message is not None:
            waiter.set_result(message)
            return waiter
        self._waiters.setdefault(index, []).append(waiter)
        self._listen()
        return waiter

    def drop(self, index: int, waiter: asyncio.Future[Arrived]) -> None:
        """Forget a waiter that nobody waits for any more."""
        waiters = self._waiters.get(index, [])
        if waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self._waiters[index]

    async def listen(self) -> None:
        """Start the stream of outcomes if it does not run, and let what has arrived be taken in."""
        self._listen()
        await asyncio.sleep(0)

    def _listen(self) -> None:
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch())
            self._watcher.add_done_callback(self._watched)

    async def _watch(self) -> None:
        made = None
        if self._making is not None:
            # Not only once it is made: as soon as it has left it is waited for where it arrives, which saves the time between two calls.
            await self._making.sent.wait()
            if self._making.error is not None:
                raise self._making.error
            made = self._making.made
        async for batch in self.connection.results(self.job_id, made=made, task_count=self.task_count):
            for message in batch:
                self._messages[message.index] = message
                if message.index in self._waiters:
                    for waiter in self._waiters.pop(message.index):
                        if not waiter.done():
                            waiter.set_result(message)

    def _watched(self, watcher: asyncio.Task[None]) -> None:
        """Tell who still waits why nothing will come. Not the watcher's own last act: one that is cancelled before its first step has none."""
        self._watcher = None
        error: BaseException | None
        if watcher.cancelled():
            error = (self._making and self._making.error) or Unavailable("the farm was closed; connect again")
        else:
            error = watcher.exception() or TaskNotFound(
                f"job {self.job_id} ended without an outcome of this task; it has no such task"
            )
        waiters, self._waiters = self._waiters, {}
        if waiters and self._making is not None and self._making.error is not None:
            self._making.told = True
        for waiter in (waiter for each in waiters.values() for waiter in each):
            if not waiter.done():
                waiter.set_exception(error)
                waiter.exception()  # whoever waits has it; nobody has to

    async def decode(self, message: Arrived) -> R:
        """The value of an outcome, read from Storage where it lies there; raises the TaskError of its cause."""
        data = await self.connection.load(message.result) if message.result else b""
        value: R = value_of(message, self.job_id, data, allow_pickle=self.connection.allow_pickle)
        return value

    async def decode_outcome(self, message: Arrived) -> Outcome:
        """The outcome with its value."""
        result = wire.result_from_wire(message)
        if result.state is not TaskState.SUCCEEDED:
            return outcome_of(result, job_id=self.job_id)
        data = await self.connection.load(result.result)
        return outcome_of(result, job_id=self.job_id, get=lambda _: data, allow_pickle=self.connection.allow_pickle)

    # ---- all of it --------------------------------------------------------------------------------------------------

    async def batches(self) -> AsyncIterator[Sequence[Arrived]]:
        """Outcomes as they are recorded, as they come, until the job has ended."""
        await self.ready()
        async for batch in self.connection.results(self.job_id, task_count=self.task_count):
            yield batch

    async def as_completed(self) -> AsyncIterator[AsyncFuture[R]]:
        """Its tasks in the order in which they end, each done. Constant memory."""
        async for batch in self.batches():
            for message in batch:
                yield AsyncFuture(self, message.index, message)

    async def results(self) -> AsyncIterator[R]:
        """Their values in the order of their input; raises at the first task that did not succeed.

        What ends out of order is kept until its turn comes.
        """
        order = Order()
        async for batch in self.batches():
            for message in order.take(batch):
                yield await self.decode(message)

    async def outcomes(self) -> AsyncIterator[Outcome]:
        """How they ended, in the order of their input; does not raise for tasks that failed."""
        order = Order()
        async for batch in self.batches():
            for message in order.take(batch):
                yield await self.decode_outcome(message)

    async def status(self) -> JobStatus:
        """How it stands."""
        await self.ready()
        request = job_pb2.GetJobRequest(job_id=self.job_id)
        return wire.status_from_wire((await self.connection.call(self.connection.jobs.GetJob, request)).job)

    async def explain(self) -> Explanation:
        """How it stands, in words: what keeps its tasks, why some failed, and what would help. `print` it."""
        await self.ready()
        request = job_pb2.ExplainJobRequest(job_id=self.job_id)
        answer = await self.connection.call(self.connection.jobs.ExplainJob, request)
        return wire.findings_from_wire(answer.findings)

    async def watch(self) -> AsyncIterator[JobStatus]:
        """How it stands, at once and after changes, until it has ended."""
        await self.ready()
        async for message in self.connection.watch(self.job_id):
            yield wire.status_from_wire(message)

    async def progress(self) -> float:
        """The part of its tasks that have ended, 0 to 1."""
        return fraction_done(await self.status())

    async def wait(self, timeout: Duration | None = None) -> JobStatus:
        """Return its last status when it has ended. TimeoutError when that takes longer; the job goes on."""
        status: JobStatus | None = None
        limit_s = None if timeout is None else seconds(timeout)
        try:
            async with asyncio.timeout(limit_s):
                async for status in self.watch():
                    if status.state.terminal:
                        return status
        except TimeoutError:
            raise TimeoutError(f"job {self.job_id} has not ended within {limit_s:g} s") from None
        return await self.status() if status is None else status

    async def cancel(self, cause: str = "") -> JobStatus:
        """Cancel all its tasks that have not ended. After it returns no success of them is recorded."""
        await self.ready()
        request = job_pb2.CancelJobRequest(job_id=self.job_id, cause=_text(cause))
        return wire.status_from_wire((await self.connection.call(self.connection.jobs.CancelJob, request)).job)

    async def pause(self) -> JobStatus:
        """Give out no more of its tasks until `resume`."""
        await self.ready()
        request = job_pb2.PauseJobRequest(job_id=self.job_id)
        return wire.status_from_wire((await self.connection.call(self.connection.jobs.PauseJob, request)).job)

    async def resume(self) -> JobStatus:
        """End a pause."""
        await self.ready()
        request = job_pb2.ResumeJobRequest(job_id=self.job_id)
        return wire.status_from_wire((await self.connection.call(self.connection.jobs.ResumeJob, request)).job)

    async def retry(self, *, failed: bool = True) -> AsyncJob[R]:
        """A new job of its tasks that ended without success. NothingToRetry when there are none."""
        if not failed:
            raise InvalidArgument("only failed tasks can be retried; submit the job again to run everything")
        await self.ready()
        new_id = new_job_id(self.job_id.removesuffix("-retry") + "-retry")
        request = job_pb2.RetryJobRequest(job_id=self.job_id, new_job_id=new_id)
        answer = await self.connection.call(self.connection.jobs.RetryJob, request)
        return AsyncJob(self.connection, answer.job.job_id, task_count=answer.job.task_count)

    async def purge(self) -> None:
        """Remove the job and its record, after it has ended. JobNotEnded before."""
        await self.ready()
        await self.connection.call(self.connection.jobs.PurgeJob, job_pb2.PurgeJobRequest(job_id=self.job_id))

    def forget(self) -> None:
        """Stop listening, for a farm that is closed."""
        if self._watcher is not None:
            self._watcher.cancel()


class Order:
    """Puts outcomes back into the order of their input."""

    def __init__(self) -> None:
        self._next = 0
        self._early: dict[int, Arrived] = {}

    def take(self, batch: Sequence[Arrived]) -> list[Arrived]:
        """Those whose turn has come, now that `batch` has arrived."""
        ready: list[Arrived] = []
        following, early = self._next, self._early
        for message in batch:
            index = message.index
            if index != following:
                early[index] = message
                continue
            ready.append(message)
            following += 1
            while following in early:
                ready.append(early.pop(following))
                following += 1
        self._next = following
        return ready


def fraction_done(status: JobStatus) -> float:
    """The part of a job's tasks that have ended, 0 to 1; 1 for an ended job without tasks."""
    ended = sum(count for state, count in status.counts.items() if model.TaskState(state).terminal)
    return ended / status.task_count if status.task_count else float(status.state.terminal)
