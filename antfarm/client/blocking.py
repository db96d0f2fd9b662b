"""The farm as most scripts see it: blocking. Thin faces over antfarm.client.farm and antfarm.client.job, which do the work on one loop thread.

What runs the user's code stays in the user's thread: iterables are read and encoded there, and values decoded there.
"""

from __future__ import annotations

import asyncio
import atexit
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar

from antfarm.blocking import loop_thread
from antfarm.client import farm as aio
from antfarm.client.arrival import completed
from antfarm.client.executor import FarmExecutor
from antfarm.client.handle import FutureHandle, JobHandle
from antfarm.client.job import AsyncFuture, AsyncJob, Order, fraction_done, outcome_of_failure, value_of
from antfarm.client.plan import Function, MapPlan, chosen_id, common_arguments
from antfarm.client.writer import Feed, JobWriter, batches
from antfarm.duration import Duration
from antfarm.errors import AntFarmError, InvalidArgument, TaskError, TaskNotFound
from antfarm.model import Explanation, JobStatus, TaskState
from antfarm.pipeline import Outcome
from antfarm.task import is_whole
from antfarm.wire import Arrived

R = TypeVar("R")


class Future(FutureHandle, Generic[R]):
    """One task of a job."""

    __slots__ = ("aio",)

    def __init__(self, core: AsyncFuture[R]) -> None:
        self.aio = core

    @property
    def job(self) -> Job[R]:
        """The job it belongs to."""
        return Job(self.aio.job)

    @property
    def job_id(self) -> str:
        """The job."""
        return self.aio.job_id

    @property
    def index(self) -> int:
        """Its index in the job."""
        return self.aio.index

    @property
    def key(self) -> Any:
        """What people call it: as given by `key=`, else its first argument where that is known, else its index."""
        return self.aio.key

    @property
    def state(self) -> TaskState | None:
        """How it ended; None while this process does not know of its end."""
        return self.aio.state

    def __repr__(self) -> str:
        return repr(self.aio)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Future) and (self.job_id, self.index) == (other.job_id, other.index)

    def __hash__(self) -> int:
        return hash((self.job_id, self.index))

    def _arrive(self, timeout: Duration | None) -> Arrived:
        return self.aio.message or loop_thread().run(self.aio.arrive(timeout))

    def done(self) -> bool:
        """True when its outcome has arrived here, or none will come because its submission failed, which `result` raises.

        Asking starts the stream of outcomes of its job.
        """
        if not self.aio.done():
            loop_thread().run(self.aio.job.listen())
        return self.aio.done()

    def result(self, timeout: Duration | None = None) -> R:
        """Its value; raises `TaskFailed` or the like with the remote traceback, `TimeoutError` after `timeout`."""
        value: R = decode(self.aio.job, self._arrive(timeout))
        return value

    def exception(self, timeout: Duration | None = None) -> TaskError | None:
        """The error that `result` would raise, or None."""
        return outcome_of_failure(self._arrive(timeout), self.job_id)

    def outcome(self, timeout: Duration | None = None) -> Outcome:
        """All that is recorded of its end; does not raise when the task failed."""
        return loop_thread().run(self.aio.outcome(timeout))

    def explain(self) -> Explanation:
        """How the task stands, in words: why it waits, was repeated, is slow or failed, and what would help. `print` it."""
        return loop_thread().run(self.aio.explain())

    def cancel(self, cause: str = "") -> bool:
        """Cancel the task; True when it ended as cancelled, False when it had ended otherwise before."""
        return loop_thread().run(self.aio.cancel(cause))


def decode(job: AsyncJob[Any], message: Arrived) -> Any:
    """The value of an outcome in the caller's thread; raises the TaskError of its cause."""
    connection = job.connection
    return value_of(
        message, job.job_id, message.result, get=connection.get_blocking, allow_pickle=connection.allow_pickle
    )


