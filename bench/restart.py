"""`make bench-restart`: how long the farm stands still when its orchestrator is killed with a million tasks queued, and when one job of a million goes.

Real programs: an orchestrator, two workers, a client. SIGKILL, start again, and the clock runs from the start of the new process until it serves, and
until a worker begins a task that was assigned in the new epoch; the worker's own pause before it dials again is part of that.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import antfarm as af
from antfarm.client.blocking import Farm
from antfarm.local import LocalFarm
from bench.tasks import noop

PATIENCE_S = 120.0


def main() -> int:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m bench.restart", description="Measure restarts on this machine.")
    parser.add_argument("--tasks", type=int, default=1_000_000, help="queued tasks (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="restarts of each kind (%(default)s)")
    options = parser.parse_args()
    print("| with | serves after s | first assignment begun after s | journal MiB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory, LocalFarm() as local:
        notes = Path(directory) / "notes"
        local.start_orchestrator()
        for _ in range(2):
            local.start_worker(slots=1, app=["bench.tasks"])
        with af.connect(local.address) as farm:
            farm.map("bench.note", range(options.tasks), common={"path": str(notes)}, name="queued")
            _restarts(local, notes, f"{options.tasks:,} queued", options.rounds)
            job = farm.map(noop, range(options.tasks), name="results", priority=10)
            job.wait()
            _restarts(local, notes, f"the same and {options.tasks:,} results", options.rounds)
            seconds, stall = _purge(farm, job.job_id)
    print(f"\nPurge of {options.tasks:,} results: {seconds:.3f} s; the slowest submission meanwhile {stall:.3f} s")
    return 0


def _restarts(local: LocalFarm, notes: Path, name: str, rounds: int) -> None:
    for _ in range(rounds):
        _wait(lambda: bool(_epochs(notes)))
        local.kill("orchestrator")
        time.sleep(0.5)  # what the workers hold goes on
        before = max(_epochs(notes))
        began = time.time()
        local.restart("orchestrator")
        serves = time.time() - began
        _wait(lambda before=before: max(_epochs(notes)) > before)  # type: ignore[misc]
        epochs = _epochs(notes)
        first = epochs[max(epochs)] - began
        size = sum(path.stat().st_size for path in (local.state_dir / "orchestrator").glob("journal.sqlite*"))
        print(f"| {name} | {serves:.2f} | {first:.2f} | {size / 2**20:.0f} |", flush=True)


def _epochs(notes: Path) -> dict[int, float]:
    """When the first task of each epoch began."""
    found: dict[int, float] = {}
    for line in notes.read_text().splitlines() if notes.exists() else ():
        epoch, at = line.split()
        found.setdefault(int(epoch), float(at))
    return found


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("the farm does not go on")
        time.sleep(0.02)


def _purge(farm: Farm, job_id: str) -> tuple[float, float]:
    """How long a purge takes, and the longest that one task's submission waited for its acknowledgement meanwhile."""
    over = threading.Event()
    slowest = 0.0

    def submit() -> None:
        nonlocal slowest
        while not over.is_set():
            began = time.perf_counter()
            farm.submit("bench.nobody", 1)
            farm.flush()
            slowest = max(slowest, time.perf_counter() - began)

    submitting = threading.Thread(target=submit)
    submitting.start()
    time.sleep(1.0)
    slowest = 0.0
    began = time.perf_counter()
    farm.job(job_id).purge()
    took = time.perf_counter() - began
    over.set()
    submitting.join()
    return took, slowest


if __name__ == "__main__":
    sys.exit(main())
