"""Many small calls of one client on one open stream: each ask is answered under its number by what the call of its own would answer."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import grpc.aio

from antfarm.errors import AntFarmError, InvalidArgument, Overloaded
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
        # Written by one task that nobody cancels: after a write that was given up halfway gRPC refuses the next one.
        self._outgoing: asyncio.Queue[job_pb2.ConverseResponse] = asyncio.Queue(maxsize=1)

    async def read(self) -> None:
        """Take asks until the client has no more."""
        await self._context.send_initial_metadata(())
        while (request := await self._context.read()) is not grpc.aio.EOF:
            await self._take(request)

    async def write(self) -> None:
        """Send answers until cancelled."""
        while True:
            await self._context.write(await self._outgoing.get())
            self._outgoing.task_done()

    async def end(self) -> None:
        """Return when every ask is answered and the answers are sent."""
        while self._asks:
            await asyncio.wait(self._asks.values())
        await self._outgoing.join()

    def give_up(self) -> None:
        """Answer nothing any more."""
        for ask in self._asks.values():
            ask.cancel()

    async def _take(self, request: job_pb2.ConverseRequest) -> None:
        number = request.number
        if request.stop:
            if number in self._asks:
                self._asks.pop(number).cancel()
        elif number in self._asks:
            raise InvalidArgument(f"ask {number} is not answered to its end yet: give another one another number")
        elif len(self._asks) >= ASKS_MAX:  # told from here, so that nothing more is read before there is room for it
            await self._refuse(number, Overloaded(f"{ASKS_MAX} asks wait for their answers: ask again", 1.0))
        else:
            self._asks[number] = task = asyncio.create_task(self._answer(request))
            task.add_done_callback(lambda task: self._answered(number, task))

    def _answered(self, number: int, task: asyncio.Task[None]) -> None:
        if self._asks.get(number) is task:
            del self._asks[number]

    async def _answer(self, request: job_pb2.ConverseRequest) -> None:
        number = request.number
        try:
            match request.WhichOneof("ask"):
                case "create":
                    created = await self._calls.CreateJob(request.create, self._context)
                    await self._outgoing.put(job_pb2.ConverseResponse(number=number, created=created))
                case "results":
                    await self._results(number, request.results)
                case _:
                    raise InvalidArgument(
                        "an ask is one of create, results and stop; upgrade the orchestrator for others"
                    )
        except Exception as error:
            await self._refuse(number, told(error, "Converse"))

    async def _results(self, number: int, request: job_pb2.StreamResultsRequest) -> None:
        async with aclosing(self._calls.StreamResults(request, self._context)) as messages:
            async for message in messages:
                await self._outgoing.put(job_pb2.ConverseResponse(number=number, results=message))
                if message.last:
                    return
        await self._outgoing.put(job_pb2.ConverseResponse(number=number, ended=True))

    async def _refuse(self, number: int, error: AntFarmError) -> None:
        _, _, status = error_to_status(error)
        await self._outgoing.put(job_pb2.ConverseResponse(number=number, refused=status))
