"""Orchestrators below orchestrators as real programs: right results, nothing repeated over kills, cancels and failures handed through."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import duration_pb2

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))

from fake_orchestrator import FakeOrchestrator
from farm_app import after, broken, gated, meet, work
from farm_bench import APP, H_S, LEASE_S, Notes, connect, kill_and_restart, local_farm, until

import antfarm as af
from antfarm import wire
from antfarm.client.farm import AsyncFarm
from antfarm.errors import TaskFailed
from antfarm.local import LocalFarm
from antfarm.model import SECOND_NS, JobState, TaskState
from antfarm.v1 import job_pb2, worker_pb2

pytestmark = pytest.mark.slow


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[LocalFarm]:
    with local_farm(tmp_path) as farm:
        yield farm


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "notes")


async def start_below(farm: LocalFarm, name: str, upstream: str, *types: str, heartbeat_s: float = 1.0) -> str:
    options = ["--heartbeat-s", str(heartbeat_s)]
    return await asyncio.to_thread(farm.start_orchestrator, name, upstream=upstream, as_=list(types), options=options)


async def start_worker(farm: LocalFarm, name: str, address: str) -> None:
    options = ["--no-installed-apps", "--cancel-grace-s", "1"]
    await asyncio.to_thread(farm.start_worker, name, connect=address, slots=2, app=[APP], options=options)


async def two_levels(farm: LocalFarm, types: tuple[str, ...] = ("test.stage",), heartbeat_s: float = 1.0) -> str:
    """A top and a bottom with one worker. The address of the bottom."""
    top = await asyncio.to_thread(farm.start_orchestrator, "top", options=["--heartbeat-s", str(heartbeat_s)])
    low = await start_below(farm, "low", top, *types, heartbeat_s=heartbeat_s)
    await start_worker(farm, "w1", low)
    return low


def stage_arguments(notes: Notes, kind: str = "work", seconds: float = 0.0) -> dict[str, Any]:
    return {"path": notes.path, "seconds": seconds, "kind": kind}


def sum_of_squares(count: int) -> int:
    return sum(i * i for i in range(count))


async def jobs_of(client: AsyncFarm) -> list[job_pb2.Job]:
    answer = await client.connection.jobs.ListJobs(job_pb2.ListJobsRequest(page_size=1_000))
    return list(answer.jobs)


async def workers_of(client: AsyncFarm) -> list[worker_pb2.Worker]:
    return list((await client.connection.workers.ListWorkers(worker_pb2.ListWorkersRequest())).workers)


async def nothing_is_left_below(client: AsyncFarm) -> None:
    """The orchestrator below has ended all jobs, and its workers hold nothing."""

    async def clean() -> bool:
        ended = all(
            job.state not in (job_pb2.JOB_STATE_OPEN, job_pb2.JOB_STATE_RUNNING) for job in await jobs_of(client)
        )
        return ended and all(worker.held == 0 for worker in await workers_of(client))

    await until(clean, "all has ended below")


async def test_requests_of_every_kind_get_what_is_due_to_them(farm: LocalFarm, notes: Notes) -> None:
    low = await two_levels(farm)
    async with await connect(farm.address) as client, await connect(low) as below:
        good = await client.map("test.stage", ["a", "b", "c"], [0, 1, 7], **stage_arguments(notes))
        assert [value async for value in good.results()] == [
            ["a", 0, []],
            ["b", sum_of_squares(1), []],
            ["c", sum_of_squares(7), []],
        ]
        # Children that fail are the summary's business.
        some = client.submit("test.stage", "d", 4, **stage_arguments(notes, "broken"))
        assert await some.result(20) == ["d", 0 + 2, ["ValueError", "ValueError"]]
        # A plan that fails, or is none, is the request's failure; nothing was expanded.
        with pytest.raises(TaskFailed, match="there is no plan"):
            await client.submit("test.stage", "e", 4, **stage_arguments(notes, "fail")).result(20)
        with pytest.raises(TaskFailed, match=r"let the plan return an af\.Expansion"):
            await client.submit("test.stage", "f", 4, **stage_arguments(notes, "nothing")).result(20)
        often = notes.often()
        assert notes.once("plan-", "summary-")
        assert {what for what in often if what.startswith("summary-")} == {
            "summary-a",
            "summary-b",
            "summary-c",
            "summary-d",
        }
        assert sum(number for what, number in often.items() if what.startswith("work-")) == 0 + 1 + 7 + 4
        await nothing_is_left_below(below)


async def test_a_type_without_a_plan_is_relayed_and_waits_for_workers_that_come_later(
    farm: LocalFarm, notes: Notes
) -> None:
    top = await asyncio.to_thread(farm.start_orchestrator, "top")
    middle = await start_below(farm, "middle", top, "farm_app.work", "test.stage")
    low = await start_below(farm, "low", middle, "farm_app.work", "test.stage")
    async with await connect(top) as client:
        job = await client.map(work, range(40), path=notes.path, seconds=0.0)
        stage = client.submit("test.stage", "a", 5, **stage_arguments(notes))

        async def arrived() -> bool:
            async with await connect(low) as below:
                workers = await workers_of(client)
                return workers[0].held > 0 and await jobs_of(below) == []

        await until(arrived, "it waits below, where nobody can run it yet")
        await start_worker(farm, "w1", low)
        assert [value async for value in job.results()] == [i * i for i in range(40)]
        assert await stage.result(20) == ["a", sum_of_squares(5), []]
        assert notes.count("work-") == 45
        assert notes.often()["plan-a"] == notes.often()["summary-a"] == 1


async def test_a_cluster_below_is_kept_busy_whatever_the_slots_it_began_with(farm: LocalFarm, notes: Notes) -> None:
    """Twelve tasks, each of which waits until all have begun: they end only when all twelve slots below have one."""
    top = await asyncio.to_thread(farm.start_orchestrator, "top", options=["--heartbeat-s", "1"])
    options = ["--heartbeat-s", "1", "--upstream-slots", "2"]
    low = await asyncio.to_thread(farm.start_orchestrator, "low", upstream=top, as_=["farm_app.meet"], options=options)
    for number in range(3):
        await asyncio.to_thread(farm.start_worker, f"w{number}", connect=low, slots=4, app=[APP])
    async with await connect(top) as client:
        job = await client.map(meet, range(12), path=notes.path, count=12)
        assert [value async for value in job.results()] == list(range(12))
    assert notes.count("met-") == 12


async def test_many_tasks_are_relayed_in_a_few_jobs(farm: LocalFarm, notes: Notes) -> None:
    low = await two_levels(farm, ("farm_app.work",))
    async with await connect(farm.address) as client, await connect(low) as below:
        job = await client.map(work, range(2_000), path=notes.path, seconds=0.0)
        assert [value async for value in job.results()] == [i * i for i in range(2_000)]
        # One job each would not all be there any more: 300 of ended parents are kept.
        assert sum(one.task_count for one in await jobs_of(below)) == 2_000
        await nothing_is_left_below(below)
    assert notes.count("work-") == 2_000


async def test_a_task_that_fails_at_the_bottom_is_tried_as_often_as_it_may_and_not_at_each_level_anew(
    farm: LocalFarm, notes: Notes
) -> None:
    top = await asyncio.to_thread(farm.start_orchestrator, "top")
    middle = await start_below(farm, "middle", top, "farm_app.broken")
    low = await start_below(farm, "low", middle, "farm_app.broken")
    await start_worker(farm, "w1", low)
    async with await connect(top) as client:
        often = broken.options(retries=af.Retry(max_attempts=3, backoff="1ms"))
        with pytest.raises(TaskFailed, match="1 is odd"):
            await client.submit(often, 1, path=notes.path).result(20)
        assert notes.often() == {"work-1": 3}


async def test_each_level_is_killed_while_it_works_and_nothing_is_repeated(farm: LocalFarm, notes: Notes) -> None:
    """Stage above stage: the middle expands into requests to the bottom, which expands each into tasks."""
    requests, count = 4, 30
    top = await asyncio.to_thread(farm.start_orchestrator, "top", options=["--heartbeat-s", "1"])
    middle = await start_below(farm, "middle", top, "test.stages")
    low = await start_below(farm, "low", middle, "test.stage")
    await start_worker(farm, "planner", middle)
    await start_worker(farm, "w1", low)
    async with await connect(top) as client:
        future = client.submit("test.stages", requests, count, path=notes.path, seconds=0.05)
        killed_at_work = 0
        for done, names in ((8, ("low",)), (20, ("middle",)), (32, ("top",)), (44, ("top", "middle", "low"))):
            await until(lambda done=done: notes.count("work-") >= done)  # type: ignore[misc]
            killed_at_work += notes.count("work-") < requests * count
            await kill_and_restart(farm, *names)
        assert killed_at_work >= 2  # workers go on meanwhile, on a slow machine to the end
        assert await future.result(40) == requests * sum_of_squares(count)
        often = notes.often()
        assert {often[f"work-{number}"] for number in range(count)} == {requests}
        assert notes.count("work-") == requests * count
        assert notes.once("plan-", "summary-")
        assert notes.count("plan-") == notes.count("summary-") == requests + 1
        results = [m async for batch in client.connection.results(future.job_id) for m in batch]
        assert [(m.index, m.attempt) for m in results] == [(0, 1)]


async def test_the_top_may_be_away_for_longer_than_a_lease_while_the_level_below_works_on(
    farm: LocalFarm, notes: Notes
) -> None:
    count = 30
    low = await two_levels(farm, heartbeat_s=H_S)
    async with await connect(farm.address) as client, await connect(low) as below:
        future = client.submit("test.stage", "a", count, **stage_arguments(notes, seconds=0.1))
        await until(lambda: notes.count("work-") >= 4)
        down = time.monotonic()
        await asyncio.to_thread(farm.kill, "top")
        await until(lambda: time.monotonic() - down > 1.5 * LEASE_S)
        await until(lambda: notes.often()["summary-a"] == 1, "it ends below while nobody is above")
        await asyncio.to_thread(farm.restart, "top")
        assert await future.result(40) == ["a", sum_of_squares(count), []]
        assert notes.once()
        assert notes.count() == count + 2
        results = [m async for batch in client.connection.results(future.job_id) for m in batch]
        assert [(m.index, m.attempt) for m in results] == [(0, 1)]
        await nothing_is_left_below(below)


async def test_a_restarted_top_is_told_again_what_has_begun_below(farm: LocalFarm, notes: Notes) -> None:
    await two_levels(farm)
    async with await connect(farm.address) as client:
        future = client.submit("test.stage", "a", 2, **stage_arguments(notes, seconds=60))

        async def begun() -> bool:
            return "It has begun there." in str(await future.explain())

        await until(begun)
        await kill_and_restart(farm, "top")
        await until(begun)
        await future.cancel("seen")


async def test_what_ended_before_a_crash_is_in_the_first_hello_after_it(farm: LocalFarm, notes: Notes) -> None:
    """Whoever is told late that it has ended may have given it to another, and takes it away."""
    async with FakeOrchestrator() as top:
        farm.environment["ANTFARM_FAILPOINTS"] = "upstream.before_report=kill"
        low = await start_below(farm, "low", top.address, "farm_app.work")
        farm.environment.clear()
        await start_worker(farm, "w1", low)
        [token] = top.give("farm_app.work", [json.dumps([3, notes.path, 0.0]).encode()])
        await until(lambda: not farm.program("low").running)
        before = len(top.connections)  # it may have attached anew, to say how large its worker is
        await asyncio.to_thread(farm.restart, "low")
        hello = (await top.attached(before + 1)).hello
        assert wire.tokens_from_wire(hello.held) == wire.tokens_from_wire(hello.unacked) == [token]
        assert (await top.outcome(token)).result == b"9"
        assert notes.count() == 1


async def test_inputs_of_what_runs_below_are_read_above_also_over_a_kill_there(farm: LocalFarm, notes: Notes) -> None:
    count = 60
    await two_levels(farm, ("farm_app.after",))
    await start_worker(farm, "w0", farm.address)
    async with await connect(farm.address) as client:
        first = await client.map(work, range(count), path=notes.path, seconds=0.01)
        # w0 offers the type too; what goes below is relayed there.
        second = await client.map(after, first, path=notes.path)
        await until(lambda: notes.count("after-") >= 10)
        await kill_and_restart(farm, "top")
        assert [value async for value in second.results()] == [i * i + 1 for i in range(count)]
        assert notes.count("after-") == notes.count("work-") == count
        outcomes = [m async for batch in client.connection.results(second.job_id) for m in batch]
        assert {m.worker_id for m in outcomes} >= {"w0"}
        assert any(m.worker_id.startswith("orchestrator-") for m in outcomes)


@pytest.mark.parametrize("levels", [2, 3])
async def test_a_cancel_at_the_top_reaches_the_workers_below(farm: LocalFarm, notes: Notes, levels: int) -> None:
    top = await asyncio.to_thread(farm.start_orchestrator, "top", options=["--heartbeat-s", "1"])
    above = await start_below(farm, "middle", top, "test.stage") if levels == 3 else top
    low = await start_below(farm, "low", above, "test.stage")
    await start_worker(farm, "w1", low)
    async with await connect(top) as client, await connect(low) as below:
        job = await client.map("test.stage", ["a", "b"], [20, 20], **stage_arguments(notes, "gated"))
        await until(lambda: notes.count("work-") == 2, "two run and will not end by themselves")
        children = {note.pid for note in notes.all() if note.what.startswith("work-")}
        status = await job.cancel("enough")
        assert (status.state, status.cause) == (JobState.CANCELLED, "enough")
        await nothing_is_left_below(below)
        await until(gone(children), "the children that ran them were stopped")
        assert notes.count("work-") == 2
        assert notes.count("summary-") == 0
        # All levels are of use again.
        notes.open_gate()
        assert await client.submit("test.stage", "c", 3, **stage_arguments(notes)).result(20) == ["c", 5, []]
        assert (await job.status()).counts == {7: 2}


def gone(pids: set[int]) -> Callable[[], bool]:
    return lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids)


async def test_a_cancel_while_the_level_below_is_away_reaches_it_when_it_returns(farm: LocalFarm, notes: Notes) -> None:
    low = await two_levels(farm)
    async with await connect(farm.address) as client, await connect(low) as below:
        job = await client.map("test.stage", ["a"], [20], **stage_arguments(notes, "gated"))
        await until(lambda: notes.count("work-") == 2)
        await asyncio.to_thread(farm.kill, "low")
        await job.cancel("enough")
        await asyncio.to_thread(farm.restart, "low")
        await nothing_is_left_below(below)
        assert notes.count("work-") == 2
        notes.open_gate()
        assert await client.submit("test.stage", "c", 3, **stage_arguments(notes)).result(20) == ["c", 5, []]


async def test_a_drained_level_below_finishes_what_it_has_and_comes_back(farm: LocalFarm, notes: Notes) -> None:
    await two_levels(farm)
    async with await connect(farm.address) as client:
        future = client.submit("test.stage", "a", 30, **stage_arguments(notes, seconds=0.03))
        await until(lambda: notes.count("work-") >= 6)
        assert await asyncio.to_thread(farm.terminate, "low") == 0  # its own parents survive in its journal
        await asyncio.to_thread(farm.restart, "low")
        assert await future.result(30) == ["a", sum_of_squares(30), []]
        assert notes.once()


async def below_of(client: AsyncFarm) -> worker_pb2.Worker:
    """The one orchestrator below, as the one above sees it."""
    (low,) = [worker for worker in await workers_of(client) if worker.worker_id.startswith("orchestrator-")]
    return low


async def drain(client: AsyncFarm, *, on: bool, limit_s: float = 0.0) -> None:
    """Drain the one orchestrator below, or end that."""
    low = await below_of(client)
    limit = duration_pb2.Duration(nanos=int(limit_s * SECOND_NS))
    request = worker_pb2.DrainWorkerRequest(worker_id=low.worker_id, limit=limit)
    if on:
        await client.connection.workers.DrainWorker(request)
    else:
        await client.connection.workers.UndrainWorker(worker_pb2.UndrainWorkerRequest(worker_id=low.worker_id))


async def test_an_operator_drains_a_level_below_and_lets_it_work_again(farm: LocalFarm, notes: Notes) -> None:
    await two_levels(farm, ("test.stage", "farm_app.work"))
    async with await connect(farm.address) as client:
        gated = await client.map("test.stage", ["a"], [20], **stage_arguments(notes, "gated"))
        await until(lambda: notes.count("work-") == 2, "two run and will not end by themselves")
        waiting = await client.map(work, range(6), path=notes.path, seconds=0.01)  # they wait behind these
        await drain(client, on=True, limit_s=0.5)
        await start_worker(farm, "w0", farm.address)  # runs what was given back
        assert sorted([value async for value in waiting.results()]) == [i * i for i in range(6)]
        # What had begun is stopped and given back when its time is over, and waits for somebody who can plan it.

        async def holds_nothing() -> bool:
            return (await below_of(client)).held == 0

        await until(holds_nothing)
        assert (await gated.status()).counts == {TaskState.QUEUED: 1}
        notes.open_gate()
        await drain(client, on=False)
        assert [value async for value in gated.results()] == [["a", sum_of_squares(20), []]]


async def test_a_failed_task_that_a_drained_level_gives_back_has_only_the_attempts_left_that_its_policy_says(
    farm: LocalFarm, notes: Notes
) -> None:
    await two_levels(farm, ("farm_app.broken",))
    async with await connect(farm.address) as client:
        twice = broken.options(retries=af.Retry(max_attempts=2, backoff="60s"))
        future = client.submit(twice, 1, path=notes.path)
        await until(lambda: notes.count("work-") == 1, "it failed, and waits below for its second attempt")
        await start_worker(farm, "w0", farm.address)
        await drain(client, on=True, limit_s=0.5)
        with pytest.raises(TaskFailed, match="1 is odd"):
            await future.result(20)
        assert notes.often() == {"work-1": 2}


async def test_a_drained_worker_that_has_not_left_yet_works_again_when_an_operator_says_so(
    farm: LocalFarm, notes: Notes
) -> None:
    """Not by the orchestrator's restart, which has only forgotten the drain."""
    top = await asyncio.to_thread(farm.start_orchestrator, "top", options=["--heartbeat-s", "1"])
    await start_worker(farm, "w1", top)
    async with await connect(top) as client:
        workers, request = client.connection.workers, worker_pb2.DrainWorkerRequest(worker_id="w1")
        gate = f"{notes.path}.gate"
        job = await client.map(gated, range(6), path=notes.path, gate=gate)
        await until(lambda: notes.count("work-") == 2, "two run and will not end by themselves")
        await workers.DrainWorker(request)
        log = farm.program("w1").log
        await until(lambda: "draining" in log.read_text())
        await workers.UndrainWorker(worker_pb2.UndrainWorkerRequest(worker_id="w1"))
        await until(lambda: "the drain is over: working again" in log.read_text())
        notes.open_gate()
        assert [value async for value in job.results()] == [n * n for n in range(6)]
        assert notes.count("work-") == 6
        second = await client.map(gated, range(2), path=notes.path, gate=f"{gate}2")
        await until(lambda: notes.count("work-") == 8)
        await workers.DrainWorker(request)
        await until(lambda: log.read_text().count("draining") == 2)
        await kill_and_restart(farm, "top")
        await until(lambda: log.read_text().count("attached to") == 3)
        await asyncio.to_thread(Path(f"{gate}2").touch)
        assert [value async for value in second.results()] == [0, 1]
        await until(lambda: not farm.program("w1").running, "it leaves")


def test_orchestrators_in_a_ring_are_refused_in_one_line(tmp_path: Path) -> None:
    with local_farm(tmp_path) as farm:
        top = farm.start_orchestrator("top")
        low = farm.start_orchestrator("low", upstream=top, as_=["test.stage"])
        farm.kill("top")
        program = farm.program("top")
        program.arguments = (*program.arguments, "--upstream", low, "--as", "test.other")
        farm.restart("top")

        def ended() -> list[str]:
            return [name for name in ("top", "low") if not farm.program(name).running]

        deadline = time.monotonic() + 20
        while not ended():
            assert time.monotonic() < deadline, "the ring was closed"
            time.sleep(0.02)
        log = farm.program(ended()[0]).log.read_text()
        assert "name another --upstream" in log.splitlines()[-1]