class Job(JobHandle, Generic[R]):
    """Tasks that were submitted together. Iterating gives their futures in the order of their input."""

    def __init__(self, core: AsyncJob[R]) -> None:
        self.aio = core

    @property
    def job_id(self) -> str:  # type: ignore[override]
        """Its id; `farm.job(job_id)` finds it again from anywhere."""
        return self.aio.job_id

    @property
    def keys(self) -> Sequence[Any] | None:  # type: ignore[override]
        """What its tasks are called, where that is known."""
        return self.aio.keys

    def __repr__(self) -> str:
        return repr(self.aio)

    def __len__(self) -> int:
        return loop_thread().run(self.aio.count())

    def __iter__(self) -> Iterator[Future[R]]:
        return (Future(AsyncFuture(self.aio, index)) for index in range(len(self)))

    def __getitem__(self, index: int) -> Future[R]:
        if is_whole(index) and index < 0:
            count = len(self)
            if -index > count:
                raise TaskNotFound(f"job {self.job_id} has no task {index}; it has {count:,}")
            index += count
        return Future(self.aio.future(index))

    def as_completed(self) -> Iterator[Future[R]]:
        """Its tasks in the order in which they end, each done. Constant memory."""
        for batch in loop_thread().iterate(self.aio.batches()):
            for message in batch:
                yield Future(AsyncFuture(self.aio, message.index, message))

    def results(self) -> Iterator[R]:
        """Their values in the order of their input; raises at the first task that did not succeed.

        What ends out of order is kept until its turn comes.
        """
        order, core = Order(), self.aio
        for batch in loop_thread().iterate(core.batches()):
            for message in order.take(batch):
                yield decode(core, message)

    def outcomes(self) -> Iterator[Outcome]:
        """How they ended, in the order of their input; does not raise for tasks that failed."""
        return loop_thread().iterate(self.aio.outcomes())

    @property
    def status(self) -> JobStatus:
        """How it stands."""
        return loop_thread().run(self.aio.status())

    @property
    def progress(self) -> float:
        """The part of its tasks that have ended, 0 to 1."""
        return fraction_done(self.status)

    def explain(self) -> Explanation:
        """How it stands, in words: what keeps its tasks, why some failed, and what would help. `print` it."""
        return loop_thread().run(self.aio.explain())

    def watch(self) -> Iterator[JobStatus]:
        """How it stands, at once and after changes, until it has ended."""
        return loop_thread().iterate(self.aio.watch())

    def wait(self, timeout: Duration | None = None) -> JobStatus:
        """Return its last status when it has ended. TimeoutError when that takes longer; the job goes on."""
        return loop_thread().run(self.aio.wait(timeout))

    def cancel(self, cause: str = "") -> JobStatus:
        """Cancel all its tasks that have not ended. After it returns no success of them is recorded."""
        return loop_thread().run(self.aio.cancel(cause))

    def pause(self) -> JobStatus:
        """Give out no more of its tasks until `resume`."""
        return loop_thread().run(self.aio.pause())

    def resume(self) -> JobStatus:
        """End a pause."""
        return loop_thread().run(self.aio.resume())

    def retry(self, *, failed: bool = True) -> Job[R]:
        """A new job of its tasks that ended without success. NothingToRetry when there are none."""
        return Job(loop_thread().run(self.aio.retry(failed=failed)))

    def purge(self) -> None:
        """Remove the job and its record, after it has ended. JobNotEnded before."""
        loop_thread().run(self.aio.purge())


