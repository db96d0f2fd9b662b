"""Series in which the fault is in a task or in a node: poison that takes its worker along, and a node that fails whatever it is given."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path

from chaos_farm import PATIENCE_S, ChaosFarm, chaos_farm
from chaos_report import Report
from farm_bench import CALM_S, connect
from history import Fault

from antfarm.errors import Unavailable
from antfarm.v1 import common_pb2

LOOK_S = 0.02
POISON_DEATHS = 5
"""Workers that one poison task brings down at most: two beside others, three alone."""
HOLE_SLOTS = 2
HOLE_COST = HOLE_SLOTS + 3
"""Tasks that a black hole may fail before it gets no more."""


async def poison(directory: Path, rounds: int) -> Report:
    """Tasks that kill the agent of their worker, one after the other, among innocent load. Dead workers are started again."""
    with chaos_farm(directory) as farm:
        names = [f"w{n + 1}" for n in range(4)]
        await farm.start(CALM_S, workers=len(names))
        complaints: list[str] = []
        async with farm.load(tasks=20), await connect(farm.farm.address, PATIENCE_S) as client:
            over = asyncio.Event()
            keeper = asyncio.create_task(_keep_alive(farm, names, over))
            try:
                for number in range(rounds):
                    job_id = f"poison-{number}"
                    await client.map("chaos.poison", [number], job_id=job_id)
                    async with asyncio.timeout(2 * PATIENCE_S):
                        states = [m.state async for batch in client.connection.results(job_id) for m in batch]
                    if states != [common_pb2.TASK_STATE_DEAD_LETTER]:
                        complaints.append(f"{job_id} ended in states {states}")
            finally:
                over.set()
                await keeper
            await _start_dead(farm, names)  # one may have died between two looks
        deaths = len(farm.history.faults)
        if deaths > rounds * POISON_DEATHS:
            complaints.append(f"{deaths} workers died of {rounds} poison tasks, more than {POISON_DEATHS} each")
        done = f"{rounds} poison tasks dead-lettered, at the cost of {deaths} workers"
        return Report(done=done, verdict=farm.verdict(), complaints=complaints)


async def _keep_alive(farm: ChaosFarm, names: list[str], over: asyncio.Event) -> None:
    while not over.is_set():
        await _start_dead(farm, names)
        await asyncio.sleep(LOOK_S)


async def _start_dead(farm: ChaosFarm, names: list[str]) -> None:
    dead = [name for name in names if not farm.farm.program(name).running]
    for name in dead:
        process = farm.farm.program(name).process
        if process is not None:
            farm.history.faults.append(Fault(name, time.time(), process.pid))
            await asyncio.to_thread(farm.farm.kill, name)  # it is dead; now its farm knows
    with suppress(Unavailable):  # another one died meanwhile: the next look finds it
        await farm.restart(*dead)


async def black_hole(directory: Path, rounds: int) -> Report:
    """One node of six fails all tasks at once; nothing is retried. What it costs is counted, on a new farm each time."""
    costs: list[int] = []
    complaints: list[str] = []
    for number in range(rounds):
        place = directory / str(number)
        place.mkdir()
        with chaos_farm(place) as farm:
            await farm.start(CALM_S, workers=6, slots=HOLE_SLOTS)
            hole = directory / f"hole-{number}"
            hole.write_text(str(farm.farm.program("w1").pid))
            async with await connect(farm.farm.address, PATIENCE_S) as client:
                common = {"hole": str(hole), "seconds": 0.02}
                await client.map("chaos.hole", range(600), job_id="j", common=common)
                async with asyncio.timeout(2 * PATIENCE_S):
                    states = [m.state async for batch in client.connection.results("j") for m in batch]
            failed = sum(state != common_pb2.TASK_STATE_SUCCEEDED for state in states)
            costs.append(failed)
            if len(states) != 600 or not 3 <= failed <= HOLE_COST:
                complaints.append(f"round {number}: {failed} of {len(states)} tasks failed, more than {HOLE_COST}")
    return Report(
        done=f"{rounds} black holes among six workers of {HOLE_SLOTS} slots",
        figures=f"{max(costs)} tasks failed at most (limit {HOLE_COST}), {600 * rounds} in all",
        complaints=complaints,
    )
