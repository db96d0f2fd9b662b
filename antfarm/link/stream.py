"""What grpc.aio leaves to its user on a bidirectional stream: typed reads, the status behind an end, waits that may time out.

A read is never given a timeout: cancelling it cancels the whole call. Timeouts belong to our own events.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio

from antfarm import net
from antfarm.errors import AntFarmError, Unavailable
from antfarm.model import SECOND_NS

Call = grpc.aio.StreamStreamCall[Any, Any]

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now_ns() -> int:
    """Time by a clock that also counts while the machine sleeps, so that a resumed worker knows that its lease is over."""
    return time.clock_gettime_ns(_CLOCK)


async def read_frame(call: Call) -> Any:
    """The next frame; None when the peer closed the stream in good order. AioRpcError when it ended with another status."""
    frame: Any = await call.read()
    if frame is not grpc.aio.EOF:
        return frame
    code = await call.code()
    if code is not grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(
            code, await call.initial_metadata(), await call.trailing_metadata(), details=await call.details()
        )
    return None


async def wait_for(event: asyncio.Event, timeout_ns: int | None) -> None:
    """Until the event is set or the time is over; the event is clear afterwards."""
    if timeout_ns is None or event.is_set():
        await event.wait()
    else:
        with suppress(TimeoutError):
            async with asyncio.timeout(max(timeout_ns, 0) / SECOND_NS):
                await event.wait()
    event.clear()


async def serve_until_one_ends(*coroutines: Any) -> None:
    """Run the readers and writers of a connection together; when one ends, end the others, and raise the error that says most."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        endings = await asyncio.gather(*tasks, return_exceptions=True)
    errors = [ending for ending in endings if isinstance(ending, Exception)]
    if errors:
        error = min(errors, key=_rank)
        if isinstance(error, net.CALL_ENDED):  # a writer found out before the readers were told how it ended
            raise Unavailable("its stream has ended") from error
        raise error


def _rank(error: Exception) -> int:
    """Our own defects first, then what the peer says, then what a lost connection says, last writes into a stream that is over."""
    if isinstance(error, grpc.aio.AioRpcError):
        return 2 if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED) else 1
    if isinstance(error, (*net.CALL_ENDED, grpc.aio.UsageError)):
        return 3
    return 1 if isinstance(error, AntFarmError) else 0
