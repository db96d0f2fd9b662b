"""The series in which Storage is swept all the time, of outputs that are hardly a second old, while programs die."""

from __future__ import annotations

import asyncio
import hashlib
import re
from contextlib import suppress
from pathlib import Path

from chaos_farm import PATIENCE_S, ChaosFarm, at_work, chaos_farm, raise_failed
from chaos_report import Report
from farm_bench import CALM_S, connect, until
from sweep_app import make, use

from antfarm.errors import BlobNotFound
from antfarm.storage import AsyncStorage
from antfarm.v1 import common_pb2

ROOT = Path(__file__).resolve().parents[2]
APP = str(Path(__file__).parent / "sweep_app.py")
WORKERS = ("w1", "w2", "w3")
CLIENTS = 2
TASKS = 10
AGES = "--sweep-ended", "200ms", "--sweep-unknown", "2s"
HURRY = """
import sys
if "services.storage" in sys.orig_argv:
    from services.storage import sweeper
    sweeper.EVERY_S = sweeper.RETRY_S = 0.1
"""
"""For the Storage program: it sweeps once an hour otherwise."""


class _Jobs:
    """Clients that submit pairs of jobs, the second of which needs what the first has saved, and read what is recorded."""

    def __init__(self, farm: ChaosFarm) -> None:
        self._farm = farm
        self.ended = 0
        self.wrong: list[str] = []
        self.keys: dict[str, bytes] = {}
        """Outputs that recorded outcomes name, and their digests."""
        self.results: list[bytes] = []

    async def client(self, number: int, end: asyncio.Event) -> None:
        """One pair after the other."""
        async with await connect(self._farm.farm.address, PATIENCE_S) as client:
            turn = 0
            while not end.is_set():
                turn += 1
                name = f"{number}-{turn}"
                first = await client.map(make, range(TASKS), job_id=f"make-{name}", common={"name": name})
                await client.map(use, first, job_id=f"use-{name}", common={"name": name})
                for job_id in (f"make-{name}", f"use-{name}"):
                    outcomes = [o async for batch in client.connection.results(job_id) for o in batch]
                    self._judge(job_id, outcomes)
                self.ended += 1

    def _judge(self, job_id: str, outcomes: list[common_pb2.TaskResult]) -> None:
        if sorted(outcome.index for outcome in outcomes) != list(range(TASKS)):
            self.wrong.append(f"{job_id}: outcomes of {sorted(outcome.index for outcome in outcomes)}")
        for outcome in outcomes:
            task = f"{job_id}/{outcome.index}"
            if outcome.state != common_pb2.TASK_STATE_SUCCEEDED:
                self.wrong.append(f"{task}: {outcome.failure.kind} {outcome.failure.message}")
            elif job_id.startswith("use-") and outcome.result != b"true":
                self.wrong.append(f"{task}: what was saved for it is not what it found")
            self.results.append(outcome.result)
            self.keys.update({blob.key: blob.sha256 for blob in outcome.outputs})

    def names(self, key: str) -> bool:
        """Whether a recorded outcome names the blob."""
        return key in self.keys or any(key.encode() in result for result in self.results)


async def sweep(directory: Path, rounds: int) -> Report:
    """Workers and the orchestrator die in turn by SIGKILL. No blob that a record names may go; all others do in the end."""
    with chaos_farm(directory) as farm:
        await _start(farm)
        jobs = _Jobs(farm)
        async with at_work(jobs.client, CLIENTS) as clients:
            for number in range(rounds):
                await _ended(jobs, clients)
                victim = "orchestrator" if number % 2 else farm.dice.choice(WORKERS)
                await farm.kill(victim)
                await farm.restart(victim)
            await _ended(jobs, clients)
        async with AsyncStorage(farm.farm.storage_address) as storage:
            await until(lambda: _all_named(storage, jobs), "orphans go", PATIENCE_S)
            for key, sha256 in jobs.keys.items():
                try:
                    if hashlib.sha256(await storage.get(key)).digest() != sha256:
                        jobs.wrong.append(f"{key} has other content than was saved")
                except BlobNotFound:
                    jobs.wrong.append(f"{key} is recorded and was deleted")
        swept = sum(map(int, re.findall(r", (\d+) orphans deleted", farm.farm.program("storage").log.read_text())))
    if not swept:
        jobs.wrong.append("nothing was ever swept")
    return Report(
        done=f"{rounds} SIGKILLs of workers and of the orchestrator in turn while Storage was swept",
        figures=f"{jobs.ended * 2 * TASKS} tasks, {len(jobs.keys)} outputs recorded, {swept} orphans swept: {len(jobs.wrong)} wrong",
        complaints=jobs.wrong,
    )


async def _start(farm: ChaosFarm) -> None:
    """Storage sweeps for an orchestrator that is told of Storage: it is started first, and again when both have their ports."""
    local, place = farm.farm, farm.directory / "hurry"
    place.mkdir()
    (place / "sitecustomize.py").write_text(HURRY)
    await asyncio.to_thread(local.start_storage)
    address = await asyncio.to_thread(local.start_orchestrator, options=["--heartbeat-s", str(CALM_S)])
    storage = local.program("storage")
    storage.arguments = (*storage.arguments, "--sweep-for", address, *AGES)
    local.environment["PYTHONPATH"] = f"{place}:{ROOT}"
    await farm.restart("storage")
    del local.environment["PYTHONPATH"]
    for name in WORKERS:
        await asyncio.to_thread(local.start_worker, name, slots=2, app=[APP], options=["--no-installed-apps"])


async def _ended(jobs: _Jobs, clients: list[asyncio.Task[None]]) -> None:
    """Wait until one more pair of jobs has ended."""
    goal = jobs.ended + 1

    def there() -> bool:
        raise_failed(clients)
        return jobs.ended >= goal

    await until(there, "one more pair of jobs ends", PATIENCE_S)


async def _all_named(storage: AsyncStorage, jobs: _Jobs) -> bool:
    """Whether nothing lies in Storage that no recorded outcome names."""
    with suppress(BlobNotFound):  # swept while the list was made
        return all([jobs.names(blob.key) async for blob in storage.list("tasks/")])
    return False
