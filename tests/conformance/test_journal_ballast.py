"""Ballast and broken disks: a full disk still has room for outcomes, and what failed to sync is never synced again."""

from __future__ import annotations

import errno
import resource
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import NoReturn

import pytest
from journal_records import rows

from antfarm.errors import InvalidArgument
from services.orchestrator.journal import ballast as ballast_module
from services.orchestrator.journal.ballast import Ballast, reserve_bytes
from services.orchestrator.journal.base import JournalBroken, JournalFull
from services.orchestrator.journal.sqlite import SqliteJournal

MIB = 1 << 20
Usage = namedtuple("Usage", "total used free")


class Disk:
    """What the file system says of its room."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, total: int, free: int) -> None:
        self.total, self.free = total, free
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(self.total, self.total - self.free, self.free))
        assert ballast_module.shutil is shutil


def test_new_tasks_are_refused_under_a_gibibyte_or_a_twentieth() -> None:
    assert reserve_bytes(1 << 40) == 1 << 30
    assert reserve_bytes(100 * MIB) == 5 * MIB


def test_ballast_is_made_where_it_fits_above_the_reserve_and_never_takes_much_of_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ballast"
    disk = Disk(monkeypatch, total=1 << 40, free=(1 << 30) + 3 * MIB)
    ballast = Ballast(path, 4 * MIB)
    ballast.keep()
    assert not ballast.there
    assert not path.exists()
    disk.free += MIB
    ballast.keep()
    assert ballast.there
    assert path.stat().st_blocks * 512 >= 4 * MIB, "room is taken, not only promised"
    disk.total = disk.free = 100 * MIB
    small = Ballast(tmp_path / "small", 4 * MIB)
    small.keep()
    assert (tmp_path / "small").stat().st_size == 2 * MIB
    none = Ballast(tmp_path / "none", 0)
    none.keep()
    assert not none.give_up()


def test_ballast_is_given_up_once_and_made_again_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ballast"
    disk = Disk(monkeypatch, total=1 << 40, free=1 << 39)
    Ballast(path, MIB).keep()
    ballast = Ballast(path, MIB)
    assert ballast.there, "what an earlier process made is ours"
    disk.free = 0
    assert ballast.give_up()
    assert not path.exists()
    assert not ballast.give_up()
    ballast.keep()
    assert not path.exists()
    disk.free = 1 << 39
    ballast.keep()
    assert path.exists()


@pytest.mark.parametrize("made", [0, MIB - 1])
def test_ballast_that_was_cut_short_by_a_kill_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: int
) -> None:
    path = tmp_path / "ballast"
    path.write_bytes(bytes(made))
    disk = Disk(monkeypatch, total=1 << 40, free=0)
    ballast = Ballast(path, MIB)
    assert (ballast.there, path.exists()) == (False, False)
    disk.free = 1 << 39
    ballast.keep()
    assert (ballast.there, path.stat().st_size) == (True, MIB)
    path.write_bytes(bytes(2 * MIB))  # made when more was asked for
    assert Ballast(path, MIB).there
    assert Ballast(path, 0).give_up()


def test_a_disk_that_cannot_be_looked_at_stops_the_journal_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> NoReturn:
        raise OSError(errno.EIO, "Input/output error")

    journal = SqliteJournal(tmp_path, ballast_bytes=MIB)
    journal.append(rows(1, 2))
    assert journal._ballast.give_up()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", fail)
        with pytest.raises(JournalBroken) as caught:
            journal.append(rows(2, 3))
    told = f"journal {tmp_path / 'journal.sqlite'}"
    trouble = "[Errno 5] Input/output error; look at its disk, then start again"
    assert str(caught.value) == f"{told} cannot be written: {trouble}"
    journal._broken = False
    journal.close()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", fail)
        with pytest.raises(InvalidArgument) as refused:
            SqliteJournal(tmp_path, ballast_bytes=MIB)
    assert str(refused.value) == f"{told}: {trouble}"
    journal = SqliteJournal(tmp_path, ballast_bytes=MIB)
    assert list(journal.replay()) == rows(1, 3)
    journal.close()


def test_a_full_disk_has_room_for_outcomes_because_the_ballast_goes(tmp_path: Path) -> None:
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(mount)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {made.stderr.strip()}")
    try:
        journal = SqliteJournal(mount / "state", ballast_bytes=MIB)
        ballast = mount / "state" / "journal.ballast"
        size = ballast.stat().st_size
        assert size == 8 * MIB // 50
        last, given_up_at = 0, 0
        full = False
        while not full:
            try:
                journal.append(rows(last + 1, last + 2, 20_000))
            except JournalFull:
                full = True
            else:
                last += 1
                given_up_at = given_up_at or (0 if ballast.exists() else last)
        assert last - given_up_at >= 2, "outcomes were recorded in the room of the ballast"
        assert list(journal.replay()) == rows(1, last + 1, 20_000)
        journal.close()
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=True)


BROKEN = """
import resource, sys
from pathlib import Path
from journal_records import rows
from services.orchestrator.journal.base import JournalBroken
from services.orchestrator.journal.sqlite import SqliteJournal

journal = SqliteJournal(Path(sys.argv[1]))
journal.append(rows(1, 10))
size = (Path(sys.argv[1]) / "journal.sqlite-wal").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
for batch in (rows(10, 20), rows(10, 12)):
    try:
        journal.append(batch)
    except JournalBroken as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.close()
"""


def test_after_a_failed_write_nothing_is_written_or_synced_again_by_that_process(tmp_path: Path) -> None:
    """The disk works again at once, and still: only a new start, which reads what is there, writes again."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", BROKEN, str(tmp_path)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{root}:{Path(__file__).parent}"},
        cwd=root,
        check=True,
        timeout=60,
    )
    first, second = done.stdout.splitlines()
    assert "cannot be written: disk I/O error; look at its disk, then start again" in first
    assert "failed before: start again" in second
    assert (tmp_path / "journal.sqlite-wal").stat().st_size > 0, "the log was not moved by closing"
    journal = SqliteJournal(tmp_path)
    assert list(journal.replay()) == rows(1, 10)
    journal.close()


def test_a_log_that_cannot_be_moved_stops_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a sync while the log is moved is not lost: a checkpoint of its own accord would keep it to itself."""
    monkeypatch.setattr("services.orchestrator.journal.sqlite._LOG_PAGES_MAX", 1)
    journal = SqliteJournal(tmp_path)
    journal.append(rows(1, 3))
    assert (tmp_path / "journal.sqlite").stat().st_size > 4096
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    log_bytes = (tmp_path / "journal.sqlite-wal").stat().st_size
    assert log_bytes > 0
    journal._log_pages = 0
    monkeypatch.setattr("services.orchestrator.journal.sqlite._LOG_PAGES_MAX", 1 << 30)
    journal.append(rows(3, 200, 3_000))
    main_bytes = (tmp_path / "journal.sqlite").stat().st_size
    monkeypatch.setattr("services.orchestrator.journal.sqlite._LOG_PAGES_MAX", 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (main_bytes, before[1]))
    try:
        with pytest.raises(JournalBroken, match="cannot be written"):
            journal._move_log()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with pytest.raises(JournalBroken, match="failed before"):
        journal.append(rows(200, 201))
    journal._broken = False
    journal.close()