class Farm:
    """A connection to a farm. Jobs belong to the orchestrator: closing this ends nothing but the connection."""

    def __init__(self, core: aio.AsyncFarm) -> None:
        self.aio = core
        atexit.register(self.close)

    @property
    def address(self) -> str:
        """Address of the orchestrator."""
        return self.aio.address

    def __repr__(self) -> str:
        return repr(self.aio)

    def __enter__(self) -> Farm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(now=aio.in_a_hurry(kind))

    def close(self, *, now: bool = False) -> None:
        """Send what was submitted, disconnect, and end an embedded farm.

        Its running tasks may finish within 10 s; with `now`, as after Ctrl-C, they are stopped. They are run again at the next connect.
        What cannot be sent is tried on with patience; with `now` for 2 s. Warnings say what was not taken and nobody asked for.
        In a process that was forked from the one that connected it does nothing: all of it is that one's.
        """
        atexit.unregister(self.close)
        if not loop_thread().here:
            return
        try:
            loop_thread().run(self.aio.disconnect(now=now))
        finally:
            self.aio.end(now=now)  # in this thread: at the end of the process there are no others to be had

    # ---- submitting -------------------------------------------------------------------------------------------------

    def submit(self, function: Function, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run one call. Returns its future at once; calls that are made together travel together.

        Futures and jobs among the arguments are waited for by the farm, and their values (of a job: the list of `Outcome`s)
        take their places.
        """
        loop_thread().demand_here()
        return Future(self.aio.add(self.aio.plan_submit(function, args, kwargs)))

    def flush(self) -> None:
        """Return when everything that was submitted is durable in the orchestrator.

        Raises the first error that kept some of it from that, unless whoever asked for its future was told; warnings tell of further ones.
        """
        loop_thread().run(self.aio.flush())

    def map(
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
    ) -> Job[Any]:
        """Run `function(*items)` for the items of the iterables, like the built-in `map`. Returns when all are durable.

        Args:
            iterables: lists, generators (streamed in constant memory), jobs and lists of futures of one job. A job means: each call
                waits for its counterpart there alone and gets its value.
            name: for people, and to find the job again.
            priority: -10 to 10; each step quadruples the job's share.
            max_failures: cancel the job when more of its tasks failed.
            key: what to call the tasks: a function of the call's arguments, or one value each. Default: the first argument.
            labels: free text for people and selectors.
            job_id, request_id: the job's id, chosen by the caller; again with the same one and the same input nothing runs twice; other input, fewer or more of it too, is refused.
            common: keyword arguments of all calls whose names are taken by those above.
            kwargs: keyword arguments of all calls. A whole job here makes every call wait for all of it and get its `Outcome`s.
        """
        options = {"name": name, "priority": priority, "max_failures": max_failures, "key": key, "labels": labels}
        chosen, shared = chosen_id(job_id, request_id), common_arguments(kwargs, common)
        return self._run(self._plan(function, iterables, shared, options), chosen)

    def starmap(
        self, function: Function, calls: Any, /, *, common: Mapping[str, Any] | None = None, **options: Any
    ) -> Job[Any]:
        """Run `function(*call)` for each of the calls. Options as in `map`."""
        named = {word: options.pop(word) for word in list(options) if word in aio.MAP_OPTIONS}
        job_id, shared = (
            chosen_id(named.pop("job_id", ""), named.pop("request_id", "")),
            common_arguments(options, common),
        )
        return self._run(self._plan(function, (calls,), shared, {**named, "star": True}), job_id)

    def _plan(
        self, function: Function, iterables: Sequence[Any], common: Mapping[str, Any], options: Mapping[str, Any]
    ) -> MapPlan:
        counts = loop_thread().run(self.aio.counts(iterables, common))
        return self.aio.plan_counted(function, iterables, common, counts, **options)

    def _run(self, plan: MapPlan, job_id: str) -> Job[Any]:
        run = loop_thread().run
        if isinstance(plan.calls, AsyncIterable):
            return Job(run(self.aio.run(plan, job_id)))
        writer = self.aio.writer(plan, job_id)
        if plan.ready:
            try:
                for batch, last in batches(aio.told(plan.payloads(), writer)):
                    run(writer.send(batch, last=last))
                    if writer.stopped:
                        break
                run(writer.finish())
            except BaseException:
                run(writer.abandon())
                raise
        else:
            self._feed(plan, writer)
        return Job(run(self._started(plan, writer)))

    def _feed(self, plan: MapPlan, writer: JobWriter) -> None:
        """Run the user's iterables in this thread, while the loop sends what they have yielded."""
        loop = loop_thread()
        feed = loop.run(self._make_feed(writer))
        sending = asyncio.run_coroutine_threadsafe(feed.run(), loop.loop)
        try:
            for encoded in aio.told(plan.payloads(), writer):
                if feed.put(encoded):
                    loop.run(feed.room())
                if feed.ended:
                    break
            feed.end()
            sending.result()
        except BaseException:
            sending.cancel()
            raise

    @staticmethod
    async def _make_feed(writer: JobWriter) -> Feed:
        return Feed(writer, asyncio.get_running_loop())

    async def _started(self, plan: MapPlan, writer: JobWriter) -> AsyncJob[Any]:
        return self.aio.started(plan, writer)

    # ---- waiting ----------------------------------------------------------------------------------------------------

    def gather(self, *things: Any, return_exceptions: bool = False) -> list[Any]:
        """The values of futures and jobs, in their order; a job gives the list of its values.

        The first failure is raised. With `return_exceptions` each stands in the place of its value, as does the error of a value that cannot be read.
        """
        return [self._value(thing, return_exceptions) for thing in _flat(things)]

    def _value(self, thing: Any, return_exceptions: bool) -> Any:
        try:
            if isinstance(thing, Future):
                return thing.result()
            if not return_exceptions:
                return list(thing.results())
            done = sorted(thing.as_completed(), key=lambda future: future.index)
            return [self._value(future, return_exceptions) for future in done]
        except AntFarmError as error:
            if not return_exceptions:
                raise
            return error

    def as_completed(self, *things: Any) -> Iterator[Future[Any]]:
        """The futures, and the tasks of the jobs, in the order in which they end, each done."""
        cores = [thing.aio for thing in _flat(things)]
        for batch in loop_thread().iterate(completed(*cores)):
            for future in batch:
                yield Future(future)

    def wait(self, *things: Any, timeout: Duration | None = None) -> tuple[set[Any], set[Any]]:
        """(done, not done) of futures and jobs, when all have ended or the time is over."""
        faces = {thing.aio: thing for thing in _flat(things)}
        done, left = loop_thread().run(self.aio.wait(*faces, timeout=timeout))
        return {faces[core] for core in done}, {faces[core] for core in left}

    def cancel(self, *things: Any, cause: str = "") -> None:
        """Cancel futures and jobs."""
        for thing in _flat(things):
            thing.cancel(cause)

    def retry(self, job: Job[R], *, failed: bool = True) -> Job[R]:
        """A new job of the job's tasks that ended without success."""
        return job.retry(failed=failed)

    # ---- finding again ----------------------------------------------------------------------------------------------

    def job(self, selector: str) -> Job[Any]:
        """A job by its id, a unique beginning of the id, its name (the newest of that name), or "last". JobNotFound otherwise."""
        return Job(loop_thread().run(self.aio.job(selector)))

    def jobs(self, *, name: str = "", limit: int | None = None) -> Iterator[JobStatus]:
        """Jobs, newest first."""
        return loop_thread().iterate(self.aio.jobs(name=name, limit=limit))

    def executor(self) -> FarmExecutor:
        """The farm as a `concurrent.futures.Executor`."""
        return FarmExecutor(self)


def _flat(things: Iterable[Any]) -> list[Any]:
    """Futures and jobs, taken out of lists and generators of them."""
    flat: list[Any] = []
    for thing in things:
        if isinstance(thing, Future | Job):
            flat.append(thing)
        elif isinstance(thing, Iterable) and not isinstance(thing, str | bytes):
            flat.extend(_flat(thing))
        else:
            raise InvalidArgument(f"{type(thing).__name__} is neither a future nor a job of this farm")
    return flat
