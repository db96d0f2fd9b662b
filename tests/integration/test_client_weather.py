"""Whatever breaks between client and orchestrator, every task arrives once, in order, and every outcome is read once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from fake_jobs import FakeJobs

from antfarm import aio, connect, errors
from antfarm.client import coalescer, connection, writer
from antfarm.client import farm as client_farm
from antfarm.client.blocking import Farm, Future
from antfarm.client.job import AsyncJob
from antfarm.v1 import job_pb2, system_pb2, worker_pb2


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses and small batches, so that much happens in little time."""
    monkeypatch.setattr(connection, "_PAUSE_MIN_S", 0.0005)
    monkeypatch.setattr(connection, "_PAUSE_MAX_S", 0.002)
    monkeypatch.setattr(writer, "BATCH_TASKS_MAX", 50)


class Mute(FakeJobs):
    """Answers nothing about jobs once it is told to, and says how many wait for an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.mute = False
        self.waiting = asyncio.Semaphore(0)

    async def silence(self) -> None:
        if self.mute:
            self.waiting.release()
            await asyncio.Event().wait()

    async def AppendTasks(self, request_iterator, context):  # type: ignore[no-untyped-def, override]
        await self.silence()
        return await super().AppendTasks(request_iterator, context)

    async def GetJob(self, request, context):  # type: ignore[no-untyped-def, override]
        await self.silence()
        return await super().GetJob(request, context)

    async def WatchJob(self, request, context):  # type: ignore[no-untyped-def, override]
        await self.silence()
        async for message in super().WatchJob(request, context):
            yield message

    async def StreamResults(self, request, context):  # type: ignore[no-untyped-def, override]
        await self.silence()
        async for message in super().StreamResults(request, context):
            yield message


async def test_closing_tells_all_that_wait_in_other_tasks() -> None:
    async def drain(items: AsyncIterator[object]) -> None:
        async for _ in items:
            pass

    async with Mute() as fake:
        farm = await aio.connect(fake.address)
        job = await farm.map("f", range(3))
        fake.mute = True
        waits = [
            asyncio.create_task(wait)
            for wait in (
                drain(job.results()),
                drain(job.outcomes()),
                drain(job.as_completed()),
                drain(job.watch()),
                drain(farm.as_completed(job)),
                job.wait(),
                job.status(),
                farm.wait(job),
                farm.map("f", range(1000)),
                drain(farm.as_completed(job[0])),
                job[1].result(),  # by the same stream
            )
        ]
        async with asyncio.timeout(10):
            for _ in waits[1:]:
                await fake.waiting.acquire()
            await farm.close()
            ends = await asyncio.gather(*waits, return_exceptions=True)
        assert [repr(end) for end in ends] == ["Unavailable('the farm was closed; connect again')"] * len(waits)


async def test_closing_tells_all_that_wait_in_other_threads() -> None:
    async with Mute() as fake:
        with ThreadPoolExecutor(8) as pool:

            def start(work: Callable[..., object], *words: object) -> asyncio.Future[object]:
                return asyncio.get_running_loop().run_in_executor(pool, work, *words)

            farm = await asyncio.to_thread(connect, fake.address)
            job = await asyncio.to_thread(farm.map, "f", range(3))
            fake.mute = True
            waits = [
                start(list, job.results()),
                start(list, job.outcomes()),
                start(list, job.as_completed()),
                start(list, farm.as_completed(job)),
                start(job.wait),
                start(job[0].result),
            ]
            async with asyncio.timeout(10):
                for _ in waits:
                    await fake.waiting.acquire()
                await asyncio.to_thread(farm.close)
                ends = await asyncio.gather(*waits, return_exceptions=True)
        assert [repr(end) for end in ends] == ["Unavailable('the farm was closed; connect again')"] * len(waits)


@pytest.mark.slow
async def test_closing_tells_who_submits_at_whatever_moment_it_comes() -> None:
    async with FakeJobs() as fake:
        for turns in range(100):
            farm = await aio.connect(fake.address)
            mapping = asyncio.create_task(farm.map("f", range(9_000)))
            for _ in range(turns):
                await asyncio.sleep(0)
            await farm.close()
            async with asyncio.timeout(10):
                with pytest.raises(errors.Unavailable, match=r"^the farm was closed; connect again$"):
                    await mapping


async def test_who_is_cancelled_as_the_farm_is_closed_is_cancelled() -> None:
    async with Mute() as fake:
        farm = await aio.connect(fake.address)
        job = await farm.map("f", range(3))
        fake.mute = True
        waiting = asyncio.create_task(job.wait())
        async with asyncio.timeout(10):
            await fake.waiting.acquire()
            waiting.cancel()
            await farm.close()
            await asyncio.wait({waiting})
        assert waiting.cancelled()


@pytest.mark.parametrize("seed", range(12))
async def test_tasks_and_outcomes_survive_broken_calls(seed: int) -> None:
    count = 1 + seed * 397
    async with FakeJobs(seed, trouble=0.15) as fake, await aio.connect(fake.address) as farm:
        source = (n for n in range(count)) if seed % 2 else range(count)
        job = await farm.map("f", source)
        assert fake.jobs[job.job_id] == [b"[%d]" % n for n in range(count)]
        assert job.job_id in fake.closed
        assert [value async for value in job.results()] == [[n] for n in range(count)]
        assert sorted([done.index async for done in job.as_completed()]) == list(range(count))
        assert (await job.wait()).task_count == count
        assert fake.broken > 0 or count < 10


@pytest.mark.parametrize("seed", range(4))
async def test_single_calls_survive_broken_calls(seed: int) -> None:
    async with FakeJobs(seed, trouble=0.2) as fake, await aio.connect(fake.address) as farm:
        futures = []
        for n in range(300):
            futures.append(farm.submit("f", n))
            if n % 40 == 0:
                await asyncio.sleep(0.001)
        assert await farm.gather(futures) == [[n] for n in range(300)]
        assert sum(map(len, fake.jobs.values())) == 300


class Restored(FakeJobs):
    """Breaks after six outcomes; then it is one that was restored from a backup, whose records begin anew below the reader's cursor."""

    CURSOR = 100
    whole, purged = True, False
    """Whether all outcomes are to be had from the beginning; whether the job is gone by then."""

    def __init__(self) -> None:
        super().__init__()
        self.cursors: list[int] = []
        self.looks = 0
        self.dice.randint = lambda low, high: high  # type: ignore[method-assign] # all in one message

    async def GetJob(self, request, context):  # type: ignore[no-untyped-def, override]
        self.looks += 1
        return await super().GetJob(request, context)

    async def StreamResults(self, request, context):  # type: ignore[no-untyped-def, override]
        self.cursors.append(request.cursor)
        if request.cursor == self.CURSOR:
            if self.purged:
                del self.jobs[request.job_id]
            return
        again = len(self.cursors) > 1
        async for message in super().StreamResults(request, context):
            message.cursor = self.CURSOR
            if not (again and self.whole):
                del message.results[6:]
            yield message
        if not again:
            raise errors.Unavailable("stopped, to be restored")


