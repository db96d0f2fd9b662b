"""Series in which disks fail: errors and slowness under the journal, and a Storage that dies while it is written and read."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from chaos_farm import ChaosFarm, chaos_farm, dies, restart_armed
from chaos_report import Report
from farm_bench import CALM_S, until
from history import Fault

from antfarm.errors import BlobNotFound, Weather
from antfarm.storage import AsyncStorage

SHIM = Path(__file__).with_name("disk_faults.c")
FAULTS = {
    "a sync fails (EIO)": f"sync {errno.EIO} 0",
    "a write fails (EIO)": f"write {errno.EIO} 0",
    "the file system is read-only": f"write {errno.EROFS} 0",
    "syncs take 300 ms": "sync 0 300",
}
WRITERS = 4
SIZES = (0, 10, 5_000, 70_000, 1_500_000)
POINTS = ("storage.before_fsync", "storage.before_link", "storage.after_link", "storage.before_reply")


async def disk_errors(directory: Path, rounds: int) -> Report:
    """Under the orchestrator's journal each kind of trouble in turn. Errors end the process, which must say so; slowness must not."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return Report(done="", skipped="there is no C compiler for the library that makes calls fail")
    library, control = directory / "disk_faults.so", directory / "faults"
    words = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SHIM), "-ldl"]
    await asyncio.to_thread(subprocess.run, words, check=True)
    complaints: list[str] = []
    with chaos_farm(directory) as farm:
        with _preloaded(farm, library, control):
            await asyncio.to_thread(farm.farm.start_orchestrator, options=["--heartbeat-s", str(CALM_S)])
        await farm.start_workers(["w1", "w2", "w3"])
        log = farm.farm.program("orchestrator").log
        async with farm.load():
            for number in range(rounds):
                name, fault = list(FAULTS.items())[number % len(FAULTS)]
                await farm.progress(farm.dice.randint(1, 8))
                said = log.stat().st_size
                control.write_text(fault)
                if fault.startswith("sync 0"):
                    await farm.progress(20)
                    control.unlink()
                    continue
                await dies(farm, "orchestrator")
                farm.history.faults.append(Fault("orchestrator", 0.0))
                control.unlink()
                last = log.read_text()[said:]
                if "cannot be written" not in last or "Traceback" in last:
                    complaints.append(f"round {number}: {name}: {last[-300:]!r}")
                with _preloaded(farm, library, control):
                    await farm.restart("orchestrator")
        report = Report.untouched(f"{rounds} times in turn: {', '.join(FAULTS)}", farm.verdict(), farm.losses())
    report.complaints += complaints
    return report


@contextmanager
def _preloaded(farm: ChaosFarm, library: Path, control: Path) -> Iterator[None]:
    """What is started inside has the library, and obeys the control file in what it does to the journal."""
    more = {"LD_PRELOAD": str(library), "DISK_FAULTS": str(control), "DISK_FAULTS_MATCH": "journal.sqlite"}
    farm.farm.environment.update(more)
    try:
        yield
    finally:
        for name in more:
            del farm.farm.environment[name]


class Blobs:
    """Clients of Storage that write, read back at random, and remember what was acknowledged."""

    def __init__(self, farm: ChaosFarm, address: str, sizes: Sequence[int], pause_s: float) -> None:
        self._farm = farm
        self._storage = AsyncStorage(address)
        self._sizes, self._pause_s = sizes, pause_s
        self.begun: dict[str, bytes] = {}
        self.acknowledged: list[str] = []
        self.wrong: list[str] = []
        self.reads = 0
        self._extra = 0

    @property
    def figures(self) -> str:
        """For the report, when all was read again."""
        return f"{len(self.acknowledged)} blobs acknowledged, {self.reads} reads, {self._extra} whole ones beside them: {len(self.wrong)} lost or wrong"

    async def client(self, number: int, end: asyncio.Event) -> None:
        """Write one blob after the other, each until it is acknowledged."""
        dice, turn = self._farm.dice, 0
        while not end.is_set():
            turn += 1
            key = f"chaos/{number}/{turn}"
            content = self.begun[key] = dice.randbytes(dice.choice(self._sizes))
            while True:
                try:
                    await self._storage.put(key, content)
                    break
                except Weather:
                    await asyncio.sleep(0.05)
            self.acknowledged.append(key)
            await self.look(dice.choice(self.acknowledged), patient=False)
            await asyncio.sleep(self._pause_s)

    async def look(self, key: str, *, patient: bool) -> None:
        """Read a blob that was acknowledged; what is not its content is noted."""
        try:
            content = await self._storage.get(key)
        except Weather:
            if patient:
                raise
            return
        except BlobNotFound:
            self.wrong.append(f"{key} was acknowledged and is not there")
            return
        self.reads += 1
        if content != self.begun[key]:
            self.wrong.append(f"{key} has other content than was written")

    async def all_again(self) -> None:
        """Read everything, and blobs that are there and were never acknowledged, which must be whole as well."""
        for key in self.acknowledged:
            await self.look(key, patient=True)
        known = set(self.acknowledged)
        async for blob in self._storage.list("chaos/"):
            await self._storage.verify(blob.key)
            if hashlib.sha256(self.begun[blob.key]).digest() != blob.sha256:
                self.wrong.append(f"{blob.key} is not what was being written")
            self._extra += blob.key not in known
        await self._storage.aclose()


@asynccontextmanager
async def blobs_under_load(
    farm: ChaosFarm, address: str, *, sizes: Sequence[int] = SIZES, pause_s: float = 0.0
) -> AsyncIterator[Blobs]:
    """Clients that write and read meanwhile, with a pause after each blob; in the end everything is read again."""
    blobs, end = Blobs(farm, address, sizes, pause_s), asyncio.Event()
    clients = [asyncio.create_task(blobs.client(number, end)) for number in range(WRITERS)]
    try:
        yield blobs
        end.set()
        await asyncio.gather(*clients)
        await blobs.all_again()
    finally:
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)


async def storage_kills(directory: Path, rounds: int) -> Report:
    """Storage dies while blobs of up to 1.5 MB are written and read, and starts again: by SIGKILL at any moment and, every second time, at a failpoint."""
    with chaos_farm(directory) as farm:
        address = await asyncio.to_thread(farm.farm.start_storage)
        async with blobs_under_load(farm, address) as blobs:
            for number in range(rounds):
                goal = len(blobs.begun) + farm.dice.randint(1, 12)
                await until(lambda goal=goal: len(blobs.begun) >= goal, "more blobs are written")
                await asyncio.sleep(farm.dice.uniform(0, 0.01))  # so that it dies in every part of a write
                await farm.kill("storage")
                if number % 2:
                    await restart_armed(
                        farm, "storage", f"{POINTS[number // 2 % len(POINTS)]}=kill@{farm.dice.randint(1, 8)}"
                    )
                    await dies(farm, "storage")
                await farm.restart("storage")
    return Report(
        done=f"{rounds} SIGKILLs of Storage, {rounds // 2} more at its {len(POINTS)} failpoints",
        figures=blobs.figures,
        complaints=blobs.wrong,
    )
