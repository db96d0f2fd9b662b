"""Series in which disks fail: errors under the journal, Storage and workers, and a Storage that dies while it is written and read."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from chaos_farm import PATIENCE_S, ChaosFarm, at_work, chaos_farm, dies, restart_armed
from chaos_report import Report
from farm_bench import CALM_S, until
from history import Fault

from antfarm.errors import AntFarmError, BlobNotFound, DataLoss, Weather
from antfarm.storage import AsyncStorage

SHIM = Path(__file__).with_name("disk_faults.c")
FAULTS = {
    "a sync fails (EIO)": f"sync {errno.EIO} 0",
    "a write fails (EIO)": f"write {errno.EIO} 0",
    "the file system is read-only": f"write {errno.EROFS} 0",
    "syncs take 300 ms": "sync 0 300",
}
NO_COMPILER = Report(done="", skipped="there is no C compiler for the library that makes calls fail")
STORAGE_CALLS = {
    "write": "the disk of storage failed",
    "sync": "the disk of storage failed",
    "rename": "the disk of storage failed",
    "read": "the disk cannot read it",
}
"""Calls of Storage, and what clients are told when they fail."""
WORKER_FAULTS = {
    "a write fails once (EIO)": ("write", errno.EIO, True),
    "the disk is full": ("write", errno.ENOSPC, False),
    "the file cannot be emptied (EIO)": ("truncate", errno.EIO, False),
    "every write fails (EIO)": ("write", errno.EIO, False),
}
OUTBOX_WORDS = {"write": "reports are kept in memory only", "truncate": "it cannot be shortened"}
UNSYNCED = "a directory could not be synced"
SMALL = 0, 10, 5_000, 70_000, 600_000
WRITERS = 4
SIZES = (0, 10, 5_000, 70_000, 1_500_000)
POINTS = ("storage.before_fsync", "storage.before_link", "storage.after_link", "storage.before_reply")


async def disk_errors(directory: Path, rounds: int) -> Report:
    """Under the orchestrator's journal each kind of trouble in turn. Errors end the process, which must say so; slowness must not."""
    disk = await _Disk.made(directory, "journal.sqlite")
    if disk is None:
        return NO_COMPILER
    complaints: list[str] = []
    with chaos_farm(directory) as farm:
        with disk.under(farm):
            await asyncio.to_thread(farm.farm.start_orchestrator, options=["--heartbeat-s", str(CALM_S)])
        await farm.start_workers(["w1", "w2", "w3"])
        log = farm.farm.program("orchestrator").log
        async with farm.load():
            for number in range(rounds):
                name, fault = list(FAULTS.items())[number % len(FAULTS)]
                await farm.progress(farm.dice.randint(1, 8))
                said = log.stat().st_size
                disk.say(fault)
                if fault.startswith("sync 0"):
                    await farm.progress(20)
                    disk.heals()
                    continue
                await dies(farm, "orchestrator")
                farm.history.faults.append(Fault("orchestrator", 0.0))
                disk.heals()
                last = log.read_text()[said:]
                if "cannot be written" not in last or "Traceback" in last:
                    complaints.append(f"round {number}: {name}: {last[-300:]!r}")
                with disk.under(farm):
                    await farm.restart("orchestrator")
        report = Report.untouched(f"{rounds} times in turn: {', '.join(FAULTS)}", farm.verdict(), farm.losses())
    report.complaints += complaints
    return report


