"""Real programs under fire, one series after the other, each with the line of the history checker.

python tests/process/chaos.py                    every series, in about five minutes
python tests/process/chaos.py --long             every series with its full count
python tests/process/chaos.py worker-kills --rounds 20
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
import time
import traceback
from contextlib import redirect_stdout
from pathlib import Path

import chaos_abuse as abuse
import chaos_backup as backup
import chaos_clients as clients
import chaos_disk as disk
import chaos_health as health
import chaos_herd as herd
import chaos_kills as kills
import chaos_silence as silence
import chaos_sweep as sweep
import chaos_tasks as tasks
import chaos_versions as versions
import chaos_watchers as watchers
from chaos_report import Report

SERIES = {
    "worker-kills": (kills.worker_kills, 6, 60, 1_000),
    "orchestrator-kills": (kills.orchestrator_kills, 3, 20, 1_000),
    "failpoints": (kills.failpoints, 1, 2, 50),
    "upstream-failpoints": (kills.upstream_failpoints, 1, 3, 50),
    "level-kills": (kills.level_kills, 4, 8, 500),
    "relay-kills": (kills.relay_kills, 4, 8, 500),
    "restored-backup": (backup.restored_backups, 2, 6, 200),
    "disk-errors": (disk.disk_errors, 4, 8, 100),
    "storage-kills": (disk.storage_kills, 4, 20, 500),
    "resubmit": (clients.resubmissions, 4, 20, 1_000),
    "cancel-races": (clients.cancel_races, 4, 20, 200),
    "flood": (clients.floods, 0, 1, 10),
    "slow-watchers": (watchers.slow_watchers, 0, 1, 20),
    "storage-disk-errors": (disk.storage_disk_errors, 1, 4, 100),
    "worker-disk-errors": (disk.worker_disk_errors, 0, 4, 50),
    "sweep": (sweep.sweep, 0, 2, 50),
    "herd": (herd.herd, 0, 2, 20),
    "poison": (health.poison, 1, 5, 50),
    "black-hole": (health.black_hole, 1, 3, 20),
    "task-failures": (tasks.task_failures, 0, 2, 20),
    "zombies": (silence.zombies, 2, 10, 500),
    "slow-node": (silence.slow_node, 1, 1, 20),
    "partitions-short": (silence.short_partitions, 2, 10, 200),
    "partitions-long": (silence.long_partitions, 2, 10, 200),
    "partitions-deaf": (silence.deaf_to_client, 0, 10, 200),
    "partitions-mute": (silence.deaf_to_server, 2, 10, 200),
    "flapping": (silence.flapping, 10, 50, 1_000),
    "half-open": (silence.half_open, 2, 10, 200),
    "paused-orchestrator": (silence.paused_orchestrator, 0, 1, 5),
    "paused-a-minute": (silence.paused_for_a_minute, 0, 0, 1),
    "clock-jumps": (silence.clock_jumps, 5, 10, 50),
    "detection": (silence.detection, 0, 0, 20),
    "loss": (silence.lossy_network, 0, 3, 30),
    "one-way": (silence.one_way_network, 1, 2, 50),
    "abuse": (abuse.abuse, 0, 5, 100),
    "versions": (versions.upgrades, 0, 1, 20),
}
"""Name: the series, its rounds in the test suite, by default, and with --long."""


def run(name: str, rounds: int, directory: Path) -> Report:
    """One series in an empty directory; what its programs said goes into `programs.log` there."""
    directory.mkdir()
    with (directory / "programs.log").open("w") as log, redirect_stdout(log):
        return asyncio.run(SERIES[name][0](directory, rounds))


def main() -> int:
    """Run what is asked for; exit code 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="SERIES", help=f"of {', '.join(SERIES)}")
    parser.add_argument("--long", action="store_true", help="the full counts")
    parser.add_argument("--rounds", type=int, help="another count")
    parser.add_argument(
        "--keep", action="store_true", help="keep logs and state of the programs also of a clean series"
    )
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in SERIES]
    if unknown:
        parser.error(f"there is no series {unknown[0]}; there are {', '.join(SERIES)}")
    logging.basicConfig(level=logging.ERROR)
    base = Path(tempfile.mkdtemp(prefix="antfarm-chaos-"))
    broken = 0
    for name in given.names or SERIES:
        _, _, usual, full = SERIES[name]
        rounds = given.rounds or (full if given.long else usual)
        if not rounds:
            continue  # takes too long for anything but --long
        began = time.monotonic()
        try:
            report = run(name, rounds, base / name)
        except Exception as error:
            broken += 1
            with (base / name / "programs.log").open("a") as log:
                traceback.print_exc(file=log)
            print(f"{name}: BROKEN: {error!r}; logs: {base / name}", flush=True)  # noqa: T201
            continue
        print(f"{name}: {report} [{time.monotonic() - began:.0f} s]", flush=True)  # noqa: T201
        if report.clean and not given.keep:
            remove(base / name)
        elif not report.clean:
            broken += 1
            print(f"  logs: {base / name}", flush=True)  # noqa: T201
    if not any(base.iterdir()):
        base.rmdir()
    return 1 if broken else 0


def remove(directory: Path) -> None:
    """Remove what a series left."""
    import shutil

    shutil.rmtree(directory)


if __name__ == "__main__":
    sys.exit(main())
