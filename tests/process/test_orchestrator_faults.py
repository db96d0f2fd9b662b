"""Real programs die, stand still, drain and come back: each task is recorded once, and what a worker still holds is not repeated."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from farm_app import after, gated, work
from farm_bench import (
    APP,
    CALM_S,
    H_S,
    LEASE_S,
    SWEEP_S,
    Notes,
    connect,
    kill_and_restart,
    local_farm,
    tasks_of,
    until,
    worker_of,
)

from antfarm.client.farm import AsyncFarm
from antfarm.client.job import AsyncJob
from antfarm.local import LocalFarm
from antfarm.model import JobState
from antfarm.v1 import common_pb2, worker_pb2

pytestmark = pytest.mark.slow


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[LocalFarm]:
    with local_farm(tmp_path) as farm:
        yield farm


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "notes")


async def start(farm: LocalFarm, heartbeat_s: float, workers: int = 2, slots: int = 2) -> None:
    options = ["--heartbeat-s", str(heartbeat_s)]
    await asyncio.to_thread(farm.start_orchestrator, options=options)
    for number in range(workers):
        await start_worker(farm, f"w{number + 1}", slots)


async def start_worker(farm: LocalFarm, name: str, slots: int = 2) -> None:
    await asyncio.to_thread(
        farm.start_worker, name, slots=slots, app=[APP], options=["--no-installed-apps", "--cancel-grace-s", "2"]
    )


async def recorded_once(client: AsyncFarm, job: AsyncJob[int], count: int) -> None:
    """Each of the job's tasks is recorded once, with the right result."""
    outcomes = [message async for batch in client.connection.results(job.job_id) for message in batch]
    assert sorted(outcome.index for outcome in outcomes) == list(range(count))
    assert {outcome.state for outcome in outcomes} == {common_pb2.TASK_STATE_SUCCEEDED}
    assert {outcome.index: int(outcome.result) for outcome in outcomes} == {i: i * i for i in range(count)}


async def test_an_orchestrator_killed_three_times_repeats_nothing_and_its_client_goes_on(
    farm: LocalFarm, notes: Notes
) -> None:
    count = 300
    await start(farm, CALM_S)
    async with await connect(farm.address) as client:
        job = await client.map(work, range(count), path=notes.path, seconds=0.02)
        seen: list[int] = []
        kills = [40, 120, 200]
        async for future in job.as_completed():
            seen.append(future.index)
            if kills and len(seen) >= kills[0]:
                kills.pop(0)
                await kill_and_restart(farm, "orchestrator")
        assert kills == []
        assert sorted(seen) == list(range(count))
        await recorded_once(client, job, count)
        assert notes.count() == count
        assert notes.once()
        tasks = await tasks_of(client, job.job_id)
        assert {(task.app_failures, task.crashes, task.infra_failures) for task in tasks} == {(0, 0, 0)}
        assert (await job.status()).retried_count == 0


async def test_tasks_of_a_killed_worker_are_queued_again_in_time(farm: LocalFarm, notes: Notes, tmp_path: Path) -> None:
    """Within L + S + d of its last sign of life, by the orchestrator's own clock; d, by which a sweep comes late here, is below H (the pause guard)."""
    gate = tmp_path / "gate"
    await start(farm, H_S, workers=1)
    async with await connect(farm.address) as client:
        job = await client.map(gated, range(4), path=notes.path, gate=str(gate))
        await until(lambda: notes.count() == 2, "two run")
        await start_worker(farm, "w2")
        await until(lambda: notes.count() == 4, "w2 runs the others")
        theirs = {note.index for note in notes.all()[:2]}
        children = {note.pid for note in notes.all()[:2]}
        os.kill(farm.program("w1").pid, signal.SIGKILL)

        async def lost() -> bool:
            return {task.index for task in await tasks_of(client, job.job_id) if task.infra_failures == 1} == theirs

        await until(lost, "they are queued again")
        said = re.search(r"lost: worker w1 was silent for ([0-9.]+) s", farm.program("orchestrator").log.read_text())
        assert said is not None
        assert LEASE_S <= float(said[1]) + 0.05 <= LEASE_S + SWEEP_S + H_S
        assert (await worker_of(client, "w1")).state == worker_pb2.WORKER_STATE_LOST
        await asyncio.to_thread(farm.kill, "w1")  # reaps it
        await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "its children died with it")
        await start_worker(farm, "w3")
        await until(lambda: notes.count() == 6, "they run elsewhere")
        assert {(note.index, note.attempt) for note in notes.all()[4:]} == {(index, 2) for index in theirs}
        gate.touch()
        assert (await job.wait(20)).state is JobState.SUCCEEDED
        await recorded_once(client, job, 4)
        assert notes.count() == 6


