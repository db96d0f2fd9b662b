"""Plain functions: one at a time, in order, on the main thread, with nothing else going on in the process."""

from __future__ import annotations

import inspect
import os
import resource
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from os import getpid
from time import perf_counter_ns
from typing import Any

from antfarm.context import _current as current  # set once per task, without the cost of a context manager
from services.worker.child.output import AttemptLog
from services.worker.child.protocol import (
    IN_STORAGE,
    IN_TASKS,
    IN_TEMPLATE,
    may_start,
)
from services.worker.child.runner import AttemptContext, Job, Runner


class PlainChild:
    """Runs what comes until the agent closes the pipe."""

    def __init__(self) -> None:
        self.runner: Runner
        self._pid = getpid()
        self._seq = 0  # of the running task, 0 between two
        self._log: AttemptLog | None = None
        self._queue: deque[tuple[Job, list[Any]]] = deque()

    def current_log(self) -> AttemptLog | None:
        """Where output goes now."""
        if self._log is None and self._seq:
            self._log = AttemptLog(self.runner.channel, self._seq)
        return self._log

    def run(self) -> None:
        """Serve."""
        channel = self.runner.channel
        frames: list[list[Any]] | None = channel.waiting
        while frames is not None:
            for frame in frames:
                kind = frame[0]
                if kind == IN_TASKS:
                    job = self.runner.jobs[frame[1]]
                    self._queue.extend((job, row) for row in frame[2])
                elif kind == IN_TEMPLATE:
                    self.runner.add_job(frame[1], frame[2])
                elif kind == IN_STORAGE:
                    self.runner.set_storage(frame[1])
            self._run_queue()
            frames = channel.receive()

    def _run_queue(self) -> None:
        runner, page, queue = self.runner, self.runner.channel.page, self._queue
        started = perf_counter_ns()
        while queue:
            job, (seq, index, attempt, payload, inputs) = queue.popleft()
            if not may_start(page, seq):
                continue
            self._seq = seq
            context = AttemptContext(runner, job, seq, index, attempt)
            current.set(context)
            try:
                args, kwargs = runner.arguments(job, payload, inputs)
            except Exception as error:
                runner.undecodable(seq, error)
            else:
                if job.parameter:
                    kwargs[job.parameter] = context
                self._call(job, context, seq, args, kwargs, started)
            self._seq = 0
            if len(context.__dict__) > 1:
                runner.remove_scratch(context, seq)
            started = perf_counter_ns()

    def _call(
        self, job: Job, context: AttemptContext, seq: int, args: list[Any], kwargs: dict[str, Any], started: int
    ) -> None:
        runner = self.runner
        try:
            if job.memory_bytes:
                with limited_memory(job.memory_bytes):
                    value = job.function(*args, **kwargs)
            else:
                value = job.function(*args, **kwargs)
            if inspect.iscoroutine(value):
                value = _run_coroutine(value)
        except BaseException as error:  # SystemExit too: whatever user code raises is its failure, not the child's
            self._end_copy()
            run_us = (perf_counter_ns() - started) // 1000
            self._end_log()
            runner.failed(job, seq, run_us, error)
            if isinstance(error, MemoryError) and job.memory_bytes:
                os._exit(0)  # what is left of the heap is not to be trusted; a fresh child follows
        else:
            self._end_copy()
            run_us = (perf_counter_ns() - started) // 1000
            if self._log is not None:
                self._end_log()
            runner.succeeded(job, context, seq, run_us, value)

    def _end_copy(self) -> None:
        if getpid() != self._pid:
            os._exit(0)  # the task forked, and this is the copy: it must neither report nor run on

    def _end_log(self) -> None:
        log, self._log = self._log, None
        if log is not None:
            log.close()


def _run_coroutine(coroutine: Any) -> Any:
    import asyncio  # for functions by value that turn out to be async

    return asyncio.run(coroutine)


@contextmanager
def limited_memory(more_bytes: int) -> Iterator[None]:
    """Let the address space grow by at most `more_bytes` beyond what the interpreter and the apps take already."""
    with open("/proc/self/statm") as file:
        size_bytes = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = size_bytes + more_bytes
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
