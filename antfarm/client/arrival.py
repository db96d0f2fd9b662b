"""Waiting for several futures and jobs at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from functools import partial
from typing import Any

from antfarm.client.job import AsyncFuture, AsyncJob
from antfarm.errors import InvalidArgument
from antfarm.wire import Arrived

_BATCHES_MAX = 16


def flat(things: Iterable[Any]) -> list[Any]:
    """Futures and jobs, taken out of lists and generators of them."""
    found: list[Any] = []
    for thing in things:
        if isinstance(thing, AsyncFuture | AsyncJob):
            found.append(thing)
        elif isinstance(thing, Iterable) and not isinstance(thing, str | bytes):
            found.extend(flat(thing))
        else:
            raise InvalidArgument(f"{type(thing).__name__} is neither a future nor a job of this farm")
    return found


async def ended(things: Iterable[Any], timeout_s: float | None) -> tuple[set[Any], set[Any]]:
    """(ended, not ended) when all have ended or the time is over."""
    waits = {asyncio.create_task(_end(thing)): thing for thing in flat(things)}
    if not waits:
        return set(), set()
    try:
        done, _ = await asyncio.wait(waits, timeout=timeout_s)
        for task in done:
            task.result()
        return {waits[task] for task in done}, {thing for task, thing in waits.items() if task not in done}
    finally:
        await _cancel(waits)


async def _end(thing: Any) -> None:
    await (thing.arrive() if isinstance(thing, AsyncFuture) else thing.wait())


async def completed(*things: Any) -> AsyncIterator[list[AsyncFuture[Any]]]:
    """Futures and the tasks of jobs in the order in which they end, those together that arrived together."""
    queue: asyncio.Queue[list[AsyncFuture[Any]] | BaseException | None] = asyncio.Queue(maxsize=_BATCHES_MAX)
    found = flat(things)
    futures = [thing for thing in found if isinstance(thing, AsyncFuture)]
    feeds = [_feed_job(thing, queue) for thing in found if not isinstance(thing, AsyncFuture)]
    if futures:
        feeds.append(_feed_futures(futures, queue))
    tasks = [asyncio.create_task(_carry(feed, queue)) for feed in feeds]
    left = len(tasks)
    try:
        while left:
            item = await queue.get()
            if item is None:
                left -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        await _cancel(tasks)


async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _carry(feed: Awaitable[None], queue: asyncio.Queue[Any]) -> None:
    """Run a feed to its end, and say into the queue how it ended, or those there would wait for ever."""
    try:
        await feed
    except Exception as error:
        await queue.put(error)
    else:
        await queue.put(None)


async def _feed_futures(futures: Sequence[AsyncFuture[Any]], queue: asyncio.Queue[Any]) -> None:
    arrived: list[tuple[AsyncFuture[Any], asyncio.Future[Arrived]]] = []
    news = asyncio.Event()

    def note(future: AsyncFuture[Any], waiter: asyncio.Future[Arrived]) -> None:
        arrived.append((future, waiter))
        news.set()

    for future in futures:
        future.job.waiter(future.index).add_done_callback(partial(note, future))
    left = len(futures)
    while left:
        await news.wait()
        news.clear()
        batch, arrived[:] = arrived[:], []
        left -= len(batch)
        done = [future for future, waiter in batch if waiter.exception() is None]
        if done:
            await queue.put(done)
        trouble = next((error for _, waiter in batch if (error := waiter.exception()) is not None), None)
        if trouble is not None:  # not asked for again: the next try may bring some of them and not others
            raise trouble


async def _feed_job(job: AsyncJob[Any], queue: asyncio.Queue[Any]) -> None:
    async for batch in job.batches():
        await queue.put([AsyncFuture(job, message.index, message) for message in batch])
