"""The farm behind the interface of `concurrent.futures`, for code that knows nothing of farms."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

from antfarm.blocking import loop_thread
from antfarm.client.job import AsyncFuture, AsyncJob

if TYPE_CHECKING:
    from antfarm.client.blocking import Farm


class FarmExecutor(concurrent.futures.Executor):
    """Runs calls on the farm. Leaving its `with` block waits for them, read or not; the farm stays connected."""

    def __init__(self, farm: Farm) -> None:
        self._farm = farm
        self._open: set[concurrent.futures.Future[Any]] = set()
        """Calls and maps that have not ended."""
        self._cancels: set[concurrent.futures.Future[None]] = set()
        """Cancellations that the farm has not answered."""
        self._shut = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        """Run `fn(*args, **kwargs)` on a worker."""
        self._demand_open()
        core = self._farm.submit(fn, *args, **kwargs).aio
        return self._keep(core, core.result())

    def map(
        self, fn: Callable[..., Any], *iterables: Any, timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[Any]:
        """Like the built-in `map`, as one job; values in the order of the input. `chunksize` is not needed: batches are the farm's matter."""
        self._demand_open()
        job = self._farm.map(fn, *iterables)
        self._keep(job.aio, job.aio.wait())
        if timeout is not None:
            job.wait(timeout)
        return job.results()

    def _demand_open(self) -> None:
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def _keep(
        self, core: AsyncFuture[Any] | AsyncJob[Any], end: Coroutine[Any, Any, Any]
    ) -> concurrent.futures.Future[Any]:
        """The future of the end of a call or of a job, which `shutdown` waits for or cancels."""
        loop = loop_thread().loop
        future = asyncio.run_coroutine_threadsafe(end, loop)
        self._open.add(future)

        def ended(done: concurrent.futures.Future[Any]) -> None:
            self._open.discard(done)
            if done.cancelled():
                cancel = asyncio.run_coroutine_threadsafe(_cancel(core), loop)
                self._cancels.add(cancel)
                cancel.add_done_callback(self._cancels.discard)

        future.add_done_callback(ended)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; wait for those that run, or cancel them first and wait until the farm has cancelled them."""
        self._shut = True
        pending = list(self._open)
        if cancel_futures:
            for future in pending:
                future.cancel()
        if wait:
            concurrent.futures.wait(pending)
            concurrent.futures.wait(
                list(self._cancels)
            )  # who closes the farm next would lose those that have not arrived


async def _cancel(core: AsyncFuture[Any] | AsyncJob[Any]) -> None:
    await core.cancel("the caller cancelled its future")
