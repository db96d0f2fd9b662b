"""A bare stream of gRPC between two tasks of one process: what no orchestrator can be faster than."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from antfarm.v1 import work_queue_pb2
from bench.micro.conftest import TASKS


@pytest.mark.parametrize("together", [1, 16, 256])
def test_stream_of_assignments(per_task: Any, together: int) -> None:
    """Both ends, `together` tasks a message."""
    frame = work_queue_pb2.PullTasksResponse()
    add = frame.tasks.groups.add(job_id="j", epoch=1).assignments.add
    for index in range(together):
        add(index=index, attempt=1, payload=b"sixteen bytes ok")
    content = frame.SerializeToString()
    loop = asyncio.new_event_loop()
    server, call = loop.run_until_complete(_connect(content))

    async def read() -> None:
        await call.write(b"")
        for _ in range(TASKS // together):
            work_queue_pb2.PullTasksResponse.FromString(await call.read())

    try:
        per_task(lambda: loop.run_until_complete(read()), rounds=50)
    finally:
        loop.run_until_complete(_close(server, call))
        loop.close()


async def _connect(content: bytes) -> tuple[grpc.aio.Server, Any]:
    """A server that answers each message with a batch of frames, and an open call."""

    async def answer(_: Any, context: Any) -> None:
        while (await context.read()) is not grpc.aio.EOF:
            message = work_queue_pb2.PullTasksResponse.FromString(content)
            count = len(message.tasks.groups[0].assignments)
            for _ in range(TASKS // count):
                await context.write(message.SerializeToString())

    server = grpc.aio.server()
    handlers = {"Pull": grpc.stream_stream_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Stream", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    call = channel.stream_stream("/bench.Stream/Pull")()
    call.of_channel = channel  # type: ignore[attr-defined]  # closed with it
    return server, call


async def _close(server: grpc.aio.Server, call: Any) -> None:
    await call.done_writing()
    await call.of_channel.close()
    await server.stop(0)