async def all_of(job: AsyncJob[object], way: str) -> list[object]:
    """The values of a job, sorted, or the indices of its tasks."""
    if way == "results":
        return sorted([value async for value in job.results()])  # type: ignore[type-var]
    if way == "as_completed":
        return sorted([done.index async for done in job.as_completed()])
    return sorted([future.index for future in await job.futures() if await future.outcome()])


WAYS = ["results", "as_completed", "futures"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("attached", [False, True])
async def test_outcomes_that_lie_below_the_cursor_of_a_restored_orchestrator_are_asked_for(
    attached: bool, way: str
) -> None:
    async with Restored() as fake, await aio.connect(fake.address) as farm:
        job = await farm.map("f", range(10))
        if attached:
            job = AsyncJob(farm.connection, job.job_id)
        assert await all_of(job, way) == ([[n] for n in range(10)] if way == "results" else [*range(10)])
        assert fake.cursors == [0, fake.CURSOR, 0]
        assert fake.looks == (1 if not attached else 2)  # for what is lacking; for an unknown size once more


@pytest.mark.parametrize("way", WAYS)
async def test_outcomes_that_are_nowhere_to_be_had_are_an_error(way: str) -> None:
    async with Restored() as fake, await aio.connect(fake.address, patience=0.05) as farm:
        fake.whole = False
        job = await farm.map("f", range(10), job_id="torn")
        with pytest.raises(
            errors.Unavailable, match=r"^the outcomes of job torn ended without those of 4 of its tasks$"
        ):
            await all_of(job, way)
        assert fake.cursors.count(0) > 2


@pytest.mark.parametrize("way", WAYS)
async def test_who_follows_a_job_that_is_purged_is_told(way: str) -> None:
    async with Restored() as fake, await aio.connect(fake.address) as farm:
        fake.purged = True
        job = await farm.map("f", range(10), job_id="gone")
        with pytest.raises(errors.JobNotFound, match=r"^no job gone$"):
            await all_of(job, way)


async def test_a_job_of_known_size_is_followed_without_asking_for_its_status() -> None:
    async with Restored() as fake, await aio.connect(fake.address) as farm:
        fake.cursors.append(-1)  # nothing breaks
        assert await farm.submit("f", 1) == [1]
        assert [value async for value in (await farm.map("f", range(10))).results()] == [[n] for n in range(10)]
        assert fake.looks == 0


async def test_the_size_of_a_job_that_may_grow_is_asked_for_each_time() -> None:
    async with Restored() as fake, await aio.connect(fake.address) as farm:
        job: AsyncJob[object] = AsyncJob(farm.connection, (await farm.map("f", range(10))).job_id)
        fake.closed.clear()
        assert await job.count() == 10
        fake.append(job.job_id, 10, [b"[10]"], close=True)
        assert [await job.count(), await job.count()] == [11, 11]
        assert fake.looks == 2


class Older(FakeJobs):
    """An orchestrator that does not know of expected jobs, and takes its time to make one."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[bool] = []
        """Whether the job was there each time its results were asked for."""

    async def CreateJob(self, request, context):  # type: ignore[no-untyped-def, override]
        await asyncio.sleep(0.2)
        return await super().CreateJob(request, context)

    async def StreamResults(self, request, context):  # type: ignore[no-untyped-def, override]
        self.asked.append(request.job_id in self.jobs)
        request.expected = False
        async for message in super().StreamResults(request, context):
            yield message


async def test_an_older_orchestrator_that_says_at_once_that_there_is_no_such_job_is_asked_again_when_it_has_it() -> (
    None
):
    async with Older() as fake, await aio.connect(fake.address) as farm:
        assert await farm.submit("f", 1) == [1]
        assert fake.asked == [False, True]


async def test_a_job_may_be_paused_and_resumed_while_it_is_on_its_way() -> None:
    class Pausable(Older):
        async def PauseJob(self, request, context):  # type: ignore[no-untyped-def, override]
            return job_pb2.PauseJobResponse(job=self.job(request.job_id))

        async def ResumeJob(self, request, context):  # type: ignore[no-untyped-def, override]
            return job_pb2.ResumeJobResponse(job=self.job(request.job_id))

    async with Pausable() as fake, await aio.connect(fake.address) as farm:
        for call in (AsyncJob.pause, AsyncJob.resume):
            assert (await call(farm.submit("f", 1).job)).task_count == 1


class Refuses(FakeJobs):
    """Takes no job, once `thinking` is over."""

    def __init__(self) -> None:
        super().__init__()
        self.thinking = asyncio.Event()

    async def CreateJob(self, request, context):  # type: ignore[no-untyped-def, override]
        await self.thinking.wait()
        raise errors.InvalidArgument("not this one")


async def test_who_waits_for_a_job_that_is_refused_is_told_why() -> None:
    async with Refuses() as fake, await aio.connect(fake.address) as farm:
        future = farm.submit("f", 1)
        asyncio.get_running_loop().call_later(0.1, fake.thinking.set)
        for _ in range(2):  # while it is refused, and afterwards
            with pytest.raises(errors.InvalidArgument, match="not this one"):
                await future


async def test_a_future_whose_submission_is_refused_is_done() -> None:
    async with Refuses() as fake, await aio.connect(fake.address) as farm:
        blocking = await asyncio.to_thread(connect, fake.address)
        future, face = farm.submit("f", 1), blocking.submit("f", 1)
        assert (future.done(), await asyncio.to_thread(face.done)) == (False, False)
        fake.thinking.set()
        for flushed in (farm.flush(), asyncio.to_thread(blocking.flush)):
            with pytest.raises(errors.InvalidArgument, match="not this one"):
                await flushed
        assert (future.done(), await asyncio.to_thread(face.done)) == (True, True)
        assert (future.state, face.state) == (None, None)
        with pytest.raises(errors.InvalidArgument, match="not this one"):
            await asyncio.to_thread(face.result)
        await asyncio.to_thread(blocking.close)


async def test_a_refusal_is_told_once_by_whoever_asks_first(caplog: pytest.LogCaptureFixture) -> None:
    async with Refuses() as fake:
        fake.thinking.set()
        farm = await aio.connect(fake.address)
        asked = farm.submit("asked", 1)
        with pytest.raises(errors.InvalidArgument, match="not this one"):
            await asked
        await farm.flush()
        for name in ("raised", "warned"):
            farm.submit(name, 1)
        with pytest.raises(errors.InvalidArgument, match="not this one"):
            await farm.flush()
        await farm.flush()
        for n in range(2):
            farm.submit("forgotten", n)
        await farm.close()
        assert [record.getMessage() for record in caplog.records] == [
            f"calls of warned that the farm at {fake.address} has not taken: 1 (not this one)",
            f"calls of forgotten that the farm at {fake.address} has not taken: 2 (not this one)",
        ]


async def test_refusals_that_nobody_asks_for_are_kept_up_to_a_number(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(coalescer, "_REFUSED_MAX", 2)
    async with Refuses() as fake, await aio.connect(fake.address) as farm:
        fake.thinking.set()
        for name in "abc":
            farm.submit(name, 1)
        with pytest.raises(errors.InvalidArgument, match="not this one"):
            await farm.flush()
        assert [record.getMessage().split()[2] for record in caplog.records] == ["a", "c"]


async def test_results_of_more_jobs_than_a_connection_carries_streams_are_asked_for_only_when_these_have_left() -> None:
    class Slow(FakeJobs):
        most = open = 0

        async def StreamResults(self, request, context):  # type: ignore[no-untyped-def, override]
            self.open += 1
            self.most = max(self.most, self.open)
            try:
                async for message in super().StreamResults(request, context):
                    yield message
            finally:
                self.open -= 1

        async def CreateJob(self, request, context):  # type: ignore[no-untyped-def, override]
            await asyncio.sleep(0.005)
            return await super().CreateJob(request, context)

    async with Slow() as fake, await aio.connect(fake.address) as farm:
        futures = [farm.submit(f"f{n}", n) for n in range(300)]  # a type of its own each, so a job each
        assert await farm.gather(futures) == [[n] for n in range(300)]
        assert len(fake.jobs) == 300
        assert fake.most < 10


async def test_a_closing_batch_whose_answer_is_lost_counts() -> None:
    class LosesLast(FakeJobs):
        async def AppendTasks(self, request_iterator, context):  # type: ignore[no-untyped-def, override]
            answer = await super().AppendTasks(request_iterator, context)
            if self.closed and not self.broken:
                self.broken = 1
                raise errors.Unavailable("the answer is lost")
            return answer

    async with LosesLast() as fake, await aio.connect(fake.address) as farm:
        job = await farm.map("f", range(1000))
        assert len(fake.jobs[job.job_id]) == 1000
        assert fake.broken == 1


async def test_a_job_that_is_cancelled_while_it_is_fed_takes_no_more_and_says_so_later() -> None:
    async with FakeJobs() as fake, await aio.connect(fake.address) as farm:

        async def endless():  # type: ignore[no-untyped-def]
            n = 0
            while True:
                yield n
                n += 1
                if n == 500:
                    fake.cancelled.add("fed")
                await asyncio.sleep(0)

        job = await farm.map("f", endless(), job_id="fed")
        assert await job.count() == len(fake.jobs["fed"])


async def test_an_error_that_waiting_cannot_cure_is_raised_at_once() -> None:
    async with FakeJobs() as fake, await aio.connect(fake.address) as farm:
        await farm.map("f", range(10), job_id="taken")
        with pytest.raises(errors.Conflict):
            await farm.map("f", range(10, 20), job_id="taken")
        with pytest.raises(errors.Conflict):
            await farm.map("other", range(10), job_id="taken")
        with pytest.raises(errors.JobNotFound):
            await farm.submit("f", 1).job.connection.watch("nowhere").__anext__()


@pytest.mark.parametrize("count", [500, 501, 900])
@pytest.mark.parametrize("trouble", [0.0, 0.15])
async def test_other_content_under_the_id_of_a_complete_job_is_refused_wherever_it_differs(
    count: int, trouble: float
) -> None:
    async with FakeJobs(trouble=trouble) as fake, await aio.connect(fake.address) as farm:
        await farm.map("f", range(500), job_id="taken")
        numbers = list(range(count))
        numbers[-1] = 7_000
        with pytest.raises((errors.Conflict, errors.JobClosed)):
            await farm.map("f", numbers, job_id="taken")
        assert len(fake.jobs["taken"]) == 500
        assert await (await farm.map("f", range(500), job_id="taken")).count() == 500


@pytest.mark.parametrize("trouble", [0.0, 0.15])
@pytest.mark.parametrize("count", [0, 1, 499])
async def test_the_beginning_of_a_complete_job_is_not_taken_for_the_job(count: int, trouble: float) -> None:
    async def source(numbers: range) -> AsyncIterator[int]:
        for number in numbers:
            yield number

    async with FakeJobs(trouble=trouble) as fake, await aio.connect(fake.address) as farm:
        await farm.map("f", range(500), job_id="taken")
        for numbers in (range(count), source(range(count))):
            with pytest.raises(
                errors.Conflict, match=f"job taken has 500 tasks, not {count}: .* choose another job id"
            ):
                await farm.map("f", numbers, job_id="taken")
        assert await (await farm.map("f", source(range(500)), job_id="taken")).count() == 500
        fake.cancelled.add("taken")
        with pytest.raises(errors.Conflict, match="has 500 tasks"):
            await farm.map("f", range(count), job_id="taken")
        assert await (await farm.map("f", range(500), job_id="taken")).count() == 500


async def test_an_open_job_is_not_closed_by_the_beginning_of_its_input() -> None:
    async with FakeJobs() as fake, await aio.connect(fake.address) as farm:
        await farm.map("f", range(150), job_id="open")
        fake.closed.clear()  # as if its client had died
        with pytest.raises(errors.Conflict, match="job open has 150 tasks, not 60: "):
            await farm.map("f", range(60), job_id="open")
        assert not fake.closed
        assert await (await farm.map("f", range(500), job_id="open")).count() == 500


class Awaited(FakeJobs):
    """Says when a job has a hundred tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.hundred = asyncio.Event()

    def append(self, job_id, first, payloads, *, close):  # type: ignore[no-untyped-def]
        super().append(job_id, first, payloads, close=close)
        if len(self.jobs[job_id]) >= 100:
            self.hundred.set()


async def test_a_job_that_another_process_is_ahead_with_is_the_same_job() -> None:
    async with Awaited() as fake, await aio.connect(fake.address) as farm:
        gate = asyncio.Event()

        async def ahead() -> AsyncIterator[int]:
            for number in range(500):
                if number == 400:
                    await gate.wait()
                yield number

        async def behind() -> AsyncIterator[int]:
            for number in range(500):
                yield number
                if number == 3:
                    await asyncio.sleep(0.05)  # what there is leaves meanwhile
                    gate.set()

        first = asyncio.create_task(farm.map("f", ahead(), job_id="both"))
        await fake.hundred.wait()
        second = await farm.map("f", behind(), job_id="both")
        assert [await job.count() for job in (await first, second)] == [500, 500]


async def test_patience_ends() -> None:
    async with FakeJobs() as fake, await aio.connect(fake.address, patience=0.05) as farm:
        fake.trouble = 1.0
        with pytest.raises(errors.Weather):
            await farm.map("f", range(10))
        with pytest.raises(errors.Weather):
            await farm.submit("f", 1)


@pytest.mark.parametrize("face", ["blocking", "asynchronous"])
async def test_a_farm_that_is_closed_at_once_does_not_wait_with_patience_and_says_what_was_not_sent(
    face: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client_farm, "_HURRY_S", 0.1)
    async with FakeJobs() as fake:
        farm = await (asyncio.to_thread(connect, fake.address) if face == "blocking" else aio.connect(fake.address))
        fake.trouble = 1.0
        core = farm.aio if isinstance(farm, Farm) else farm
        futures = [farm.submit(name, n) for name in "fgf" for n in range(2)]  # three jobs
        async with asyncio.timeout(10):
            await (asyncio.to_thread(farm.close, now=True) if isinstance(farm, Farm) else farm.close(now=True))
            for future in futures:
                with pytest.raises(errors.Unavailable, match=r"^the farm was closed before the task was submitted$"):
                    await (asyncio.to_thread(future.result) if isinstance(future, Future) else future.result())
        assert fake.jobs == {}
        assert [record.getMessage() for record in caplog.records] == [
            f"closed at once: the farm at {core.address} has not acknowledged all that was submitted; "
            "calls that it may not have: 6 (f, g)"
        ]


async def test_a_farm_that_is_closed_at_once_sends_what_it_can(caplog: pytest.LogCaptureFixture) -> None:
    async with FakeJobs() as fake:
        farm = await aio.connect(fake.address)
        for n in range(3):
            farm.submit("f", n)
        await farm.close(now=True)
        assert list(fake.jobs.values()) == [[b"[0]", b"[1]", b"[2]"]]
        assert caplog.records == []


class Staffed(FakeJobs):
    """Has one worker, in whatever state."""

    state = worker_pb2.WORKER_STATE_READY

    async def ListWorkers(self, request, context):  # type: ignore[no-untyped-def, override]
        worker = worker_pb2.Worker(worker_id="w", state=self.state, task_types=["f"])
        return worker_pb2.ListWorkersResponse(workers=[worker])


async def test_a_worker_counts_as_there_until_it_has_left_or_is_lost() -> None:
    async with Staffed() as fake, await aio.connect(fake.address) as farm:
        for state in worker_pb2.WorkerState.values():
            fake.state = state
            away = state in (worker_pb2.WORKER_STATE_GONE, worker_pb2.WORKER_STATE_LOST)
            assert await farm.offered("f") is not away, worker_pb2.WorkerState.Name(state)


class Full(FakeJobs):
    """Has room for so many tasks, and says so."""

    room = 170
    refused = 0

    def append(self, job_id, first, payloads, *, close):  # type: ignore[no-untyped-def]
        if first + len(payloads) > self.room:
            self.refused += 1
            raise errors.Overloaded("too many payloads are queued", 0.4)
        super().append(job_id, first, payloads, close=close)

    async def AppendTasks(self, request_iterator, context):  # type: ignore[no-untyped-def, override]
        """All is read before anything is refused, so that the refusal is not lost in a broken write."""
        requests = [request async for request in request_iterator]

        async def again():  # type: ignore[no-untyped-def]
            for request in requests:
                yield request

        return await super().AppendTasks(again(), context)


async def test_a_farm_that_refuses_is_told_from_one_that_is_silent_and_what_became_of_the_job_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection, "_COMPLAIN_AFTER_S", 0.3)
    async with Full() as fake, await aio.connect(fake.address, patience=1.0) as farm:
        with pytest.raises(errors.Overloaded) as caught:
            await farm.map("f", range(500), job_id="part")
        assert str(caught.value) == (
            "too many payloads are queued; 150 of 500 tasks are in job part, which stays open: "
            "submit all of it again with job_id='part' to go on, or cancel it"
        )
        [record] = caplog.records
        said = f"the farm at {fake.address} refuses for now: too many payloads are queued; trying on for "
        assert record.getMessage().startswith(said)
        assert fake.refused <= 3  # after 0, 0.4 and 0.8 s: that what it had is taken again is no progress
        fake.room = 1_000
        assert await (await farm.map("f", range(500), job_id="part")).count() == 500


