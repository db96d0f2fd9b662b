"""Jobs of single calls and their outcomes on one open stream: as the calls of their own would be answered, and where those are all there is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from fake_jobs import FakeJobs
from google.rpc import status_pb2
from scripted import PATIENCE_S, Running, orchestrator, poll, refusal, to_the_end

from antfarm import aio, errors, net, wire
from antfarm.client import connection, line
from antfarm.model import CONVERSE_MINOR
from antfarm.v1 import common_pb2, job_pb2, job_pb2_grpc
from services.orchestrator.servicers.conversation import ASKS_MAX

pytestmark = pytest.mark.slow

ASK = job_pb2.ConverseRequest


@pytest.fixture
async def farm(tmp_path: Path) -> AsyncIterator[Running]:
    async with orchestrator(tmp_path / "state") as running:
        yield running


def create(number: int, job_id: str, *payloads: bytes, task_type: str = "t") -> job_pb2.ConverseRequest:
    spec = job_pb2.JobSpec(template=common_pb2.TaskTemplate(type=task_type))
    request = job_pb2.CreateJobRequest(job_id=job_id, spec=spec, payloads=payloads, close=True)
    return ASK(number=number, create=request)


def results(number: int, job_id: str, **fields: Any) -> job_pb2.ConverseRequest:
    return ASK(number=number, results=job_pb2.StreamResultsRequest(job_id=job_id, follow=True, **fields))


async def answer(call: Any) -> job_pb2.ConverseResponse:
    response: job_pb2.ConverseResponse = await asyncio.wait_for(call.read(), PATIENCE_S)
    return response


def refused(response: job_pb2.ConverseResponse) -> tuple[int, str, str]:
    """Number, reason and text."""
    error = wire.error_from_rpc(wire.rpc_error_of(response.refused))
    return response.number, error.reason, str(error)


def nobody_watches(farm: Running) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return not farm.orchestrator.driver._watchers

    return look


# ---- the orchestrator -------------------------------------------------------------------------------------------------


async def test_each_ask_is_answered_under_its_number_by_what_its_call_answers(farm: Running) -> None:
    worker = farm.worker()
    await worker.attach()
    call = farm.jobs.Converse()
    await call.write(create(7, "a", b"[1]", b"[2]"))
    await call.write(results(8, "a", expected=True))
    created = await answer(call)
    assert created.number == 7
    made = await farm.job("a")
    made.age.CopyFrom(created.created.job.age)  # the one that moves on
    assert created.created == job_pb2.CreateJobResponse(job=made)
    await call.write(create(9, "b", b"[3]"))  # while the results of the first are waited for
    assert (await answer(call)).number == 9
    await worker.work(3)
    told = []
    while not (told and told[-1].last):
        response = await answer(call)
        assert response.number == 8
        told.append(response.results)
    assert [result for message in told for result in message.results] == await farm.results("a")
    await call.write(results(7, "b"))  # a number may be used again
    assert await answer(call) == job_pb2.ConverseResponse(number=7, results=(await farm.messages("b"))[0])
    await call.write(results(8, "b", cursor=told[-1].cursor + 100))  # nothing is left
    assert await answer(call) == job_pb2.ConverseResponse(number=8, ended=True)
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK
    await worker.drop()


async def test_what_cannot_be_done_is_refused_under_its_number_and_the_others_go_on(farm: Running) -> None:
    call = farm.jobs.Converse()
    for ask in (create(1, "a", b"[1]"), create(2, "a", b"[2]"), results(3, "none"), ASK(number=4), create(5, "b")):
        await call.write(ask)
    told = {(response := await answer(call)).number: response for _ in range(5)}
    assert [number for number in sorted(told) if told[number].HasField("created")] == [1, 5]
    assert refused(told[2])[1] == "CONFLICT"
    assert refused(told[3]) == (3, "JOB_NOT_FOUND", "no job 'none' here: `antfarm job list` shows those that are")
    assert refused(told[4])[1] == "INVALID_FIELD"
    # As the call of its own tells it.
    alone = farm.jobs.StreamResults(job_pb2.StreamResultsRequest(job_id="none"))
    assert str(await refusal(alone)) == refused(told[3])[2]
    assert status_pb2.Status.FromString(told[3].refused).code == grpc.StatusCode.NOT_FOUND.value[0]
    call.cancel()


async def test_a_number_that_is_taken_ends_the_stream(farm: Running) -> None:
    await farm.create("a", 1)
    call = farm.jobs.Converse()
    await call.write(results(1, "a"))
    await call.write(results(1, "a"))
    error = await asyncio.wait_for(refusal(to_the_end(call)), PATIENCE_S)
    assert isinstance(error, errors.InvalidArgument)
    assert str(error) == "ask 1 is not answered to its end yet: give another one another number"


async def test_too_many_asks_are_refused_until_one_is_given_up(farm: Running) -> None:
    await farm.create("a", 1)
    call = farm.jobs.Converse()
    for number in range(ASKS_MAX + 1):
        await call.write(results(number, "a"))
    assert refused(await answer(call))[:2] == (ASKS_MAX, "OVERLOADED")
    await call.write(ASK(number=5, stop=True))
    await call.write(ASK(number=999, stop=True))  # nobody's
    await call.write(create(ASKS_MAX, "b"))
    response = await answer(call)
    assert (response.number, response.WhichOneof("answer")) == (ASKS_MAX, "created")
    worker = farm.worker()
    await worker.attach()
    await worker.work(1)
    ended = set()
    while len(ended) < ASKS_MAX - 1:
        if (response := await answer(call)).results.last:
            ended.add(response.number)
    assert ended == set(range(ASKS_MAX)) - {5}
    await poll(nobody_watches(farm))
    await worker.drop()
    call.cancel()


async def test_who_asks_and_does_not_read_is_read_no_further(farm: Running) -> None:
    """What is refused waits to be read too, so that no number of asks fills the orchestrator's memory."""
    await farm.create("a", 1)
    call = farm.jobs.Converse()
    padding = "x" * 60_000  # an ask that is refused: the answer says as much of it as fits into a line
    sent = 0

    async def flood() -> None:
        nonlocal sent
        while True:
            await call.write(results(sent, padding))
            sent += 1

    flooding = asyncio.create_task(flood())
    seen = -1
    while seen < sent:  # until nothing moves any more
        seen = sent
        await asyncio.sleep(0.5)
    tasks = [task for task in asyncio.all_tasks() if "Conversation._answer" in repr(task)]
    assert len(tasks) <= ASKS_MAX
    flooding.cancel()
    call.cancel()


