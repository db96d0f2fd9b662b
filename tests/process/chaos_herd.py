"""The series in which a thousand workers come back at once."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from chaos_farm import PATIENCE_S, ChaosFarm, chaos_farm
from chaos_report import Report
from chaos_silence import DEFAULT_H_S
from farm_bench import until

PROCESSES, PER_PROCESS = 4, 250
HERD = PROCESSES * PER_PROCESS
ATTACH_MAX_S = 6.0
PROGRAM = Path(__file__).with_name("herd_workers.py")


async def herd(directory: Path, rounds: int) -> Report:
    """The orchestrator dies by SIGKILL and starts again; a thousand idle workers dial it at once, beside two that work."""
    slowest: list[float] = []
    with chaos_farm(directory) as farm:
        await farm.start(DEFAULT_H_S, workers=2)
        notes = directory / "herd"
        async with _herd(farm, notes):
            await _all_attached(notes)
            async with farm.load(clients=1, tasks=20, seconds=0.2):
                for _ in range(rounds):
                    await farm.progress(farm.dice.randint(1, 8))
                    await farm.kill("orchestrator")
                    before = notes.stat().st_size
                    await farm.restart("orchestrator")
                    began = time.time()
                    slowest.append(await _all_attached(notes, before) - began)
                    await asyncio.sleep(2 * DEFAULT_H_S)  # calm: all of them have beaten before the next time
            verdict, losses = farm.verdict(), farm.losses()
    done = f"{rounds} restarts under {HERD} workers at the default settings"
    report = Report.untouched(done, verdict, losses)
    report.figures += (
        f", all attached {min(slowest):.2f} to {max(slowest):.2f} s after the new process was ready"
        f" (at most {ATTACH_MAX_S:g} s)"
    )
    if max(slowest) > ATTACH_MAX_S:
        report.complaints.append(f"the last one was attached after {max(slowest):.2f} s")
    return report


@asynccontextmanager
async def _herd(farm: ChaosFarm, notes: Path) -> AsyncIterator[None]:
    """The workers, in a few processes, which must still live in the end."""
    processes = []
    with (farm.directory / "herd.log").open("w") as log:
        for n in range(PROCESSES):
            names = [f"h{number}" for number in range(n * PER_PROCESS, (n + 1) * PER_PROCESS)]
            words = [sys.executable, str(PROGRAM), farm.farm.address, str(notes), *names]
            processes.append(await asyncio.create_subprocess_exec(*words, stdout=log, stderr=log))
    try:
        yield
        assert [process.returncode for process in processes] == [None] * PROCESSES, "a part of the herd has died"
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _all_attached(notes: Path, offset: int = 0) -> float:
    """Wait until each worker was attached after the notes were so long; when the last of them was, for the first time."""
    first: dict[str, float] = {}

    def there() -> bool:
        whole, _, _ = notes.read_text()[offset:].rpartition("\n") if notes.exists() else ("", "", "")
        for line in whole.splitlines():  # without the last line while it is being written
            name, at = line.split()
            first.setdefault(name, float(at))
        return len(first) == HERD

    await until(there, f"{HERD} workers are attached", PATIENCE_S)
    return max(first.values())
