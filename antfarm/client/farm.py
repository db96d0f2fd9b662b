"""The farm as a client sees it, asynchronous: the real one. `antfarm.aio.connect()` makes it; the blocking face is in antfarm.client.blocking."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, TypeVar
from weakref import WeakSet

from antfarm import apps, builtin, model
from antfarm.client.arrival import completed, ended, flat
from antfarm.client.coalescer import Coalescer
from antfarm.client.connection import Connection
from antfarm.client.handle import FutureHandle, JobHandle
from antfarm.client.job import AsyncFuture, AsyncJob
from antfarm.client.plan import (
    Function,
    MapPlan,
    Runnable,
    SubmitPlan,
    chosen_id,
    common_arguments,
    plan_map,
    plan_submit,
    resolve,
)
from antfarm.client.selection import find_job, list_jobs
from antfarm.client.writer import Feed, JobWriter, batches, new_job_id
from antfarm.duration import Duration, seconds
from antfarm.errors import AntFarmError
from antfarm.model import JobStatus

R = TypeVar("R")

_NOTICE_AFTER_S = 3.0
_LOOK_S = 3.0
"""How long a notice may look for what it would tell."""
_HURRY_S = 2.0
"""How long a farm that is closed at once may send what was submitted."""

log = logging.getLogger("antfarm.client")


def in_a_hurry(kind: type[BaseException] | None) -> bool:
    """Whether who leaves a `with` block by this exception waits for nothing more, as after Ctrl-C. Who calls sys.exit() or closes a generator just ends."""
    return kind is not None and not issubclass(kind, Exception | SystemExit | GeneratorExit)


class Script:
    """The main program of this process on the embedded farm, where other scripts may have tasks of the same names."""

    def __init__(self, labels: Mapping[str, str], offered: Container[str]) -> None:
        self.labels = labels
        """What the workers that know it carry; empty when none does, as for a notebook."""
        self.offered = offered
        """Task types that these workers offer."""

    @classmethod
    async def look(cls, connection: Connection, labels: Mapping[str, str]) -> Script:
        """The script whose workers carry the labels."""
        if not labels:
            return cls(labels, frozenset())
        own = [worker async for worker in connection.workers_now() if labels.items() <= dict(worker.labels).items()]
        return cls(labels, frozenset(offer for worker in own for offer in worker.task_types))

    def labelled(self, template: model.TaskTemplate) -> model.TaskTemplate:
        """The template of one of its tasks, so that only workers that know it get that. A function by value brings all that it needs."""
        if template.type == builtin.CALL:
            return template
        return replace(template, labels={**template.labels, **self.labels})


class AsyncFarm:
    """A connection to a farm. Jobs belong to the orchestrator: closing this ends nothing but the connection."""

    def __init__(
        self, connection: Connection, on_close: Callable[..., None] | None = None, script: Script | None = None
    ) -> None:
        """`on_close` ends the embedded farm; `script` is the main program there."""
        self.connection = connection
        self._on_close = on_close
        self._script = script
        self._loop = asyncio.get_running_loop()
        self._coalescer = Coalescer(connection, self._loop, self.notice)
        self._resolved: dict[Any, tuple[Runnable, model.TaskTemplate]] = {}
        self._noticed: set[str] = set()
        self._notices: set[asyncio.Task[None]] = set()
        self._jobs: WeakSet[AsyncJob[Any]] = WeakSet()
        self._closed = False

    @property
    def address(self) -> str:
        """Address of the orchestrator."""
        return self.connection.address

    def __repr__(self) -> str:
        return f"<farm at {self.address}>"

    async def __aenter__(self) -> AsyncFarm:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close(now=in_a_hurry(kind))

    async def close(self, *, now: bool = False) -> None:
        """Send what was submitted, disconnect, and end an embedded farm.

        Its running tasks may finish within 10 s; with `now`, as after Ctrl-C, they are stopped. They are run again at the next connect.
        What cannot be sent is tried on with patience; with `now` for 2 s. Warnings say what was not taken and nobody asked for.
        """
        try:
            await self.disconnect(now=now)
        finally:
            if self._on_close is not None:
                await asyncio.to_thread(self.end, now=now)

    def end(self, *, now: bool = False) -> None:
        """End the embedded farm, after `disconnect`. Blocks."""
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close(now=now)

    async def disconnect(self, *, now: bool = False) -> None:
        """The part of `close` that concerns the connection."""
        if self._closed:
            return
        self._closed = True
        try:
            await self._coalescer.close(_HURRY_S if now else None)
        finally:
            for notice in self._notices:
                notice.cancel()
            for job in list(self._jobs):
                job.forget()
            await self.connection.close()

    # ---- submitting -------------------------------------------------------------------------------------------------

    def submit(self, function: Function, /, *args: Any, **kwargs: Any) -> AsyncFuture[Any]:
        """Run one call. Returns its future at once; calls that are made together travel together.

        Futures and jobs among the arguments are waited for by the farm, and their values (of a job: the list of `Outcome`s)
        take their places.
        """
        return self.add(self.plan_submit(function, args, kwargs))

    def plan_submit(self, function: Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> SubmitPlan:
        """The plan of one call; may be called from any thread."""
        runnable, template = self._resolve(function)
        return plan_submit(runnable, template, args, kwargs, allow_pickle=self.connection.allow_pickle)

    def add(self, plan: SubmitPlan) -> AsyncFuture[Any]:
        """Submit a planned call; may be called from any thread."""
        future = self._coalescer.add(plan)
        self._jobs.add(future.job)
        return future

    def _resolve(self, function: Function) -> tuple[Runnable, model.TaskTemplate]:
        """Remembered per function, but not for functions by value: what they hold may change from call to call."""
        try:
            known = self._resolved.get(function)
        except TypeError:
            known = None
        if known is None:
            may_pickle = self.connection.allow_pickle
            script = self._script_of(function)
            offered = script.offered if script else self.connection.offered
            runnable = resolve(function, allow_pickle=may_pickle, offered=offered)
            template = runnable.template({}, allow_pickle=may_pickle)
            known = runnable, script.labelled(template) if script else template
            if not runnable.by_value:
                if len(self._resolved) > 1000:  # someone makes tasks in a loop
                    self._resolved.clear()
                self._resolved[function] = known
        return known

    def _script_of(self, function: Function) -> Script | None:
        """The script that a function is of, where others may have one of the same name."""
        return self._script if apps.of_main(function) else None

    async def flush(self) -> None:
        """Return when everything that was submitted is durable in the orchestrator.

        Raises the first error that kept some of it from that, unless whoever asked for its future was told; warnings tell of further ones.
        """
        await self._coalescer.flush()

    async def map(
        self,
        function: Function,
        /,
        *iterables: Any,
        name: str = "",
        priority: int = 0,
        max_failures: int | None = None,
        key: Callable[..., Any] | Iterable[Any] | None = None,
        labels: Mapping[str, str] | None = None,
        job_id: str = "",
        request_id: str = "",
        common: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> AsyncJob[Any]:
        """Run `function(*items)` for the items of the iterables, like the built-in `map`. Returns when all are durable.

        Args:
            iterables: lists, generators (streamed in constant memory), asynchronous ones, jobs and lists of futures of one job. A job
                means: each call waits for its counterpart there alone and gets its value.
            name: for people, and to find the job again.
            priority: -10 to 10; each step quadruples the job's share.
            max_failures: cancel the job when more of its tasks failed.
            key: what to call the tasks: a function of the call's arguments, or one value each. Default: the first argument.
            labels: free text for people and selectors.
            job_id, request_id: the job's id, chosen by the caller; again with the same one and the same input nothing runs twice; other input, fewer or more of it too, is refused.
            common: keyword arguments of all calls whose names are taken by those above.
            kwargs: keyword arguments of all calls. A whole job here makes every call wait for all of it and get its `Outcome`s.
        """
        chosen, shared = chosen_id(job_id, request_id), common_arguments(kwargs, common)
        plan = await self.plan(
            function, iterables, shared, name=name, priority=priority, max_failures=max_failures, key=key, labels=labels
        )
        return await self.run(plan, chosen)

    async def starmap(
        self, function: Function, calls: Any, /, *, common: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncJob[Any]:
        """Run `function(*call)` for each of the calls. Options as in `map`."""
        named = {word: options.pop(word) for word in list(options) if word in MAP_OPTIONS}
        job_id = chosen_id(named.pop("job_id", ""), named.pop("request_id", ""))
        plan = await self.plan(function, (calls,), common_arguments(options, common), star=True, **named)
        return await self.run(plan, job_id)

    async def plan(
        self, function: Function, iterables: Sequence[Any], common: Mapping[str, Any], **options: Any
    ) -> MapPlan:
        """The job of a map, with what the orchestrator must be asked for."""
        return self.plan_counted(function, iterables, common, await self.counts(iterables, common), **options)

    def plan_counted(
        self,
        function: Function,
        iterables: Sequence[Any],
        common: Mapping[str, Any],
        counts: Mapping[str, int],
        **options: Any,
    ) -> MapPlan:
        """As `plan`, when the orchestrator was asked before; may be called from any thread."""
        connection, script = self.connection, self._script_of(function)
        plan = plan_map(
            function,
            iterables,
            common,
            counts=counts,
            allow_pickle=connection.allow_pickle,
            offered=script.offered if script else connection.offered,
            **options,
        )
        if script is None:
            return plan
        return replace(plan, spec=replace(plan.spec, template=script.labelled(plan.spec.template)))

    @staticmethod
    async def counts(iterables: Iterable[Any], common: Mapping[str, Any]) -> dict[str, int]:
        """How many tasks the jobs among the iterables have. Returns when the orchestrator has every job that a job of these arguments depends on."""
        jobs = [_core(each) for each in iterables if isinstance(each, JobHandle)]
        futures = [
            each[0]
            for each in iterables
            if isinstance(each, list | tuple) and each and isinstance(each[0], FutureHandle)
        ]
        whole = [_core(value) for value in common.values() if isinstance(value, JobHandle)]
        for job in (*jobs, *whole, *(_core(future).job for future in futures)):
            await job.ready()
        return {job.job_id: await job.count() for job in jobs}

    async def run(self, plan: MapPlan, job_id: str = "") -> AsyncJob[Any]:
        """Submit a planned job; returns when all of it is durable."""
        writer = self.writer(plan, job_id)
        await self.send(plan, writer)
        return self.started(plan, writer)

    async def send(self, plan: MapPlan, writer: JobWriter) -> None:
        """Send all of a planned job; returns when it is durable."""
        if isinstance(plan.calls, AsyncIterable):
            await self._feed(plan, plan.calls, writer)
            return
        try:
            for batch, last in batches(told(plan.payloads(), writer)):
                await writer.send(batch, last=last)
                if writer.stopped:
                    break
            await writer.finish()
        except BaseException:
            await writer.abandon()
            raise

    @staticmethod
    async def _feed(plan: MapPlan, calls: AsyncIterable[tuple[Any, ...]], writer: JobWriter) -> None:
        """Calls from an asynchronous source, sent as they come."""
        feed = Feed(writer, asyncio.get_running_loop())
        sending = asyncio.create_task(feed.run())
        try:
            try:
                async for call in calls:
                    if feed.put(plan.encode(call)):
                        await feed.room()
                    if feed.ended:
                        break
            except Exception as error:
                note_left_open(error, writer)
                raise
            feed.end()
            await sending
        except BaseException:
            sending.cancel()
            await asyncio.wait({sending})
            raise

    def writer(self, plan: MapPlan, job_id: str = "") -> JobWriter:
        """What sends the job."""
        chosen = job_id or new_job_id(plan.spec.name or plan.spec.template.type)
        return JobWriter(self.connection, chosen, plan.spec, plan.count)

    def started(self, plan: MapPlan, writer: JobWriter) -> AsyncJob[Any]:
        """The handle on a job that was sent."""
        job: AsyncJob[Any] = AsyncJob(self.connection, writer.job_id, keys=plan.keys, task_count=writer.task_count)
        self._jobs.add(job)
        self.notice(job, plan.spec.template.type)
        return job

    def notice(self, job: AsyncJob[Any], task_type: str) -> None:
        """Say once per task type when no worker offers it, since the tasks would wait without a word."""
        if task_type in self._noticed:
            return
        self._noticed.add(task_type)
        task = asyncio.create_task(self._notice(job, task_type))
        self._notices.add(task)
        task.add_done_callback(self._notices.discard)

    async def _notice(self, job: AsyncJob[Any], task_type: str) -> None:
        await asyncio.sleep(_NOTICE_AFTER_S)
        await self.tell_unoffered(job, task_type)

    async def tell_unoffered(self, job: AsyncJob[Any], task_type: str) -> None:
        """Say it if no worker offers the type of a job that waits; when that cannot be told soon, say nothing."""
        with suppress(AntFarmError, TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                waits = not (await job.status()).state.terminal and not await self.offered(task_type)
            if waits:
                log.warning(
                    "no worker of the farm at %s offers the task type %r yet; job %s waits for one "
                    "(start one with `--app` and the module or file that defines it)",
                    self.address,
                    task_type,
                    job.job_id,
                )

    async def offered(self, task_type: str) -> bool:
        """Whether a worker that is there can run the task type."""
        async for worker in self.connection.workers_now():
            if any(offer in (task_type, f"{task_type}:plan") for offer in worker.task_types):
                return True
        return False

    # ---- waiting ----------------------------------------------------------------------------------------------------

    async def gather(self, *things: Any, return_exceptions: bool = False) -> list[Any]:
        """The values of futures and jobs, in their order; a job gives the list of its values.

        The first failure is raised. With `return_exceptions` each stands in the place of its value, as does the error of a value that cannot be read.
        """
        return [await self._value(thing, return_exceptions) for thing in flat(things)]

    async def _value(self, thing: Any, return_exceptions: bool) -> Any:
        try:
            if isinstance(thing, AsyncFuture):
                return await thing.result()
            if not return_exceptions:
                return [value async for value in thing.results()]
            done = sorted([future async for future in thing.as_completed()], key=lambda future: future.index)
            return [await self._value(future, return_exceptions) for future in done]
        except AntFarmError as error:
            if not return_exceptions:
                raise
            return error

    async def as_completed(self, *things: Any) -> AsyncIterator[AsyncFuture[Any]]:
        """The futures, and the tasks of the jobs, in the order in which they end, each done."""
        async for batch in completed(*things):
            for future in batch:
                yield future

    async def wait(self, *things: Any, timeout: Duration | None = None) -> tuple[set[Any], set[Any]]:
        """(done, not done) of futures and jobs, when all have ended or the time is over."""
        return await ended(things, None if timeout is None else seconds(timeout))

    async def cancel(self, *things: Any, cause: str = "") -> None:
        """Cancel futures and jobs."""
        for thing in flat(things):
            await thing.cancel(cause)

    async def retry(self, job: AsyncJob[R], *, failed: bool = True) -> AsyncJob[R]:
        """A new job of the job's tasks that ended without success."""
        return await job.retry(failed=failed)

    # ---- finding again ----------------------------------------------------------------------------------------------

    async def job(self, selector: str) -> AsyncJob[Any]:
        """A job by its id, a unique beginning of the id, its name (the newest of that name), or "last". JobNotFound otherwise."""
        status = await self.find(selector)
        job: AsyncJob[Any] = AsyncJob(self.connection, status.job_id)
        self._jobs.add(job)
        return job

    async def find(self, selector: str) -> JobStatus:
        """The status of a job by the same selectors."""
        return await find_job(self.connection, selector)

    def jobs(self, *, name: str = "", limit: int | None = None) -> AsyncIterator[JobStatus]:
        """Jobs, newest first."""
        return list_jobs(self.connection, name=name, limit=limit)


def _core(handle: Any) -> Any:
    """The asynchronous handle, of a blocking one too."""
    return getattr(handle, "aio", handle)


def told(payloads: Iterator[bytes], writer: JobWriter) -> Iterator[bytes]:
    """The payloads; when the source of the user's raises, the error says what has become of the job."""
    try:
        yield from payloads
    except Exception as error:
        note_left_open(error, writer)
        raise


def note_left_open(error: Exception, writer: JobWriter) -> None:
    """Say with the error of a source what has become of its job, if there may be one already."""
    if writer.begun:
        error.add_note(left_open(writer))


def left_open(writer: JobWriter) -> str:
    """What has become of a job that is not sent to its end, and what to do."""
    job_id = writer.job_id
    stands = (
        f"stays open with {writer.taken_count:,} tasks or more"
        if writer.created.is_set()
        else "may have been begun, and stays open then"
    )
    return f"job {job_id} {stands}: submit all of it again with --job-id {job_id} (in Python job_id=), or `antfarm job cancel {job_id}`"


MAP_OPTIONS = frozenset({"name", "priority", "max_failures", "key", "labels", "job_id", "request_id"})
"""Keywords of map and starmap that are not handed to the function."""