class _Disk:
    """Makes calls of programs fail that are started `under` it: those to files whose names have `match` in them."""

    def __init__(self, library: Path, match: str) -> None:
        self._control = library.with_suffix(".faults")
        self._library = library
        self._match = match
        self._hits = self._control.with_name(self._control.name + ".hit")
        self._order = 0

    @classmethod
    async def made(cls, directory: Path, match: str) -> _Disk | None:
        """Compile the library; None where there is no compiler."""
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            return None
        library = directory / "disk_faults.so"
        words = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SHIM), "-ldl"]
        await asyncio.to_thread(subprocess.run, words, check=True)
        return cls(library, match)

    @contextmanager
    def under(self, farm: ChaosFarm) -> Iterator[None]:
        """Programs that are started inside have the library."""
        more = {"LD_PRELOAD": str(self._library), "DISK_FAULTS": str(self._control), "DISK_FAULTS_MATCH": self._match}
        farm.farm.environment.update(more)
        try:
            yield
        finally:
            for name in more:
                del farm.farm.environment[name]

    def fails(self, call: str, error: int) -> None:
        """Every such call, until `heals`."""
        self.say(f"{call} {error} 0")

    async def fails_once(self, call: str, error: int, nth: int) -> None:
        """The n-th such call from now on, and that one alone; returns when it has failed."""
        self._order += 1
        self.say(f"{call} {error} 0 {nth} {self._order}")
        line = str(self._order)
        await until(lambda: line in self._hit(), f"{call} number {nth} is made", PATIENCE_S)
        self.heals()

    def heals(self) -> None:
        """All is well from now on."""
        self._control.unlink()

    def _hit(self) -> list[str]:
        return self._hits.read_text().split() if self._hits.exists() else []

    def say(self, order: str) -> None:
        """An order as the library reads it, until `heals`."""
        aside = self._control.with_suffix(".next")
        aside.write_text(order)
        aside.replace(self._control)


class Blobs:
    """Clients of Storage that write, read back at random, and remember what was acknowledged."""

    def __init__(
        self,
        farm: ChaosFarm,
        address: str,
        sizes: Sequence[int],
        pause_s: float,
        excused: tuple[type[AntFarmError], ...],
    ) -> None:
        self._farm = farm
        self._sizes, self._pause_s = sizes, pause_s
        self._excused = excused
        self.told: list[AntFarmError] = []
        self._storage = AsyncStorage(address)
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
                except self._excused as error:
                    self.told.append(error)
                    await asyncio.sleep(0.05)
            self.acknowledged.append(key)
            await self.look(dice.choice(self.acknowledged), patient=False)
            await asyncio.sleep(self._pause_s)

    async def look(self, key: str, *, patient: bool) -> None:
        """Read a blob that was acknowledged; what is not its content is noted."""
        try:
            content = await self._storage.get(key)
        except self._excused as error:
            if patient:
                raise
            self.told.append(error)
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
    farm: ChaosFarm,
    address: str,
    *,
    sizes: Sequence[int] = SIZES,
    pause_s: float = 0.0,
    excused: tuple[type[AntFarmError], ...] = (Weather,),
) -> AsyncIterator[Blobs]:
    """Clients that write and read meanwhile, with a pause after each blob; in the end everything is read again.

    excused: errors that they may be told while the disk fails.
    """
    blobs = Blobs(farm, address, sizes, pause_s, excused)
    async with at_work(blobs.client, WRITERS):
        yield blobs
    await blobs.all_again()


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


