"""Calls to the disk from asyncio: a pool of threads, the operating system's errors in our words, and one step ahead of the caller."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from antfarm.errors import DiskFull, Overloaded, Unavailable
from services.storage.backends.base import damaged

THREADS = 16
"""Calls to the disk at once; syncs of many small blobs wait for the disk together."""

log = logging.getLogger("antfarm.storage")
T = TypeVar("T")


class Disk:
    """The threads in which everything runs that may wait for the disk."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="storage-disk")

    async def run(self, call: Callable[..., T], *arguments: Any) -> T:
        """The call's result; an OSError as one of our errors."""
        with translated():
            return await asyncio.get_running_loop().run_in_executor(self.pool, call, *arguments)

    def close(self) -> None:
        """End the threads."""
        self.pool.shutdown()


@contextmanager
def translated() -> Iterator[None]:
    """An OSError becomes DiskFull, Overloaded or Unavailable, with what to do."""
    try:
        yield
    except OSError as error:
        words = os.strerror(error.errno or errno.EIO)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFull(f"storage is full ({words}); nothing was kept, free some space there") from error
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise Overloaded(f"storage has too many files open ({words}); try again", retry_after_s=1.0) from error
        log.error("the disk failed: %s", error)
        raise Unavailable(f"the disk of storage failed ({words}); nothing was kept") from error


@contextmanager
def reading(key: str) -> Iterator[None]:
    """A disk that cannot read a blob has lost it, as far as the reader is concerned: EIO becomes DataLoss."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        log.error("the disk failed: %s; blob %s cannot be read", error, key)
        raise damaged(key, "the disk cannot read it") from error


async def completed(work: Coroutine[Any, Any, T]) -> T:
    """The result of work that goes to its end even when the caller is cancelled meanwhile: closing and removing must not stop half-way.

    A peer that goes away cancels a call wherever it stands, also in its clean-up.
    """
    task, cancelled = asyncio.create_task(work), None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        task.exception()
        raise cancelled
    return task.result()


async def acquired(opening: Coroutine[Any, Any, T], release: Callable[[T], Awaitable[None]]) -> T:
    """What `opening` opens. When the caller is cancelled meanwhile it is released again, so no descriptor and no file is left."""
    opened: list[T] = []

    async def open_it() -> None:
        opened.append(await opening)

    try:
        await completed(open_it())
    except asyncio.CancelledError:
        for resource in opened:
            await release(resource)
        raise
    return opened[0]


class Step(Generic[T]):
    """At most one piece of work that goes on while its owner does something else.

    Cancelling the owner does not cancel the work: a thread that writes cannot be stopped, so its file must not be taken from under it.
    """

    def __init__(self) -> None:
        self._task: asyncio.Task[T] | None = None

    @property
    def running(self) -> bool:
        """True from `start` until the result is taken."""
        return self._task is not None

    @property
    def done(self) -> bool:
        """True when the result can be taken without a wait."""
        return self._task is not None and self._task.done()

    def start(self, work: Coroutine[Any, Any, T]) -> None:
        """Begin; the result of the step before was taken."""
        assert self._task is None, "one step at a time"
        self._task = asyncio.create_task(work)

    async def result(self) -> T:
        """Wait for the step, and take its result or its error."""
        assert self._task is not None, "no step was started"
        await asyncio.wait((self._task,))
        task, self._task = self._task, None
        return task.result()

    async def settle(self) -> None:
        """Wait for the step, if there is one, and forget its outcome."""
        if self._task is not None:
            await asyncio.wait((self._task,))
            task, self._task = self._task, None
            if not task.cancelled():
                task.exception()
