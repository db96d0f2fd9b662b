"""The series in which a farm is upgraded under load, one program after the other, and goes back."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from chaos_disk import SIZES, Blobs, blobs_under_load
from chaos_farm import ChaosFarm, chaos_farm
from chaos_report import Report
from farm_bench import CALM_S, until

REVISION = "0d13329"
"""The older version. No kind of record that a farm of one level writes has come to the journal since, so going back is promised (docs/operations.md)."""
ROOT = Path(__file__).parents[2]
WORKERS = ("w1", "w2", "w3")
PROGRAMS = ("storage", "orchestrator", *WORKERS)


async def upgrades(directory: Path, rounds: int) -> Report:
    """All programs are old; each in turn is stopped by SIGTERM and started as the present version on its state, in the end all back again.

    A program that is stopped so finishes or hands back what it has, and an orchestrator that comes back leaves alone what workers hold: nothing may
    be executed twice. The order differs from round to round, so that every program meets every other in both versions.
    """
    old = directory / "old"
    missing = _unpack(old)
    if missing:
        return Report(done="", skipped=missing)
    complaints: list[str] = []
    with chaos_farm(directory) as farm:
        _let_start(farm, old)
        address = await asyncio.to_thread(farm.farm.start_storage)
        await farm.start(CALM_S, workers=len(WORKERS))
        async with blobs_under_load(farm, address, sizes=SIZES[:-1], pause_s=0.2) as blobs, farm.load():
            for _ in range(rounds):
                complaints += await _replace(farm, blobs, ROOT)
                complaints += await _replace(farm, blobs, old)
        report = Report.untouched(
            f"{rounds} upgrades of {len(PROGRAMS)} programs from {REVISION}, one by one, and as many ways back",
            farm.verdict(),
            farm.losses(),
        )
    report.figures += f"; {blobs.figures}"
    report.complaints += complaints + blobs.wrong
    return report


def _unpack(old: Path) -> str:
    """The older version in a directory of its own; why that is impossible, "" when it is done."""
    old.mkdir()
    words = ["git", "-C", str(ROOT), "archive", REVISION, "antfarm", "services"]
    try:
        archive = subprocess.run(words, capture_output=True)
    except FileNotFoundError:
        return "there is no git on this machine"
    if archive.returncode != 0:
        return f"there is no revision {REVISION} in this copy: {archive.stderr.decode().strip()}"
    subprocess.run(["tar", "-x", "-C", str(old)], input=archive.stdout, check=True)
    return ""


def _let_start(farm: ChaosFarm, root: Path) -> None:
    """What is started from now on is of the version there."""
    farm.farm.environment["PYTHONPATH"] = str(root)


async def _replace(farm: ChaosFarm, blobs: Blobs, root: Path) -> list[str]:
    """Each program, in any order, by itself in the version there, on its state; after each one the farm has to get on. What went wrong."""
    _let_start(farm, root)
    complaints = []
    for name in farm.dice.sample(PROGRAMS, len(PROGRAMS)):
        await farm.progress(farm.dice.randint(1, 12))
        code = await asyncio.to_thread(farm.farm.terminate, name)
        if code != 0:
            complaints.append(f"{name} ended with exit code {code} when it was asked to")
        await farm.restart(name)
        goal = len(blobs.acknowledged) + 1
        await farm.progress(20)
        await until(lambda goal=goal: len(blobs.acknowledged) >= goal, "another blob is written")
    complaints += await asyncio.to_thread(_not_from, farm, root)
    return complaints


def _not_from(farm: ChaosFarm, root: Path) -> list[str]:
    """Programs that are not of the version there: the series would prove nothing."""
    found = []
    for name in PROGRAMS:
        program = farm.farm.program(name)
        entries = Path(f"/proc/{program.pid}/environ").read_bytes().split(b"\0")
        variables = dict(entry.decode().split("=", 1) for entry in entries if b"=" in entry)
        words = [
            sys.executable,
            "-P",
            "-c",
            f"import antfarm, {program.arguments[2]} as it; print(antfarm.__file__, it.__file__)",
        ]
        said = subprocess.run(words, env=variables, capture_output=True, text=True, check=True).stdout.split()
        if not all(Path(file).is_relative_to(root) for file in said):
            found.append(f"{name} is made of {' and '.join(said)}, which are not below {root}")
    return found
