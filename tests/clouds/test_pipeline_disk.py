"""A run whose Storage has no room left: one reason, nothing half-written, and a later run completes it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from clouds_run import FIRST, arguments_for, assert_nothing_false, blobs, results, run, serving

from antfarm.local import LocalFarm
from antfarm.storage import Storage
from clouds import farm

pytestmark = pytest.mark.slow

DAYS = 6


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory for a farm whose Storage has a disk of its own, with room for a few days."""
    disk = tmp_path / "state" / "storage"
    disk.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k,mode=700", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield tmp_path / "state"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_fails_days_with_one_reason_and_a_later_run_completes(small_disk: Path, tmp_path: Path) -> None:
    with serving("--seed", "31") as server, LocalFarm(small_disk) as local:
        address = farm.start(
            local, workers=1, options=("--heartbeat-s", "0.5")
        )  # pauses between attempts grow from that
        ask = arguments_for(server, tmp_path, FIRST, DAYS, "--connect", address, seed=31)
        full = run(ask)
        with Storage(local.storage_address) as storage:
            stored = blobs(storage)
            assert_nothing_false(stored)
            assert full.code == 1
            assert 0 < full.statuses["used"] < DAYS
            assert full.statuses["used"] == len(results(stored))
            reasons = {row["reason"] for row in full.series.values() if row["status"] == "failed"}
            assert reasons == {"storage is full (No space left on device); nothing was kept, free some space there"}
            assert sum("failed: " in line for line in full.out) == 1

            subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk / "storage")], check=True)
            rest = run(ask)
            assert (rest.code, rest.statuses) == (0, {"used": DAYS})
            assert rest.err[0].startswith(f"{DAYS} days: {full.statuses['used']} analysed before, ")
            assert_nothing_false(blobs(storage))
