"""The one way from blocking code into asyncio: an event loop in a thread of its own.

The asynchronous classes are the real ones; blocking faces call them through this. gRPC objects belong to the loop in which they are made, so
one process has one such loop, started on first use and ended with the interpreter.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from functools import cache
from typing import Any, TypeVar

from antfarm.errors import WrongState
from antfarm.loop import new_event_loop

T = TypeVar("T")
_LOOK_S = 0.25
"""How long Ctrl-C may go unseen."""


class LoopThread:
    """An event loop that turns in a daemon thread."""

    def __init__(self) -> None:
        self.loop = new_event_loop()
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self.loop.run_forever, name="antfarm-loop", daemon=True)
        self._thread.start()

    @property
    def here(self) -> bool:
        """False in a process that was forked from the loop's own: threads stay behind."""
        return os.getpid() == self._pid

    def demand_here(self) -> None:
        """Raise WrongState in a forked process: nobody turns the loop there. A new loop would be of no use, because gRPC does not survive a fork."""
        if not self.here:
            raise WrongState(
                "this process was forked from one that had connected to a farm, and cannot use that: "
                'start it by multiprocessing.get_context("spawn") and connect() there'
            )

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result or exception. KeyboardInterrupt cancels it. WrongState in a forked process."""
        if not self.here:
            coroutine.close()
            self.demand_here()
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("a blocking call of AntFarm inside its own event loop; use antfarm.aio there")
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return _wait(future)
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """The items of an asynchronous iterator, each fetched when it is asked for."""
        current: asyncio.Task[Any] | None = None

        async def step() -> tuple[bool, T | None]:
            nonlocal current
            current = asyncio.current_task()
            try:
                return True, await anext(items)
            except StopAsyncIteration:
                return False, None

        async def end(close: Callable[[], Awaitable[None]]) -> None:
            if (
                current is not None and not current.done()
            ):  # Ctrl-C has left it behind, perhaps before it could cancel it
                if not current.cancelling():
                    current.cancel()
                await asyncio.wait({current})
            await close()

        try:
            while True:
                more, item = self.run(step())
                if not more:
                    return
                yield item  # type: ignore[misc]
        finally:
            close = getattr(items, "aclose", None)
            if close is not None and self.here and not sys.is_finalizing():  # at the very end nobody turns the loop
                if threading.current_thread() is self._thread:  # a forgotten iterator, found by the collector just here
                    self.loop.create_task(end(close))
                else:
                    self.run(end(close))


def _wait(future: Future[T]) -> T:
    """The future's result. In pieces: a signal that comes in the instant before a wait begins is seen only when that wait ends."""
    while True:
        try:
            return future.result(_LOOK_S)
        except TimeoutError:
            if future.done():  # perhaps the error is its own
                return future.result()


@cache
def loop_thread() -> LoopThread:
    """The process's one loop thread."""
    return LoopThread()