async def test_an_ask_that_is_given_up_while_its_answer_is_written_leaves_the_others_alone(farm: Running) -> None:
    """A write that was given up halfway would make gRPC refuse the next one."""
    worker = farm.worker(window=64)
    await worker.attach()
    await farm.create("big", [b"[%d]" % n for n in range(64)])
    await worker.tasks()
    assert set(await worker.report(*worker.free(), result=b"x" * 60_000)) == {"ACCEPTED"}
    call = farm.jobs.Converse()
    for number in range(0, 60, 3):
        await call.write(results(number, "big"))
        await call.write(ASK(number=number, stop=True))
        await call.write(results(number + 1, "big"))
        await call.write(create(number + 2, f"job-{number}"))
    whole: set[int] = set()
    while len(whole) < 40:
        response = await answer(call)
        if response.results.last or response.HasField("created"):
            whole.add(response.number)
    assert whole >= {number for number in range(60) if number % 3}
    await worker.drop()
    call.cancel()


@pytest.mark.parametrize("leave", ["half-close", "cancel"])
async def test_who_leaves_leaves_nothing_behind(farm: Running, leave: str) -> None:
    await farm.create("a", 1)
    call = farm.jobs.Converse()
    await call.write(results(1, "a"))
    await call.write(create(2, "b"))
    assert (await answer(call)).number == 2
    assert farm.orchestrator.driver._watchers
    if leave == "cancel":
        call.cancel()
    else:
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
    await poll(nobody_watches(farm))


async def test_the_end_of_the_server_is_told_to_each_ask_and_ends_the_stream(farm: Running) -> None:
    await farm.create("a", 1)
    channel = net.open_channel(farm.address, None)  # lives on, to see how its call ends
    call: Any = job_pb2_grpc.JobServiceStub(channel).Converse()
    await call.write(results(1, "a"))
    await call.write(results(2, "expected", expected=True))
    await call.write(create(3, "b"))
    assert (await answer(call)).number == 3
    restart = asyncio.create_task(farm.restart())
    told = sorted([refused(await answer(call)) for _ in range(2)])
    assert told == [(number, "UNAVAILABLE", "the orchestrator is stopping: call again") for number in (1, 2)]
    assert isinstance(await asyncio.wait_for(refusal(to_the_end(call)), PATIENCE_S), errors.Unavailable)
    await restart
    await channel.close()


