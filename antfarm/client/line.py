"""One open stream to the orchestrator for what is asked again and again: the jobs of single calls, and their outcomes.

A call of its own costs client and orchestrator more than a small task does. What is asked here behaves as the call that it stands for, with the same
errors, and is that call where the orchestrator does not know `Converse`.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio

from antfarm.v1 import job_pb2, job_pb2_grpc
from antfarm.wire import rpc_error_of

STREAMED_MAX = 64
"""Jobs whose outcomes may be waited for here at the same time; the orchestrator answers a hundred asks."""

_Answers = asyncio.Queue[job_pb2.ConverseResponse | BaseException]


class Line:
    """Made with a connection; the stream is opened by the first ask, and again by the next one after it broke."""

    def __init__(self, jobs: job_pb2_grpc.JobServiceStub) -> None:
        self.offered = False
        """Whether the orchestrator has said that it knows Converse."""
        self._jobs = jobs
        self._stream: _Stream | None = None
        self._streamed = 0

    @property
    def known(self) -> bool:
        """False when the orchestrator is of a version without Converse, or has become one: then there are the calls themselves."""
        error = None if self._stream is None else self._stream.broken
        return self.offered and not (
            isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.UNIMPLEMENTED
        )

    @property
    def has_room(self) -> bool:
        """Whether one more may wait for outcomes."""
        return self.known and self._streamed < STREAMED_MAX

    async def create(self, request: job_pb2.CreateJobRequest, *, timeout: float) -> job_pb2.CreateJobResponse:
        """CreateJob, which has `timeout` seconds."""
        if self.known:
            stream = self._open()
            try:
                async with asyncio.timeout(timeout), stream.ask(create=request) as answers:
                    return (await _next(answers)).created
            except TimeoutError:
                error = _error(grpc.StatusCode.DEADLINE_EXCEEDED, f"no answer within {timeout:g} s")
                stream.end(error)  # whatever it is that does not come through
                raise error from None
            except grpc.aio.AioRpcError:
                if self.known:
                    raise
        return await self._jobs.CreateJob(request, timeout=timeout)

    async def results(
        self, request: job_pb2.StreamResultsRequest
    ) -> AsyncGenerator[job_pb2.StreamResultsResponse, None]:
        """StreamResults, while `has_room`. What comes is kept until it is taken: for whoever takes it at once. Where it is not `known`, the call is the caller's to make."""
        self._streamed += 1
        try:
            async with self._open().ask(results=request) as answers:
                while not (answer := await _next(answers)).ended:
                    yield answer.results
                    if answer.results.last:
                        return
        finally:
            self._streamed -= 1

    def close(self) -> None:
        """Whoever waits gets CancelledError."""
        if self._stream is not None:
            self._stream.end(asyncio.CancelledError())

    def _open(self) -> _Stream:
        if self._stream is None or self._stream.broken is not None:
            self._stream = _Stream(self._jobs.Converse())
        return self._stream


class _Stream:
    """Asks and answers of one call of Converse."""

    def __init__(self, call: grpc.aio.StreamStreamCall[job_pb2.ConverseRequest, job_pb2.ConverseResponse]) -> None:
        self.broken: BaseException | None = None
        """Why nothing comes any more."""
        self._call = call
        self._last_number = 0
        self._asks: dict[int, _Answers] = {}
        self._outgoing: asyncio.Queue[job_pb2.ConverseRequest] = asyncio.Queue()
        # Apart from the reader, because gRPC forgets a write whose call ends before it begins: it never returns.
        self._writer = asyncio.create_task(self._write())
        self._reader = asyncio.create_task(self._read())
        self._reader.add_done_callback(self._ended)

    @asynccontextmanager
    async def ask(
        self, *, create: job_pb2.CreateJobRequest | None = None, results: job_pb2.StreamResultsRequest | None = None
    ) -> AsyncIterator[_Answers]:
        """Ask, on a stream that is not broken, and let go of what is not answered at the end of the block."""
        self._last_number = number = self._last_number + 1
        answers = self._asks[number] = _Answers()
        self._outgoing.put_nowait(job_pb2.ConverseRequest(number=number, create=create, results=results))
        try:
            yield answers
        finally:
            if self._asks.pop(number, None) is not None:
                self._outgoing.put_nowait(job_pb2.ConverseRequest(number=number, stop=True))

    def end(self, error: BaseException) -> None:
        """Whoever waits gets the error."""
        if self.broken is None:
            self.broken = error
            self._writer.cancel()
            self._reader.cancel()
            self._call.cancel()
            asks, self._asks = self._asks, {}
            for answers in asks.values():
                answers.put_nowait(error)

    async def _write(self) -> None:
        while True:
            await self._call.write(await self._outgoing.get())

    async def _read(self) -> None:
        async for response in self._call:
            last = not response.HasField("results") or response.results.last
            answers = self._asks.pop(response.number, None) if last else self._asks.get(response.number)
            if answers is not None:
                answers.put_nowait(response)

    def _ended(self, reader: asyncio.Task[None]) -> None:
        error = None if reader.cancelled() else reader.exception()
        self.end(error or _error(grpc.StatusCode.UNAVAILABLE, "the orchestrator has ended the stream"))


async def _next(answers: _Answers) -> job_pb2.ConverseResponse:
    """The next answer. AioRpcError of an ask that was refused, or of the stream; CancelledError after `close`."""
    answer = await answers.get()
    if isinstance(answer, BaseException):
        raise copy.copy(answer)  # each who waits its own: a raised exception gathers where it has been
    if answer.HasField("refused"):
        raise rpc_error_of(answer.refused)
    return answer


def _error(code: grpc.StatusCode, text: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=text)
