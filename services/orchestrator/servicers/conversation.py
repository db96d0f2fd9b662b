"""Many small calls of one client on one open stream: each ask is answered under its number by what the call of its own would answer."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import grpc.aio

from antfarm.errors import InvalidArgument, Overloaded
from antfarm.interceptor import Context, told
from antfarm.v1 import job_pb2
from antfarm.wire import error_to_status

ASKS_MAX = 100
"""Asks of one client that are not answered to their end. Each may keep one message of results while the connection takes no more."""


class Conversation:
    """One stream of Converse. `calls` is the servicer whose CreateJob and StreamResults answer."""

    def __init__(self, calls: Any, context: Context) -> None:
        self._calls = calls
        self._context = context
        self._asks: dict[int, asyncio.Task[None]] = {}
        self._writing = asyncio.Lock()

    async def read(self) -> None:
        """Take asks until the client has no more."""
        await self._context.send_initial_metadata(())
        while (request := await self._context.read()) is not grpc.aio.EOF:
            self._take(request)

    async def end(self, *, give_up: bool) -> None:
        """Return when nothing is answered any more; with `give_up` at once."""
        asks = list(self._asks.values())
        for ask in asks if give_up else ():
            ask.cancel()
        await asyncio.gather(*asks, return_exceptions=True)

    def _take(self, request: job_pb2.ConverseRequest) -> None:
        number = request.number
        ask = self._asks.get(number)
        if request.stop:
            if ask is not None:
                ask.cancel()
            return
        if ask is not None:
            raise InvalidArgument(f"ask {number} is not answered to its end yet: give another one another number")
        self._asks[number] = task = asyncio.create_task(self._answer(request, late=len(self._asks) >= ASKS_MAX))
        task.add_done_callback(lambda task: self._answered(number, task))

    def _answered(self, number: int, task: asyncio.Task[None]) -> None:
        del self._asks[number]
        if not task.cancelled():
            task.exception()  # of a write into a stream that has ended, which its reader finds out

    async def _answer(self, request: job_pb2.ConverseRequest, *, late: bool) -> None:
        last = job_pb2.ConverseResponse(number=request.number)
        try:
            if late:
                raise Overloaded(f"{ASKS_MAX} asks wait for their answers: ask again", retry_after_s=1.0)
            match request.WhichOneof("ask"):
                case "create":
                    last.created.CopyFrom(await self._calls.CreateJob(request.create, self._context))
                case "results":
                    async with aclosing(self._calls.StreamResults(request.results, self._context)) as messages:
                        async for message in messages:
                            await self._write(job_pb2.ConverseResponse(number=request.number, results=message))
                            if message.last:
                                return
                    last.ended = True
                case _:
                    raise InvalidArgument(
                        "an ask is one of create, results and stop; upgrade the orchestrator for others"
                    )
        except Exception as error:
            last = job_pb2.ConverseResponse(number=request.number)
            _, _, last.refused = error_to_status(told(error, "Converse"))
        await self._write(last)

    async def _write(self, response: job_pb2.ConverseResponse) -> None:
        async with self._writing:
            await self._context.write(response)
