"""The series in which an orchestrator starts again from a backup: it goes back in time, and the farm goes on."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path

from chaos_farm import PATIENCE_S, ChaosFarm, chaos_farm
from chaos_report import Report
from farm_bench import CALM_S, connect, until

from antfarm.client.farm import AsyncFarm
from antfarm.v1 import system_pb2, worker_pb2

TASKS = 60
WORKERS = ("w1", "w2", "w3")


async def restored_backups(directory: Path, rounds: int) -> Report:
    """Each round: a job is under way, a backup is made, the farm works on and takes another job, then the disk is lost and the backup restored.

    Every second time there is no `antfarm restore`: the file is copied by hand, after the orchestrator had begun further epochs in the gap.
    Clients submit both jobs again under their ids. Each task must be recorded once and rightly, and no token be executed twice.
    """
    complaints: list[str] = []
    with chaos_farm(directory) as farm:
        await farm.start(CALM_S, workers=len(WORKERS))
        for number in range(rounds):
            with farm.troubled(*WORKERS):  # what ran in the gap is forgotten, so it may run again
                complaints += await _round(farm, number, by_hand=number % 2 == 1)
        await farm.read_again()
        verdict = farm.verdict()
    return Report(
        done=f"{rounds} restores of a backup, {rounds // 2} by hand",
        verdict=verdict,
        figures=f"{len(complaints)} times the gap was not noticed",
        complaints=complaints,
    )


async def _round(farm: ChaosFarm, number: int, *, by_hand: bool) -> list[str]:
    orchestrator = farm.farm.program("orchestrator")
    state = farm.farm.state_dir / "orchestrator"
    backup = farm.directory / f"backup-{number}"
    kept, in_gap = f"kept-{number}", f"gap-{number}"
    async with await connect(farm.farm.address, PATIENCE_S) as client:
        await _submit_and_work(farm, client, kept)
        await _command("-c", farm.farm.address, "backup", str(backup))
        await _submit_and_work(farm, client, in_gap)
    if by_hand:
        for _ in range(2):
            await asyncio.to_thread(farm.farm.kill, "orchestrator")
            await asyncio.to_thread(farm.farm.restart, "orchestrator")
            async with await connect(farm.farm.address, PATIENCE_S) as client:
                await until(lambda: _all_back(client), "the workers see the new epoch", PATIENCE_S)
    await asyncio.to_thread(farm.farm.kill, "orchestrator")
    shutil.rmtree(state)
    if by_hand:
        state.mkdir()
        shutil.copyfile(backup, state / "journal.sqlite")
    else:
        await _command("restore", str(backup), "--state", str(state))
    await asyncio.to_thread(farm.farm.restart, "orchestrator")
    async with await connect(farm.farm.address, PATIENCE_S) as client:
        for job_id in (kept, in_gap):
            await farm.submit(client, job_id, TASKS, 0.02)
            async with asyncio.timeout(PATIENCE_S):
                async for _ in client.connection.results(job_id):
                    pass
        info = await client.connection.system.GetServerInfo(system_pb2.GetServerInfoRequest())
    noticed = "history_gap" in info.warnings and "history" in orchestrator.log.read_text()
    return [] if noticed else [f"round {number}: status shows {list(info.warnings)}"]


async def _submit_and_work(farm: ChaosFarm, client: AsyncFarm, job_id: str) -> None:
    """Counted from before it is submitted: where a commit takes long, all its tasks may have run before the acknowledgement comes."""
    begun = farm.begun()
    await farm.submit(client, job_id, TASKS, 0.02)
    await farm.progress(farm.dice.randint(1, TASKS // 3), since=begun)


async def _all_back(client: AsyncFarm) -> bool:
    answer = await client.connection.workers.ListWorkers(worker_pb2.ListWorkersRequest())
    ready = {worker.worker_id for worker in answer.workers if worker.state == worker_pb2.WORKER_STATE_READY}
    return ready >= set(WORKERS)


async def _command(*words: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "antfarm.cli", *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