async def test_a_worker_that_stood_still_beyond_its_lease_comes_back_as_another(
    farm: LocalFarm, notes: Notes, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    await start(farm, H_S, workers=1)
    async with await connect(farm.address) as client:
        job = await client.map(gated, range(2), path=notes.path, gate=str(gate))
        await until(lambda: notes.count() == 2, "both run")
        os.kill(farm.program("w1").pid, signal.SIGSTOP)
        await start_worker(farm, "w2")
        await until(lambda: notes.count() == 4, "both run again elsewhere")
        assert (await worker_of(client, "w1")).state == worker_pb2.WORKER_STATE_LOST
        gate.touch()
        os.kill(farm.program("w1").pid, signal.SIGCONT)
        assert (await job.wait(20)).state is JobState.SUCCEEDED
        await recorded_once(client, job, 2)

        async def settled() -> bool:
            workers = [await worker_of(client, name) for name in ("w1", "w2")]
            return all((w.state, w.held) == (worker_pb2.WORKER_STATE_READY, 0) for w in workers)

        await until(settled, "both are there and hold nothing")
        # It works as before.
        more = await client.map(work, range(40), path=notes.path, seconds=0.01)
        assert [value async for value in more.results()] == [i * i for i in range(40)]
        await until(settled)
        assert (await worker_of(client, "w1")).succeeded_count > 0
    assert "new incarnation" in farm.program("w1").log.read_text()


async def test_a_worker_that_stood_still_within_its_lease_repeats_nothing(farm: LocalFarm, notes: Notes) -> None:
    await start(farm, H_S, workers=2)
    async with await connect(farm.address) as client:
        job = await client.map(work, range(60), path=notes.path, seconds=0.05)
        await until(lambda: notes.count() >= 8)
        os.kill(farm.program("w1").pid, signal.SIGSTOP)

        async def suspect() -> bool:
            return (await worker_of(client, "w1")).state == worker_pb2.WORKER_STATE_SUSPECT

        await until(suspect)
        os.kill(farm.program("w1").pid, signal.SIGCONT)
        assert (await job.wait(20)).state is JobState.SUCCEEDED
        await recorded_once(client, job, 60)
        assert notes.count() == 60


async def test_a_worker_that_is_stopped_finishes_what_runs_and_hands_the_rest_back(
    farm: LocalFarm, notes: Notes, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    await start(farm, CALM_S, workers=1)
    async with await connect(farm.address) as client:
        job = await client.map(gated, range(12), path=notes.path, gate=str(gate))
        await until(lambda: notes.count() == 2, "two run")

        async def held() -> int:
            return (await worker_of(client, "w1")).held

        await until(held)
        ending = asyncio.create_task(asyncio.to_thread(farm.terminate, "w1"))

        async def handed_back() -> bool:
            return (await held()) == 2

        await until(handed_back, "what waits is handed back while two run")
        gate.touch()
        assert await ending == 0
        states = [task.state for task in await tasks_of(client, job.job_id)]
        assert states.count(common_pb2.TASK_STATE_SUCCEEDED) == 2
        assert states.count(common_pb2.TASK_STATE_QUEUED) == 10
        assert (await worker_of(client, "w1")).state == worker_pb2.WORKER_STATE_GONE
        await start_worker(farm, "w2")
        assert (await job.wait(20)).state is JobState.SUCCEEDED
        await recorded_once(client, job, 12)
        assert (notes.count(), notes.once()) == (12, True)
        tasks = await tasks_of(client, job.job_id)
        assert {(task.app_failures, task.crashes, task.infra_failures) for task in tasks} == {(0, 0, 0)}


async def test_what_was_acknowledged_is_there_after_a_kill_at_once(farm: LocalFarm, notes: Notes) -> None:
    rounds, count = 20, 40
    await start(farm, CALM_S, workers=0)
    async with await connect(farm.address) as client:
        jobs = []
        for number in range(rounds):
            jobs.append(await client.map(work, range(count), path=notes.path, seconds=0, name=f"round {number}"))
            await kill_and_restart(farm, "orchestrator")
            assert (await jobs[-1].status()).counts == {1 + 1: count}  # QUEUED
        for job in jobs:
            status = await job.status()
            assert (status.state, status.task_count) == (JobState.RUNNING, count)
        await start_worker(farm, "w1", slots=2)
        for job in jobs:
            assert (await job.wait(30)).state is JobState.SUCCEEDED
            await recorded_once(client, job, count)
        assert notes.count() == rounds * count


async def test_inputs_are_there_for_tasks_that_wait_for_them_also_over_a_kill(farm: LocalFarm, notes: Notes) -> None:
    count = 120
    await start(farm, CALM_S)
    async with await connect(farm.address) as client:
        first = await client.map(work, range(count), path=notes.path, seconds=0.01)
        second = await client.map(after, first, path=notes.path)
        await until(lambda: notes.count("after-") >= 20)
        await kill_and_restart(farm, "orchestrator")
        assert [value async for value in second.results()] == [i * i + 1 for i in range(count)]
        assert notes.count("after-") == notes.count("work-") == count
        assert {note.attempt for note in notes.all()} <= {1, 2}
        tasks = await tasks_of(client, second.job_id)
        assert {(task.app_failures, task.crashes, task.infra_failures) for task in tasks} == {(0, 0, 0)}


async def test_workers_that_start_before_their_orchestrator_or_outlive_it_for_longer_than_a_lease_work_on(
    farm: LocalFarm, notes: Notes, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    await start(farm, H_S, workers=1)
    async with await connect(farm.address) as client:
        job = await client.map(gated, range(8), path=notes.path, gate=str(gate))
        await until(lambda: notes.count() == 2)
        down = time.monotonic()
        await kill_and_restart(farm, "orchestrator", pause=lambda: time.monotonic() - down > 1.5 * LEASE_S)
        gate.touch()
        assert (await job.wait(20)).state is JobState.SUCCEEDED
        await recorded_once(client, job, 8)
        assert (notes.count(), notes.once()) == (8, True)
