"""Coroutines: many at once on one event loop, which is theirs alone; a coroutine that blocks delays its neighbours and nobody else."""

from __future__ import annotations

import asyncio
import contextvars
import os
from functools import partial
from time import perf_counter_ns
from typing import Any

from antfarm import model, payload
from antfarm.context import use_context
from services.worker.child.output import AttemptLog
from services.worker.child.protocol import CURRENT, IN_CANCEL, IN_STORAGE, IN_TASKS, IN_TEMPLATE
from services.worker.child.runner import AttemptContext, Job, Runner

_log: contextvars.ContextVar[AttemptLog | None] = contextvars.ContextVar("antfarm_log", default=None)


class LoopRunner(Runner):
    """A runner whose `ctx.storage` is the asynchronous client. Its own transfers run in threads."""

    _async_storage: Any = None

    def open_context_storage(self) -> Any:
        """The client of Storage for coroutines, one for the loop."""
        if self._async_storage is None:
            from antfarm.storage import AsyncStorage

            self._async_storage = AsyncStorage(self._address(), self._tls_files())
        return self._async_storage


class LoopChild:
    """Runs what comes until the agent closes the pipe."""

    def __init__(self) -> None:
        self.runner: LoopRunner
        self._pid = os.getpid()
        self._tasks: dict[int, tuple[asyncio.Task[None], AttemptContext]] = {}
        """What can be cancelled, by its seq: from its arrival until its function has ended."""

    def current_log(self) -> AttemptLog | None:
        """Where output goes now: to the attempt whose coroutine runs."""
        return _log.get()

    def run(self) -> None:
        """Serve. What ends the loop before that comes out at once, and the process must end of it.

        Nobody is told to end first, as `asyncio.run` would do: they would say so, and pass for having failed by themselves.
        """
        runner = asyncio.Runner()
        runner.run(self._serve())
        runner.close()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        closed = asyncio.Event()

        def on_readable() -> None:
            self._end_copy()
            frames = self.runner.channel.receive()
            if frames is None:
                loop.remove_reader(self.runner.channel.in_fd)
                closed.set()
                return
            for frame in frames:
                self._handle(frame)

        for frame in self.runner.channel.waiting:
            self._handle(frame)
        # A copy that gives way to its loop ends there, before the neighbours that are copied with it run a second time.
        os.register_at_fork(after_in_child=partial(loop.call_soon, self._end_copy))
        loop.add_reader(self.runner.channel.in_fd, on_readable)
        await closed.wait()
        for task, _ in self._tasks.values():
            task.cancel()

    def _handle(self, frame: list[Any]) -> None:
        kind = frame[0]
        if kind == IN_TASKS:
            job = self.runner.jobs[frame[1]]
            for seq, index, attempt, data, inputs in frame[2]:
                context = AttemptContext(self.runner, job, seq, index, attempt)
                task = asyncio.create_task(self._attempt(job, context, seq, data, inputs))
                self._tasks[seq] = task, context
                task.add_done_callback(partial(self._forget, job, seq))
        elif kind == IN_TEMPLATE:
            self.runner.add_job(frame[1], frame[2])
        elif kind == IN_STORAGE:
            self.runner.set_storage(frame[1])
        elif kind == IN_CANCEL and frame[1] in self._tasks:
            task, context = self._tasks[frame[1]]
            context.stopping.asked = True
            task.cancel()

    def _forget(self, job: Job, seq: int, task: asyncio.Task[None]) -> None:
        if self._tasks.pop(seq, None) is not None and task.cancelled():
            # It came with the request to stop it, so that it never began and none of its own lines could say how it ended. Left without a record it
            # would pass for one that will not stop, and its neighbours would die with it.
            self.runner.failed(job, seq, 0, asyncio.CancelledError())

    async def _attempt(
        self, job: Job, context: AttemptContext, seq: int, data: bytes, inputs: list[Any] | None
    ) -> None:
        page = self.runner.channel.page
        page[CURRENT] = max(page[CURRENT], seq)  # coroutines begin in the order of their seqs; all above have not
        runner, started = self.runner, perf_counter_ns()
        log = AttemptLog(runner.channel, seq)
        _log.set(log)
        try:
            with use_context(context):
                args, kwargs = await self._arguments(job, data, inputs)
                if job.parameter:
                    kwargs[job.parameter] = context
                value = await job.function(*args, **kwargs)
        except BaseException as error:  # whatever user code raises is its failure
            self._end_copy()
            log.close()
            run_us = (perf_counter_ns() - started) // 1000
            if isinstance(error, _Undecodable):
                runner.undecodable(seq, error.cause)
            else:
                runner.failed(job, seq, run_us, error)
            if isinstance(error, KeyboardInterrupt | SystemExit):
                return
        else:
            self._end_copy()
            log.close()
            run_us = (perf_counter_ns() - started) // 1000
            await self._succeeded(job, context, seq, run_us, value)
        finally:
            runner.remove_scratch(context, seq)

    def _end_copy(self) -> None:
        if os.getpid() != self._pid:
            os._exit(
                0
            )  # a coroutine forked, and this is the copy: what comes through the pipe and from the loop is not for it

    async def _arguments(self, job: Job, data: bytes, inputs: list[Any] | None) -> tuple[list[Any], dict[str, Any]]:
        try:
            if inputs is None and not job.shared and payload.blob_of(data) is None:
                return self.runner.arguments(job, data, inputs)
            return await asyncio.to_thread(self.runner.arguments, job, data, inputs)
        except Exception as error:
            raise _Undecodable(error) from None

    async def _succeeded(self, job: Job, context: AttemptContext, seq: int, run_us: int, value: Any) -> None:
        # What it gave counts: cancelled from here on, it could lose its record on the way to a thread.
        self._tasks.pop(seq, None)
        # Small results, nearly all, are encoded here; one that may have to go to Storage must not stop the loop meanwhile.
        try:
            small = len(payload.encode_result(value, allow_pickle=self.runner.allow_pickle)) <= model.PAYLOAD_BYTES_MAX
        except BaseException:  # `succeeded` meets it again and says what it means
            small = True
        if small:
            self.runner.succeeded(job, context, seq, run_us, value)
        else:
            # Shielded, because a coroutine that has cancelled itself returns before that takes effect, which is here.
            await asyncio.shield(asyncio.to_thread(self.runner.succeeded, job, context, seq, run_us, value))


class _Undecodable(Exception):
    """The call could not be read: the sender's fault, not the function's."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause
