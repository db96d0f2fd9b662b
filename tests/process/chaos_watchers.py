"""Clients that do not read their results for a long time: each waits in its own stream, costs little memory, and delays nobody."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from chaos_farm import ChaosFarm, chaos_farm
from chaos_report import Report
from farm_bench import CALM_S, PATIENCE_S, connect, memory_mib

from antfarm.client.farm import AsyncFarm
from antfarm.v1 import job_pb2

WATCHERS = 15
TASKS, WIDTH = 3_000, 32_000
"""Of the job that is watched, and the bytes of each result: more together than the orchestrator keeps in memory."""
READ_BEFORE = 50
"""Results that a watcher reads before it stops reading."""
RSS_GROWTH_MAX_MIB = 300
"""For the cache of results, one reading of the journal, and a part for each watcher. All that they have not read is 1.3 GiB."""
OTHERS_MAX_S = 10.0


async def slow_watchers(directory: Path, rounds: int) -> Report:
    """Watchers stop reading, a job is done beside them, then they read on, every second one by another call from its cursor."""
    others: list[float] = []
    complaints: list[str] = []
    with chaos_farm(directory) as farm:
        await farm.start(CALM_S, workers=2)
        pid = farm.farm.program("orchestrator").pid
        async with await connect(farm.farm.address, PATIENCE_S) as client:
            before_mib = memory_mib(pid)
            for number in range(rounds):
                took_s, wrong = await _round(farm, client, number)
                others.append(took_s)
                complaints += wrong
            await farm.read_again()
        grown_mib = memory_mib(pid, "VmHWM") - before_mib
        done = f"{rounds} times {WATCHERS} watchers of {TASKS} results of {WIDTH} bytes that stopped reading"
        report = Report.untouched(done, farm.verdict(), farm.losses())
    report.figures += f"; memory grew by {grown_mib:.0f} MiB at most, a job beside them was done in {max(others):.2f} s"
    report.complaints += complaints
    if grown_mib > RSS_GROWTH_MAX_MIB:
        report.complaints.append(f"memory grew by {grown_mib:.0f} MiB, more than {RSS_GROWTH_MAX_MIB}")
    if max(others) > OTHERS_MAX_S:
        report.complaints.append(f"a job beside them took {max(others):.2f} s")
    return report


async def _round(farm: ChaosFarm, client: AsyncFarm, number: int) -> tuple[float, list[str]]:
    """How long the job beside the watchers took, in seconds, and what watchers got wrong."""
    job = await client.map("chaos.wide", range(TASKS), job_id=f"wide-{number}", common={"width": WIDTH})
    await job.wait()
    stopped, go_on = asyncio.Semaphore(0), asyncio.Event()
    watching = [
        asyncio.create_task(_watch(farm.farm.address, job.job_id, stopped, go_on, again=n % 2 == 0))
        for n in range(WATCHERS)
    ]
    for _ in watching:
        await stopped.acquire()
    began = time.monotonic()
    name = f"beside-{number}"
    await farm.submit(client, name, 20, 0.01)
    async for batch in client.connection.results(name):
        farm.tell(name, batch)
    took_s = time.monotonic() - began
    go_on.set()
    wanted = {index: json.dumps(f"{index}:".ljust(WIDTH, "x")).encode() for index in range(TASKS)}
    wrong = [
        f"a watcher of {job.job_id} got {len(got)} results, {len(dict(got))} different ones"
        for got in await asyncio.gather(*watching)
        if len(got) != TASKS or dict(got) != wanted
    ]
    return took_s, wrong


async def _watch(
    address: str, job_id: str, stopped: asyncio.Semaphore, go_on: asyncio.Event, *, again: bool
) -> list[tuple[int, bytes]]:
    """What one watcher was sent, in order. Its connection is its own: streams of one share its room."""
    got: list[tuple[int, bytes]] = []
    async with await connect(address, PATIENCE_S) as client:
        request = job_pb2.StreamResultsRequest(job_id=job_id, follow=True)
        for _ in range(1 + again):
            had = {index for index, _ in got}  # the first part of what was recorded together comes again
            call = client.connection.jobs.StreamResults(request)
            async for message in call:
                got += [(result.index, bytes(result.result)) for result in message.results if result.index not in had]
                request.cursor = message.cursor
                if len(got) >= READ_BEFORE and not go_on.is_set():
                    stopped.release()
                    await go_on.wait()
                    if again:
                        call.cancel()
                        break
    return got
