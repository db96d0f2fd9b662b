"""Reading inputs over the link's channel, which the link closes whenever its connection ends: that must not end the reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from scripted import PATIENCE_S, poll

from antfarm import net, wire
from antfarm.errors import Unavailable
from antfarm.link.estimate import Estimate
from antfarm.v1 import common_pb2, job_pb2, job_pb2_grpc, work_queue_pb2
from services.orchestrator.inputs import Inputs
from services.worker.core.attempt import Attempt, Group
from services.worker.runtime import translation
from services.worker.runtime.inputs import InputReader

EACH = common_pb2.Dependency(job_id="first", kind=common_pb2.DEPENDENCY_KIND_EACH)


class SlowJobs(job_pb2_grpc.JobServiceServicer):
    """Answers StreamResults only when it may."""

    def __init__(self) -> None:
        self.asked = 0
        self.may_answer = asyncio.Event()
        self.address = ""

    async def StreamResults(self, request: Any, context: Any) -> AsyncIterator[job_pb2.StreamResultsResponse]:
        self.asked += 1
        await self.may_answer.wait()
        results = [
            common_pb2.TaskResult(index=index, state=common_pb2.TASK_STATE_SUCCEEDED, result=b"%d" % index)
            for index in request.indices
        ]
        yield job_pb2.StreamResultsResponse(results=results, cursor=1)

    async def was_asked(self, times: int) -> None:
        async def often() -> bool:
            return self.asked >= times

        await poll(often)


@pytest.fixture
async def jobs() -> AsyncIterator[SlowJobs]:
    servicer = SlowJobs()  # type: ignore[abstract]  # the stubs' typing asks for all methods
    server = net.make_server([])
    job_pb2_grpc.add_JobServiceServicer_to_server(servicer, server)
    port = net.bind(server, "127.0.0.1", 0, None, insecure=False)
    await server.start()
    servicer.address = f"127.0.0.1:{port}"
    yield servicer
    servicer.may_answer.set()
    await server.stop(1.0)


def task_group() -> work_queue_pb2.TaskGroup:
    template = common_pb2.TaskTemplate(type="t")
    assignment = work_queue_pb2.Assignment(index=3, attempt=1, payload=b'[{"$input":0}]')
    return work_queue_pb2.TaskGroup(
        job_id="second", epoch=1, template=template, inputs=[EACH], assignments=[assignment]
    )


async def test_a_worker_reads_again_when_the_connection_ended_while_it_read(jobs: SlowJobs, tmp_path: Path) -> None:
    channels: list[grpc.aio.Channel] = [net.open_channel(jobs.address, None)]
    reader = InputReader(tmp_path, lambda: channels[-1])
    group: Group = translation.group_from_wire(task_group(), is_async=False, estimate=Estimate())
    attempt = Attempt(group, 3, 1, b"[]", 0)
    filling = asyncio.create_task(reader.fill(group, [EACH], [attempt]))
    await jobs.was_asked(1)
    channels.append(net.open_channel(jobs.address, None))
    await channels[0].close()
    await jobs.was_asked(2)
    jobs.may_answer.set()
    await asyncio.wait_for(filling, PATIENCE_S)
    assert attempt.inputs == [(0, b"3")]
    await channels[1].close()


async def test_a_level_below_gives_back_what_it_could_not_read_because_the_connection_ended(jobs: SlowJobs) -> None:
    channel = net.open_channel(jobs.address, None)
    inputs = Inputs("", None)
    message = task_group()
    resolving = asyncio.create_task(inputs.resolve(message, wire.assigned_in(message)[0], channel))
    await jobs.was_asked(1)
    await channel.close()
    with pytest.raises(Unavailable):
        await asyncio.wait_for(resolving, PATIENCE_S)
    jobs.may_answer.set()
    channel = net.open_channel(jobs.address, None)
    assert await inputs.resolve(message, wire.assigned_in(message)[0], channel) == b"[3]"
    await channel.close()


class SlowStorage(Inputs):
    """Results that are whole only when they may be, as those that have to come from Storage."""

    def __init__(self) -> None:
        super().__init__("", None)
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()

    async def whole(self, encoded: bytes) -> bytes:
        self.asked.set()
        await self.may_answer.wait()
        return encoded


async def test_a_level_below_gives_back_what_it_could_not_read_because_the_connection_ended_between_two_inputs(
    jobs: SlowJobs,
) -> None:
    """The second is asked for over a channel that was closed while the first came from Storage."""
    jobs.may_answer.set()
    channel = net.open_channel(jobs.address, None)
    inputs = SlowStorage()
    message = task_group()
    message.inputs.append(EACH)
    resolving = asyncio.create_task(inputs.resolve(message, wire.assigned_in(message)[0], channel))
    await asyncio.wait_for(inputs.asked.wait(), PATIENCE_S)
    await channel.close()
    inputs.may_answer.set()
    with pytest.raises(Unavailable, match=r"^the orchestrator above hung up$"):
        await asyncio.wait_for(resolving, PATIENCE_S)
    assert jobs.asked == 1


async def test_a_reader_that_is_cancelled_itself_ends(jobs: SlowJobs, tmp_path: Path) -> None:
    channel = net.open_channel(jobs.address, None)
    group: Group = translation.group_from_wire(task_group(), is_async=False, estimate=Estimate())
    reading = asyncio.create_task(
        InputReader(tmp_path, lambda: channel).fill(group, [EACH], [Attempt(group, 3, 1, b"[]", 0)])
    )
    await jobs.was_asked(1)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(reading, PATIENCE_S)
    await channel.close()