async def storage_disk_errors(directory: Path, rounds: int) -> Report:
    """Under Storage the n-th write, sync, link or read fails, every second time all of them until clients were told. It starts again between."""
    disk = await _Disk.made(directory, "/farm/storage/")
    if disk is None:
        return NO_COMPILER
    complaints: list[str] = []
    with chaos_farm(directory) as farm:
        with disk.under(farm):
            address = await asyncio.to_thread(farm.farm.start_storage)
        async with blobs_under_load(farm, address, sizes=SMALL, excused=(Weather, DataLoss)) as blobs:
            for number in range(rounds):
                await _written(blobs)
                call = list(STORAGE_CALLS)[number % len(STORAGE_CALLS)]
                found = await _storage_trouble(farm, disk, blobs, call, once=number // 4 % 2 == 0)
                complaints += [f"round {number}: {complaint}" for complaint in found]
                with disk.under(farm):
                    if number % 3:
                        await farm.kill("storage")
                    await farm.restart("storage")
        figures = f"{blobs.figures}, {len(blobs.told)} errors told"
    done = f"{rounds} times EIO under Storage, in turn: {', '.join(STORAGE_CALLS)}"
    return Report(done=done, figures=figures, complaints=complaints + blobs.wrong)


async def _written(blobs: Blobs, more: int = 4) -> None:
    """Wait until so many more writes are acknowledged."""
    goal = len(blobs.acknowledged) + more
    await until(lambda: len(blobs.acknowledged) >= goal, f"{more} more blobs are written", PATIENCE_S)


async def _storage_trouble(farm: ChaosFarm, disk: _Disk, blobs: Blobs, call: str, *, once: bool) -> list[str]:
    """One fault. What was wrong with how it was told and with what came after."""
    log, told = farm.farm.program("storage").log, len(blobs.told)
    said = log.stat().st_size
    if once:
        await disk.fails_once(call, errno.EIO, farm.dice.randint(1, 12))
        await until(lambda: "the disk failed" in log.read_text()[said:], f"a failed {call} is logged", PATIENCE_S)
    else:
        disk.fails(call, errno.EIO)
        words = STORAGE_CALLS[call]
        await until(lambda: any(words in str(e) for e in blobs.told[told:]), f"{call}: a client is told", PATIENCE_S)
        disk.heals()
    if call != "sync":  # after that of a directory it writes no more, until it starts again
        await _written(blobs)
    lines = log.read_text()[said:].splitlines()
    complaints = [f"{call}: logged {line!r}" for line in lines if "the disk failed: [Errno 5]" not in line]
    if not lines or (once and len(lines) != 1):
        complaints.append(f"{call}: {len(lines)} lines in the log")
    known = (*STORAGE_CALLS.values(), UNSYNCED, "cannot be reached", "went away")
    odd = [error for error in blobs.told[told:] if not any(words in str(error) for words in known)]
    return complaints + [f"{call}: a client was told {error!r}" for error in odd]


async def worker_disk_errors(directory: Path, rounds: int) -> Report:
    """Under a worker's outbox each kind of trouble in turn. It works on, and says so in one line; every second time it is killed meanwhile."""
    disk = await _Disk.made(directory, "/outbox")
    if disk is None:
        return NO_COMPILER
    complaints: list[str] = []
    with chaos_farm(directory) as farm:
        await asyncio.to_thread(farm.farm.start_orchestrator, options=["--heartbeat-s", str(CALM_S)])
        with disk.under(farm):
            await farm.start_workers(["w1"])
        await farm.start_workers(["w2"])
        async with farm.load():
            for number in range(rounds):
                name, (call, error, once) = list(WORKER_FAULTS.items())[number % len(WORKER_FAULTS)]
                await farm.progress(farm.dice.randint(1, 8))
                found = await _outbox_trouble(farm, disk, call, error, once=once, kill=number // 4 % 2 == 1)
                complaints += [f"round {number}: {name}: {complaint}" for complaint in found]
        report = Report.untouched(f"{rounds} times in turn: {', '.join(WORKER_FAULTS)}", farm.verdict(), [])
    report.figures = ""
    report.complaints += complaints
    return report


async def _outbox_trouble(farm: ChaosFarm, disk: _Disk, call: str, error: int, *, once: bool, kill: bool) -> list[str]:
    """One fault under the outbox of w1. What was wrong with how it was told."""
    worker = farm.farm.program("w1")
    said, agent = worker.log.stat().st_size, worker.pid
    if once:
        await disk.fails_once(call, error, farm.dice.randint(1, 4))
    else:
        disk.fails(call, error)
    words = OUTBOX_WORDS[call]
    await until(lambda: words in worker.log.read_text()[said:], f"a failed {call} is told", PATIENCE_S)
    await farm.progress(20)
    if kill:
        await farm.kill("w1")
    if not once:
        disk.heals()
    lines = worker.log.read_text()[said:].splitlines()
    if kill:
        with disk.under(farm):
            await farm.restart("w1")
    elif worker.pid != agent:
        return ["the worker has died"]
    await farm.progress()
    return [] if len(lines) == 1 and words in lines[0] else [f"logged {lines}"]
