"""A run of all contenders as a file in `bench/history`: what was measured, on what, at which revision."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

HISTORY = Path(__file__).parents[1] / "history"
OURS = "AntFarm"
MORE_IS_BETTER = ("tasks/s",)


@dataclass(slots=True)
class Record:
    """One run."""

    revision: str
    date: str
    machine: str
    rounds: int
    noise_ms: list[float] = field(default_factory=list)
    """A fixed loop before each measurement."""
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Contender -> measure -> one value a round."""
    durable: dict[str, str] = field(default_factory=dict)
    trouble: dict[str, list[str]] = field(default_factory=dict)

    def median(self, contender: str, measure: str) -> float | None:
        """Of the rounds; None where nothing was measured."""
        found = self.values.get(contender, {}).get(measure)
        return statistics.median(found) if found else None

    def ratio(self, contender: str, measure: str) -> float | None:
        """How many times AntFarm is better there."""
        ours, theirs = self.median(OURS, measure), self.median(contender, measure)
        if not ours or not theirs:
            return None
        return ours / theirs if measure.startswith(MORE_IS_BETTER) else theirs / ours

    def save(self) -> Path:
        """Write it to the history."""
        HISTORY.mkdir(exist_ok=True)
        path = HISTORY / f"{self.date.replace(':', '').replace(' ', '-')}-{self.revision}.json"
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return path


def begin(rounds: int) -> Record:
    """A run that begins now, of the checked out revision."""
    return Record(_revision(), time.strftime("%Y-%m-%d %H:%M"), _machine(), rounds)


def load(path: Path) -> Record:
    """Read one of the history."""
    return Record(**json.loads(path.read_text()))


def history() -> list[Path]:
    """All runs that are kept, the oldest first. Their names begin with the date; others in the directory are not of this kind."""
    return sorted(HISTORY.glob("[0-9]*.json"))


def _revision() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HISTORY.parent)
    return done.stdout.strip() or "unknown"


def _machine() -> str:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB, CPython {platform.python_version()}"
