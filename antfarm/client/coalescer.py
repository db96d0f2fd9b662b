"""Single calls made into jobs: what is submitted while one message is under way travels together in the next.

A job of its own per call would cost a message and a write to disk each. Calls of one template that come one after the other become tasks
of one closed job, named before it is sent, so that a future exists at once. The first call leaves at once; the more result
streams are open, the longer the next ones are collected, because each job may need one.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from antfarm import model
from antfarm.client.connection import Connection
from antfarm.client.job import AsyncFuture, AsyncJob, Making
from antfarm.client.plan import SubmitPlan
from antfarm.client.writer import BATCH_TASKS_MAX, JobWriter, new_job_id, weight
from antfarm.errors import AntFarmError, Internal, Unavailable
from antfarm.model import BATCH_BYTES_MAX, Dependency, JobSpec

_STREAMS_FREE = 64
"""Open result streams up to which nothing is held back."""
_REFUSED_MAX = 100
"""Refusals that are kept until somebody asks for them or flushes; of the oldest above that a warning tells."""

log = logging.getLogger("antfarm.client")


@dataclass(slots=True, kw_only=True)
class _Pending:
    """A job that is being collected."""

    job: AsyncJob[Any]
    template: model.TaskTemplate
    dependencies: tuple[Dependency, ...]
    payloads: list[bytes] = field(default_factory=list)
    size_bytes: int = 0


class Coalescer:
    """Collects and sends. `add` may be called from any thread; everything else happens on the loop."""

    def __init__(
        self, connection: Connection, loop: asyncio.AbstractEventLoop, on_job: Callable[[AsyncJob[Any], str], None]
    ) -> None:
        self._connection = connection
        self._loop = loop
        self._on_job = on_job
        self._lock = threading.Lock()
        self._pending: list[_Pending] = []
        self._taken: deque[_Pending] = deque()
        """What is being sent, one after the other."""
        self._refused: deque[tuple[AsyncJob[Any], str]] = deque()
        """Jobs that could not be made, with their task types. Perhaps nobody has been told."""
        self._scheduled = False
        self._closed = False
        self._flusher: asyncio.Task[None] | None = None

    def add(self, plan: SubmitPlan) -> AsyncFuture[Any]:
        """The future of one more call. It is durable when the call that flushes it was answered; `flush` waits for that."""
        with self._lock:
            if self._closed:
                raise Unavailable("the farm was closed; connect again")
            pending = self._pending[-1] if self._pending else None
            if pending is None or not _fits(pending, plan):
                pending = _Pending(
                    job=AsyncJob(self._connection, new_job_id(plan.template.type), task_count=0, making=Making()),
                    template=plan.template,
                    dependencies=plan.dependencies(0),
                )
                self._pending.append(pending)
            index = len(pending.payloads)
            pending.payloads.append(plan.payload)
            pending.size_bytes += weight(plan.payload)
            pending.job.task_count = index + 1
            if not self._scheduled:
                self._scheduled = True
                self._loop.call_soon_threadsafe(self._start)
            return AsyncFuture(pending.job, index)

    def _start(self) -> None:
        self._flusher = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            with self._lock:
                self._taken.extend(self._pending)
                self._pending = []
                if not self._taken:
                    self._scheduled = False
                    return
            while self._taken:  # one after the other: a later one may depend on an earlier one
                await self._send(self._taken[0])
                self._taken.popleft()
            if self._connection.streams > _STREAMS_FREE:
                await asyncio.sleep(min(1.0, self._connection.streams / 1000))

    async def _send(self, pending: _Pending) -> None:
        spec = JobSpec(template=pending.template, dependencies=pending.dependencies)
        job = pending.job
        job.leaves()
        try:
            await JobWriter(self._connection, job.job_id, spec, along=True).send(pending.payloads, last=True)
        except AntFarmError as error:
            self._refuse(pending, error)
        except asyncio.CancelledError:
            job.made(Unavailable("the farm was closed before the task was submitted"))
            raise
        except Exception as error:  # a defect of ours must reach those who wait
            self._refuse(pending, Internal(f"{type(error).__name__}: {error}"))
        else:
            job.made()
            self._on_job(job, pending.template.type)

    def _refuse(self, pending: _Pending, error: AntFarmError) -> None:
        pending.job.made(error)
        self._refused.append((pending.job, pending.template.type))
        if len(self._refused) > _REFUSED_MAX:
            self._warn(*self._refused.popleft())

    def _warn(self, job: AsyncJob[Any], task_type: str) -> None:
        error = job.untold()
        if error is not None:
            log.warning(
                "calls of %s that the farm at %s has not taken: %d (%s)",
                task_type,
                self._connection.address,
                job.task_count,
                " ".join(str(error).split()),
            )

    async def flush(self) -> None:
        """Return when everything that was added before is durable. Raises the first error that kept some from it and that nobody was told; warns of the others."""
        await self._settle()
        first: AntFarmError | None = None
        while self._refused:
            if first is None:
                first = self._refused.popleft()[0].untold()
            else:
                self._warn(*self._refused.popleft())
        if first is not None:
            raise first

    async def _settle(self) -> None:
        """Return when everything that was added before is durable, or known to have failed."""
        await asyncio.sleep(0)
        while self._flusher is not None and not self._flusher.done():
            await asyncio.wait({self._flusher})

    async def close(self, within_s: float | None = None) -> None:
        """Take nothing more, and send what is there; with `within_s` what can be sent in that time. Raises nothing of it: warnings say what was not sent."""
        with self._lock:
            self._closed = True
        try:
            async with asyncio.timeout(within_s):
                await self._settle()
        except TimeoutError:
            await self._give_up()
        while self._refused:
            self._warn(*self._refused.popleft())

    async def _give_up(self) -> None:
        assert self._flusher is not None
        self._flusher.cancel()
        await asyncio.wait({self._flusher})
        left = [*self._taken, *self._pending]
        for pending in left:
            pending.job.made(Unavailable("the farm was closed before the task was submitted"))
        if left:  # else the last answer came just now
            log.warning(
                "closed at once: the farm at %s has not acknowledged all that was submitted; calls that it may not have: %d (%s)",
                self._connection.address,
                sum(len(pending.payloads) for pending in left),
                ", ".join(sorted({pending.template.type for pending in left})),
            )


def _fits(pending: _Pending, plan: SubmitPlan) -> bool:
    count = len(pending.payloads)
    return (
        (pending.template is plan.template or pending.template == plan.template)
        and count < BATCH_TASKS_MAX
        and pending.size_bytes + weight(plan.payload) < BATCH_BYTES_MAX
        and plan.dependencies(count) == pending.dependencies
    )
