"""Two thousand simulated farms, the seeds that once found something, and that a seed is a seed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.mutants import MUTANTS
from tests.simulation.runs import run_chunk, run_many

SEEDS = int(os.environ.get("ANTFARM_SEEDS", "2000"))
FOUND = [
    int(line.split()[0])
    for line in (Path(__file__).parent / "seeds.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


@pytest.mark.timeout(600)
def test_many_seeds_keep_every_promise_and_reach_every_rare_branch() -> None:
    """Every invariant holds under faults, everything ends once they stop, and nothing that should happen now and then never does."""
    total = run_many(1, SEEDS, os.cpu_count() or 1)
    assert total.failed == []
    assert SEEDS < 1_000 or total.missed == []


def test_seeds_that_found_something_pass() -> None:
    """What was found stays mended."""
    assert run_chunk(FOUND).failed == []


@pytest.mark.parametrize("seed", [2, 3])
def test_a_seed_gives_the_same_bytes_in_every_process(seed: int) -> None:
    """Whatever the order of sets: the checksum over all that happened is the same."""
    marks = {
        subprocess.run(
            [sys.executable, "-m", "tests.simulation", str(seed), "--quiet"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2", "3")
    }
    assert len(marks) == 1


def test_a_deliberate_bug_is_caught() -> None:
    """The shortest hunt of `make mutants`, so that the way mutants are made does not rot; every mutant's text is still there."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation.mutants", "a token is used again", "--seeds", "20"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "1 of 1 caught", done.stdout + done.stderr
    for mutant in MUTANTS:
        path = Path(__file__).parents[2] / (mutant.module.replace(".", "/") + ".py")
        assert path.read_text().count(mutant.old) == 1, mutant.name