# ---- the client -------------------------------------------------------------------------------------------------------


async def test_single_calls_share_one_stream() -> None:
    async with FakeJobs() as fake, await aio.connect(fake.address) as client:
        assert [await client.submit("f", n) for n in range(20)] == [[n] for n in range(20)]
        assert fake.conversations == 1
        assert len(fake.jobs) == 20
        stream = client.connection.line._stream
        assert stream is not None
        await poll(partial(_nothing_asked, stream))  # the last end of results may be on its way


async def _nothing_asked(stream: line._Stream) -> bool:
    return not stream._asks


class OfBefore(FakeJobs):
    """A version that does not know the stream."""

    async def Converse(self, request_iterator: Any, context: Any) -> None:
        self.conversations += 1
        raise NotImplementedError


async def test_an_orchestrator_that_does_not_know_the_stream_is_asked_by_calls() -> None:
    async with OfBefore() as fake:
        fake.protocol_minor = CONVERSE_MINOR - 1
        async with await aio.connect(fake.address) as client:
            assert [await client.submit("f", n) for n in range(5)] == [[n] for n in range(5)]
        assert fake.conversations == 0


async def test_an_orchestrator_that_was_rolled_back_is_asked_by_calls_once_it_has_said_so() -> None:
    """The status of its refusal may be lost, where something was being written: then it is asked once more."""
    async with OfBefore() as fake, await aio.connect(fake.address) as client:
        assert [await client.submit("f", n) for n in range(5)] == [[n] for n in range(5)]
        assert fake.conversations > 0
        asked = fake.conversations
        assert not client.connection.line.known
        assert await client.submit("f", 5) == [5]
        assert fake.conversations == asked


async def test_more_jobs_than_the_stream_may_follow_are_followed_by_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those above have calls of their own, and all are answered."""

    class Held(FakeJobs):
        go = asyncio.Event()
        asked = asyncio.Semaphore(0)

        async def StreamResults(self, request: Any, context: Any) -> Any:
            self.asked.release()
            await self.go.wait()
            async for message in super().StreamResults(request, context):
                yield message

    monkeypatch.setattr(line, "STREAMED_MAX", 3)
    async with Held() as fake, await aio.connect(fake.address) as client:
        futures = []
        for n in range(5):
            futures.append(client.submit("f", n))
            await client.flush()
            waits = asyncio.create_task(futures[-1].result())
            await fake.asked.acquire()
            assert client.connection.streams == max(n - 2, 0)
        fake.go.set()
        assert await client.gather(futures) == [[n] for n in range(5)]
        await waits
        assert fake.conversations == 1


async def test_a_stream_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The submission is sent again on another one, within the patience of the client."""

    class Mute(FakeJobs):
        async def Converse(self, request_iterator: Any, context: Any) -> None:
            if self.conversations:
                await super().Converse(request_iterator, context)
            self.conversations += 1
            await asyncio.Event().wait()

    monkeypatch.setattr(connection, "CALL_TIMEOUT_S", 0.1)
    monkeypatch.setattr(connection, "_PAUSE_MAX_S", 0.01)
    async with Mute() as fake, await aio.connect(fake.address) as client:
        assert await client.submit("f", 1) == [1]
        assert fake.conversations == 2


async def test_closing_tells_who_waits_on_the_stream() -> None:
    class Mute(FakeJobs):
        waits = asyncio.Event()

        async def StreamResults(self, request: Any, context: Any) -> Any:
            self.waits.set()
            await asyncio.Event().wait()
            yield

    async with Mute() as fake:
        client = await aio.connect(fake.address)
        waiting = asyncio.create_task(client.submit("f", 1).result())
        async with asyncio.timeout(PATIENCE_S):
            await fake.waits.wait()
            await client.close()
            with pytest.raises(errors.Unavailable, match=r"^the farm was closed; connect again$"):
                await waiting


async def test_words_that_are_no_status_are_an_error_all_the_same() -> None:
    assert isinstance(wire.error_from_rpc(wire.rpc_error_of(b"\xff")), errors.Internal)
