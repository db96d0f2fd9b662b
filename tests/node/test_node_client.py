"""The client in Node against a scripted job service: nothing it was promised is missing without a word."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from antfarm import net
from antfarm.v1 import common_pb2, job_pb2, job_pb2_grpc

pytestmark = pytest.mark.slow


class Jobs(job_pb2_grpc.JobServiceServicer):
    """Its streams of results, from the n-th call on the n-th of `streams`: the indices that each holds."""

    def __init__(self, *streams: list[int]) -> None:
        self.streams = list(streams)
        self.cursors: list[int] = []

    async def CreateJob(self, request: Any, context: Any) -> job_pb2.CreateJobResponse:
        """Takes it."""
        return job_pb2.CreateJobResponse(job=job_pb2.Job(job_id=request.job_id))

    async def StreamResults(self, request: Any, context: Any) -> Any:
        """The next stream, to its end."""
        self.cursors.append(request.cursor)
        results = [
            common_pb2.TaskResult(index=index, state=common_pb2.TASK_STATE_SUCCEEDED, result=b"%d" % index)
            for index in self.streams.pop(0)
        ]
        yield job_pb2.StreamResultsResponse(results=results, cursor=100)


@pytest.mark.parametrize(
    ("second", "code", "lines"),
    [([0, 1, 2], 0, ["0", "1", "2"]), ([1], 1, ["client.js: ADDRESS: 2 results of job j are missing"])],
)
async def test_results_that_end_short_are_read_from_the_beginning_once(
    node: str, start: Callable[..., Any], second: list[int], code: int, lines: list[str]
) -> None:
    """A restored backup may have put what was recorded since below the cursor."""
    jobs, server = Jobs([1], second), net.make_server([])
    job_pb2_grpc.add_JobServiceServicer_to_server(jobs, server)
    address = f"127.0.0.1:{net.bind(server, '127.0.0.1', 0, None, insecure=False)}"
    await server.start()
    try:
        words = ("--connect", address, "--job-id", "j", "t", "a", "b", "c")
        program = start(node, "examples/node/client.js", *words)
        assert await asyncio.to_thread(program.wait) == code
    finally:
        await server.stop(None)
    assert program.lines == [line.replace("ADDRESS", address) for line in lines]
    assert jobs.cursors == [0, 0]
