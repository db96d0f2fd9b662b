"""Series in which clients are the trouble: they die in the middle of a submission and submit again, cancel at any moment, and submit far too much."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from chaos_farm import PATIENCE_S, ChaosFarm, chaos_farm
from chaos_report import Report
from farm_bench import CALM_S, connect
from fault_proxy import FaultProxy

from antfarm.client.connection import Connection
from antfarm.client.farm import AsyncFarm
from antfarm.errors import Conflict, JobClosed

# ---- clients that die and submit again ------------------------------------------------------------------------------------

LANES = 4
"""Clients at work at the same time."""
PACE_S = 0.002
"""Between two calls of a job: slow enough that a submission is several messages, each of which may be the last."""
TASKS_MAX = 16
ROUNDS_PER_KILL = 20


async def resubmissions(directory: Path, rounds: int) -> Report:
    """Each job's client is stopped in the middle of its submission, by turns by SIGKILL and by a cut connection, and the job is submitted again.

    Now and then the orchestrator dies too. Each job must be there once with each of its tasks once, and no other content be taken under its id.
    """
    complaints: list[str] = []
    with chaos_farm(directory) as farm:
        await farm.start(CALM_S, workers=3)
        numbers = iter(range(rounds))
        lanes = [asyncio.create_task(_lane(farm, numbers, complaints)) for _ in range(LANES)]
        try:
            await _kill_now_and_then(farm, lanes)
            await asyncio.gather(*lanes)
        finally:
            for lane in lanes:
                lane.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)
        await farm.read_again()
        complaints += await _miscounted(farm)
        kills = len(farm.history.faults)
        done = f"{rounds} submissions repeated, {(rounds + 1) // 2} after SIGKILL of their client, {rounds // 2} over a cut connection; {kills} SIGKILLs of the orchestrator"
        report = Report.untouched(done, farm.verdict(), farm.losses())
    report.complaints += complaints
    return report


async def _kill_now_and_then(farm: ChaosFarm, lanes: list[asyncio.Task[None]]) -> None:
    """Until the lanes are at their end."""
    while not all(lane.done() for lane in lanes):
        goal = len(farm.history.acknowledged) + farm.dice.randint(1, 2 * ROUNDS_PER_KILL)
        while len(farm.history.acknowledged) < goal:
            await asyncio.wait(lanes, timeout=0.01, return_when=asyncio.FIRST_EXCEPTION)
            if all(lane.done() for lane in lanes):
                return
        await farm.kill("orchestrator")
        await farm.restart("orchestrator")


async def _lane(farm: ChaosFarm, numbers: Iterator[int], complaints: list[str]) -> None:
    """One job after the other, each submitted at least twice."""
    async with (
        _nursery(farm.directory) as nursery,
        FaultProxy(farm.farm.address) as proxy,
        await connect(farm.farm.address, PATIENCE_S) as client,
        await connect(proxy.address, PATIENCE_S) as cut_off,
    ):
        for number in numbers:
            job_id, tasks = f"r{number}", farm.dice.randint(1, TASKS_MAX)
            last = farm.dice.randint(0, tasks)
            farm.history.submitted[job_id] = tasks
            if number % 2:
                await _submit(
                    cut_off, farm.path, job_id, tasks, lambda n, last=last: proxy.cut() if n == last else None
                )
            else:
                await _killed(nursery, farm, job_id, tasks, last)
                await _submit(client, farm.path, job_id, tasks)
            farm.acknowledge(job_id)
            complaints += await _taken_for_the_same(client, farm, job_id, tasks)
            async for batch in client.connection.results(job_id):
                farm.tell(job_id, batch)


async def _submit(
    client: AsyncFarm,
    path: str,
    job_id: str,
    tasks: int,
    tell: Callable[[int], object] = lambda number: None,
    *,
    other: int = -1,
    seconds: float = 0.0,
) -> None:
    """A job whose calls come at a pace. `tell` hears of each before it goes, and of the end. `other`: the index of a call that is another one."""

    async def calls() -> AsyncIterator[int]:
        for number in range(tasks):
            tell(number)
            yield tasks if number == other else number
            await asyncio.sleep(PACE_S)
        tell(tasks)

    common = {"path": path, "name": job_id, "seconds": seconds}
    async with asyncio.timeout(2 * PATIENCE_S):
        await client.map("chaos.step", calls(), job_id=job_id, common=common)


async def _killed(nursery: asyncio.subprocess.Process, farm: ChaosFarm, job_id: str, tasks: int, last: int) -> None:
    """Let a client process submit, and kill it when it is about to send its call number `last`."""
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    nursery.stdin.write(f"{farm.farm.address} {farm.path} {job_id} {tasks}\n".encode())
    async with asyncio.timeout(PATIENCE_S):
        while True:
            whose, pid, number = (await nursery.stdout.readline()).decode().split()
            if (whose, int(number)) == (job_id, last):
                os.kill(int(pid), signal.SIGKILL)
                return


async def _taken_for_the_same(client: AsyncFarm, farm: ChaosFarm, job_id: str, tasks: int) -> list[str]:
    """Submit other content under the id: a call that differs, a specification that differs, a call more."""
    differing: dict[str, dict[str, float]] = {
        "with another call": {"tasks": tasks, "other": farm.dice.randrange(tasks)},
        "with another argument of all calls": {"tasks": tasks, "seconds": 1.0},
        "with one call more": {"tasks": tasks + 1},
    }
    complaints = []
    for what, options in differing.items():
        try:
            await _submit(client, farm.path, job_id, **options)  # type: ignore[arg-type]
        except (Conflict, JobClosed):
            continue
        complaints.append(f"{job_id} was taken for the same {what} (of {tasks}): {options}")
    return complaints


async def _miscounted(farm: ChaosFarm) -> list[str]:
    """Jobs that the orchestrator has not exactly once, or not with as many tasks as they were submitted with."""
    async with await connect(farm.farm.address, PATIENCE_S) as client:
        found = [(status.job_id, status.task_count) async for status in client.jobs()]
    wanted = [(job_id, farm.history.submitted[job_id]) for job_id in farm.history.acknowledged]
    return [
        f"it has {job} {found.count(job)} times"
        for job in {*found, *wanted}
        if not (found.count(job) == wanted.count(job) == 1)
    ]


@asynccontextmanager
async def _nursery(directory: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that makes client processes, in little time because it has loaded all that they need. They end with it."""
    with (directory / "clients.log").open("a") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            __file__,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def _be_the_nursery() -> None:
    """Each line makes a process that submits what the line says. gRPC has not begun anything yet when it forks."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    for line in sys.stdin:
        if os.fork() == 0:
            address, path, job_id, tasks = line.split()
            asyncio.run(_be_a_client(address, path, job_id, int(tasks)))


async def _be_a_client(address: str, path: str, job_id: str, tasks: int) -> None:
    """Submits, writes a line before each call, and waits for its end."""
    connection = await Connection.open(address, patience_s=PATIENCE_S, dial_timeout_s=PATIENCE_S)
    tell = functools.partial(print, job_id, os.getpid(), flush=True)
    await _submit(AsyncFarm(connection), path, job_id, tasks, tell)
    await asyncio.Event().wait()


if __name__ == "__main__":
    _be_the_nursery()
