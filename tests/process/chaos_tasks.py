"""The series in which tasks go wrong, in every way that a task can, among good ones."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chaos_farm import PATIENCE_S, ChaosFarm, chaos_farm
from chaos_report import Report
from farm_bench import CALM_S, connect, until
from history import read_executions
from trouble_app import BAD
from worker_process import alive, leftovers

from antfarm.client.farm import AsyncFarm
from antfarm.v1 import common_pb2

APP = str(Path(__file__).parent / "trouble_app.py")
WORKERS = ("w1", "w2", "w3")
OF_EACH = 10
"""Tasks of each kind in one round."""
CRASHES = 3, 6
"""Executions of a task that crashes each time: the limit, and twice that when no second worker becomes free for it (semantics section 8)."""

_FAILED, _DEAD, _DONE = (
    common_pb2.TASK_STATE_FAILED,
    common_pb2.TASK_STATE_DEAD_LETTER,
    common_pb2.TASK_STATE_SUCCEEDED,
)
_NONE, _APP, _PERMANENT, _CRASH = (
    common_pb2.FAILURE_CLASS_UNSPECIFIED,
    common_pb2.FAILURE_CLASS_APP,
    common_pb2.FAILURE_CLASS_PERMANENT,
    common_pb2.FAILURE_CLASS_CRASH,
)


@dataclass(frozen=True)
class End:
    """How every task of a kind must end, and after how many executions."""

    state: int
    failure_class: int = _NONE
    kind: str = ""
    least: int = 1
    most: int = 1


ENDS = {
    "trouble.raise": End(_FAILED, _APP, "ValueError"),
    "trouble.never": End(_FAILED, _PERMANENT, "antfarm.errors.PermanentError"),
    "trouble.sys-exit": End(_FAILED, _APP, "SystemExit"),
    "trouble.exit": End(_FAILED, _APP, "exit code 3"),
    "trouble.segfault": End(_DEAD, _CRASH, "signal SIGSEGV", *CRASHES),
    "trouble.memory": End(_DEAD, _CRASH, "MemoryError", *CRASHES),
    "trouble.hang": End(_FAILED, _APP, "timeout"),
    "trouble.stubborn": End(_FAILED, _APP, "timeout"),
    "trouble.parent": End(_DONE),
    "trouble.odd": End(_FAILED, _PERMANENT, "unencodable result"),
    "trouble.large": End(_FAILED, _PERMANENT, "unencodable result"),
    "trouble.garbage": End(_DEAD, _CRASH, "signal SIGKILL", *CRASHES),
    "trouble.noise": End(_DONE),
}


async def task_failures(directory: Path, rounds: int) -> Report:
    """Bad tasks of every kind at the same time, in random order, among load of good ones. No worker may die of them."""
    with chaos_farm(directory) as farm:
        await _start(farm)
        agents = {name: farm.farm.program(name).pid for name in WORKERS}
        complaints: list[str] = []
        async with farm.load(clients=2, tasks=20, seconds=0.1), await connect(farm.farm.address, PATIENCE_S) as client:
            for number in range(rounds):
                complaints += await _round(client, f"{number}", directory / f"trouble-{number}", farm.dice)
        complaints += [
            f"{name} is no longer the process it was" for name in WORKERS if farm.farm.program(name).pid != agents[name]
        ]
        started = [pid for number in range(rounds) for pid in _below(directory / f"trouble-{number}.left")]
        farm.note_quarantines()
        done = f"{rounds * OF_EACH} tasks of each of {len(ENDS)} kinds of trouble"
        report = Report.untouched(done, farm.verdict(), farm.losses())
    left = [*filter(alive, started), *(words for agent in agents.values() for words in leftovers(agent))]
    report.complaints += complaints + [f"there at the end: {what}" for what in left]
    report.figures += f", {len(started)} processes that tasks left behind, {len(left)} there at the end"
    return report


async def _start(farm: ChaosFarm) -> None:
    options = ["--no-installed-apps", "--cancel-grace-s", "0.3"]
    await asyncio.to_thread(farm.farm.start_orchestrator, options=["--heartbeat-s", str(CALM_S)])
    for name in WORKERS:
        await asyncio.to_thread(farm.farm.start_worker, name, slots=2, app=[APP], options=options)


async def _round(client: AsyncFarm, name: str, path: Path, dice: random.Random) -> list[str]:
    """One job of each kind, all at a time. What ended otherwise than it must."""
    kinds = dice.sample(list(ENDS), len(ENDS))
    for kind in kinds:
        await client.map(BAD[kind], range(OF_EACH), job_id=f"{kind}-{name}", common={"path": str(path)})
    async with asyncio.timeout(5 * PATIENCE_S):
        ended = await asyncio.gather(*(_outcomes(client, f"{kind}-{name}") for kind in kinds))
    executions = read_executions(path)
    often = Counter(execution.task for execution in executions)
    complaints = [
        complaint
        for kind, outcomes in zip(kinds, ended, strict=True)
        for complaint in _judge(f"{kind}-{name}", ENDS[kind], outcomes, often)
    ]
    stopped = [
        *_below(Path(f"{path}.stopped")),
        *(e.pid for e in executions if ENDS[e.job_id.rpartition("-")[0]].kind == "timeout"),
    ]
    await until(lambda: not any(map(alive, stopped)), f"what hung in round {name} is gone", PATIENCE_S)
    return complaints


def _below(path: Path) -> list[int]:
    """Processes that tasks have started and noted there."""
    return [int(line) for line in path.read_text().splitlines()]


async def _outcomes(client: AsyncFarm, job_id: str) -> list[common_pb2.TaskResult]:
    return [message async for batch in client.connection.results(job_id) for message in batch]


def _judge(
    job_id: str, end: End, outcomes: Sequence[common_pb2.TaskResult], often: Counter[tuple[str, int]]
) -> list[str]:
    """What is wrong with the outcomes of one job."""
    complaints: list[str] = []
    if sorted(outcome.index for outcome in outcomes) != list(range(OF_EACH)):
        complaints.append(f"{job_id}: outcomes of {sorted(outcome.index for outcome in outcomes)}")
    for outcome in outcomes:
        failure, times = outcome.failure, often[job_id, outcome.index]
        seen = End(outcome.state, failure.failure_class, failure.kind, end.least, end.most)
        if seen != end:
            complaints.append(f"{job_id}/{outcome.index} ended as {seen} ({failure.message}), not as {end}")
        if not end.least <= times <= end.most:
            complaints.append(f"{job_id}/{outcome.index} was executed {times} times")
        if end.state == _DONE and outcome.result != b"%d" % outcome.index**2:
            complaints.append(f"{job_id}/{outcome.index} has the result {outcome.result[:40]!r}")
    return complaints