async def test_little_patience_is_not_spent_on_one_call_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf(FakeJobs):
        async def GetJob(self, request, context):  # type: ignore[no-untyped-def, override]
            await asyncio.sleep(60)

    monkeypatch.setattr(connection, "_TRY_MIN_S", 0.2)
    async with Deaf() as fake, await aio.connect(fake.address, patience=0.1) as farm:
        job = await farm.map("f", [1])
        with pytest.raises(errors.DeadlineExceeded):
            await asyncio.wait_for(job.status(), 5)


async def test_memory_of_what_is_not_acknowledged_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source is not read ahead of a server that takes nothing."""
    release = asyncio.Event()

    class Slow(FakeJobs):
        async def AppendTasks(self, request_iterator, context):  # type: ignore[no-untyped-def, override]
            await release.wait()
            return await super().AppendTasks(request_iterator, context)

    read = 0

    def source() -> Iterator[int]:
        nonlocal read
        while read < 200_000:
            yield read
            read += 1

    async with Slow() as fake, await aio.connect(fake.address) as farm:
        mapping = asyncio.create_task(farm.map("f", source()))
        seen = -1
        while seen != read:  # until it stands still
            seen = read
            await asyncio.sleep(0.1)
        assert read < 5_000
        release.set()
        job = await mapping
        assert len(fake.jobs[job.job_id]) == 200_000


async def test_an_orchestrator_of_another_major_version_is_told_apart() -> None:
    class Newer(FakeJobs):
        async def GetServerInfo(self, request, context):  # type: ignore[no-untyped-def, override]
            return system_pb2.GetServerInfoResponse(program="orchestrator", protocol_major=2, protocol_minor=9)

    async with Newer() as fake:
        with pytest.raises(errors.ProtocolUnsupported) as caught:
            await aio.connect(fake.address)
    assert str(caught.value) == f"{fake.address} speaks protocol 2 and this client 1: install the same version"


async def test_an_orchestrator_of_a_later_minor_version_is_taken() -> None:
    class Newer(FakeJobs):
        async def GetServerInfo(self, request, context):  # type: ignore[no-untyped-def, override]
            return system_pb2.GetServerInfoResponse(program="orchestrator", protocol_major=1, protocol_minor=9)

    async with Newer() as fake, await aio.connect(fake.address) as farm:
        assert await farm.submit("f", 1) == [1]
