"""Series in which programs die under load: by signal at any moment, and at every failpoint."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from chaos_farm import ChaosFarm, chaos_farm, dies, restart_armed
from chaos_report import Report
from farm_bench import CALM_S
from history import NOBODY, Fault

LEVELS = ("top", "middle", "low")
STAGES = {"middle": ["chaos.requests"], "low": ["chaos.request"]}
ORCHESTRATOR_POINTS = (
    "epoch.before_record",
    "journal.before_commit",
    "journal.after_commit",
    "driver.before_release",
    "driver.after_release",
    "session.before_welcome",
    "work_queue.after_write",
    "report_queue.before_write",
    "report_queue.after_write",
)
WORKER_POINTS = ("link.before_outbox", "link.after_outbox", "link.after_send", "link.before_verdict")
UPSTREAM_POINTS = ("upstream.before_bind", "upstream.before_report", "upstream.before_acked")
FEW_TIMES = {"session.before_welcome": 2, "epoch.before_record": 1}
"""Places that a start passes only so often."""


async def worker_kills(directory: Path, rounds: int) -> Report:
    """Workers die by SIGKILL, some at a time, and start again under their names."""
    with chaos_farm(directory) as farm:
        names = [f"w{n + 1}" for n in range(6)]
        at_once = min(3, rounds)
        await farm.start(CALM_S, workers=len(names))
        async with farm.load(clients=4):
            for _ in range(0, rounds, at_once):
                await farm.progress(farm.dice.randint(1, 12))
                victims = farm.dice.sample(names, at_once)
                await farm.kill(*victims)
                await farm.restart(*victims)
        verdict = farm.verdict()
        return Report(done=f"{len(farm.history.faults)} SIGKILLs of workers, {at_once} at a time", verdict=verdict)


async def orchestrator_kills(directory: Path, rounds: int) -> Report:
    """The orchestrator dies by SIGKILL and comes back. No worker is ever touched, so nothing may be executed twice."""
    with chaos_farm(directory) as farm:
        await farm.start(CALM_S, workers=3)
        async with farm.load():
            for _ in range(rounds):
                await farm.progress(farm.dice.randint(1, 8))
                await farm.kill("orchestrator")
                await farm.restart("orchestrator")
        return Report.untouched(f"{rounds} SIGKILLs of the orchestrator", farm.verdict(), farm.losses())


async def failpoints(directory: Path, rounds: int) -> Report:
    """Orchestrator and workers die at each of their failpoints, `rounds` times at each."""
    with chaos_farm(directory) as farm:
        await farm.start(0.5, workers=3)
        async with farm.load():
            deaths = await _die_at(farm, ORCHESTRATOR_POINTS, "orchestrator", rounds)
            deaths |= await _die_at(farm, WORKER_POINTS, "w1", rounds)
        return Report(
            done=f"{rounds} deaths at each of {len(deaths)} failpoints",
            verdict=farm.verdict(),
            complaints=_missed(deaths, rounds),
        )


async def upstream_failpoints(directory: Path, rounds: int) -> Report:
    """A down-stream orchestrator dies at each failpoint of the up-link and of its own queues to workers."""
    with chaos_farm(directory) as farm:
        await _levels(farm, ("top", "low"))
        async with farm.load(clients=2, tasks=6, seconds=0.005, expand=3, type_="chaos.request"):
            deaths = await _die_at(farm, UPSTREAM_POINTS, "low", rounds)
        return Report(
            done=f"{rounds} deaths at each of {len(deaths)} failpoints of the up-link",
            verdict=farm.verdict(),
            complaints=_missed(deaths, rounds),
        )


async def _die_at(farm: ChaosFarm, points: Sequence[str], name: str, rounds: int) -> dict[str, int]:
    """Let a program die at each of these failpoints so often, started anew each time, and in the end let it live. How often it died where."""
    deaths = dict.fromkeys(points, 0)
    program = farm.farm.program(name)
    await farm.kill(name)
    for point in [*points] * rounds:
        hit = farm.dice.randint(1, FEW_TIMES.get(point, 8))
        if await restart_armed(farm, name, f"{point}=kill@{hit}"):
            process = program.process
            assert process is not None
            await dies(farm, name)
            agent = process.pid if program.role == "worker" else NOBODY
            farm.history.faults.append(Fault(name, time.time(), agent))
        deaths[point] += 1
        if point == "epoch.before_record":  # nothing was done meanwhile
            await farm.restart(name)
            await farm.progress()
            await farm.kill(name)
    await farm.restart(name)
    await farm.progress()
    return deaths


def _missed(deaths: dict[str, int], rounds: int) -> list[str]:
    return [f"{point}: {number} of {rounds} deaths" for point, number in deaths.items() if number != rounds]


async def level_kills(directory: Path, rounds: int) -> Report:
    """Three levels of orchestrators; each is killed in turn, sometimes all of them."""
    with chaos_farm(directory) as farm:
        await _levels(farm, LEVELS)
        async with farm.load(clients=2, tasks=3, seconds=0.02, expand=6, type_="chaos.requests"):
            await _kill_levels(farm, rounds)
        return _of_levels(farm, rounds)


async def relay_kills(directory: Path, rounds: int) -> Report:
    """The same with tasks that every level hands down as they are, many at a time."""
    with chaos_farm(directory) as farm:
        await _levels(farm, LEVELS, types={"middle": ["chaos.step"], "low": ["chaos.step"]})
        async with farm.load(clients=2, tasks=60, seconds=0.005, relayed=True):
            await _kill_levels(farm, rounds)
        return _of_levels(farm, rounds)


async def _kill_levels(farm: ChaosFarm, rounds: int) -> None:
    for number in range(rounds):
        await farm.progress(farm.dice.randint(1, 6))
        victims = LEVELS if number % 4 == 3 else (LEVELS[number % 4],)
        await farm.kill(*victims)
        for name in victims:
            await farm.restart(name)


def _of_levels(farm: ChaosFarm, rounds: int) -> Report:
    lost = [name for level in LEVELS for name in farm.losses(level)]
    done = f"{rounds} rounds of SIGKILL at each level of three, every fourth at all"
    return Report.untouched(done, farm.verdict(), lost)


async def _levels(farm: ChaosFarm, names: tuple[str, ...], types: Mapping[str, list[str]] = STAGES) -> None:
    """Orchestrators one below the other. A worker plans at the middle one, others work at the bottom."""
    options = ["--heartbeat-s", str(CALM_S)]
    address = ""
    for name in names:
        address = await asyncio.to_thread(
            farm.farm.start_orchestrator, name, upstream=address, as_=types.get(name, ()), options=options
        )
        if name == "middle":
            await farm.start_workers(["planner"], connect=address)
    await farm.start_workers(["w1", "w2"], connect=address)
