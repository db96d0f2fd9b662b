"""`make bench-start`: from starting a farm of one's own in a fresh directory to the first result of one task, beside a ProcessPoolExecutor.

`with af.connect() as farm` starts Storage, an orchestrator and a worker, each a process, and ends them; the pool spawns one process. Each round runs
the scripts of `bench/first` anew, one after the other, so that nothing is warm but the disk's cache.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.measure import machine, ratio, spread

SCRIPTS = Path(__file__).with_name("first")
PATIENCE_S = 120.0


@dataclass(slots=True)
class Figures:
    """Seconds of one script, a value a round."""

    first_s: list[float] = field(default_factory=list)
    """From starting the farm or pool to the result; imports were done before."""
    whole_s: list[float] = field(default_factory=list)
    """From starting the interpreter until the script and all that it started have ended."""


def main() -> int:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m bench.start", description="Measure starts on this machine.")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (%(default)s)")
    options = parser.parse_args()
    print(f"{machine()}\n", flush=True)
    farm, pool = Figures(), Figures()
    for _ in range(options.rounds):
        run("farm.py", farm)
        run("pool.py", pool)
    print("| seconds | AntFarm, durable: min / median / max | ProcessPoolExecutor, not durable | ratio of medians |")
    print("|---|---|---|---|")
    for name, ours, theirs in (
        ("from starting it to the first result", farm.first_s, pool.first_s),
        ("the whole script, start and end of all processes included", farm.whole_s, pool.whole_s),
    ):
        print(f"| {name} | {spread(ours, '{:.2f}')} | {spread(theirs, '{:.2f}')} | {ratio(ours, theirs):.1f} |")
    return 0


def run(script: str, figures: Figures) -> None:
    """One script in a fresh directory; ends in one line when it fails or its result is wrong."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANTFARM_")}
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        began = time.perf_counter()
        ran = subprocess.run(
            [sys.executable, str(SCRIPTS / script), directory],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        figures.whole_s.append(time.perf_counter() - began)
    if ran.returncode != 0:
        raise SystemExit(f"{script} has failed: {(ran.stderr.strip() or 'it said nothing').splitlines()[-1]}")
    result, first_s = ran.stdout.split()
    if result != "1":
        raise SystemExit(f"{script}: its result is wrong")
    figures.first_s.append(float(first_s))


if __name__ == "__main__":
    sys.exit(main())
