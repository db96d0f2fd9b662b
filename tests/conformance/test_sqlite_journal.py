"""The journal on disk under kills, torn tails, bit-rot, full disks and wrong hands: nothing acknowledged is lost, nothing is lost silently."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
from journal_records import Row, append_batches, batch_from, rows

from antfarm.errors import InvalidArgument
from services.orchestrator.core.records import EpochStarted
from services.orchestrator.journal import wal
from services.orchestrator.journal.backup import EPOCHS_SKIPPED, SEQS_SKIPPED, restore
from services.orchestrator.journal.base import BackupStopped, JournalBroken, JournalFull
from services.orchestrator.journal.sqlite import SqliteJournal

ROOT = Path(__file__).parents[2]
WRITER = Path(__file__).with_name("journal_writer.py")
MAIN, WAL = "journal.sqlite", "journal.sqlite-wal"
FRAME = 24 + 4096
"""Bytes of one frame of the log: header and page."""


def program(*arguments: str | Path) -> list[str]:
    return [sys.executable, *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{WRITER.parent}"}


def records_in(directory: Path) -> list[Row]:
    """What a start would read."""
    journal = SqliteJournal(directory)
    try:
        return list(journal.replay())
    finally:
        journal.close()


def refusal(directory: Path) -> str:
    """The one line with which a start is refused."""
    with pytest.raises((InvalidArgument, JournalBroken)) as caught:
        records_in(directory)
    line = str(caught.value)
    assert "\n" not in line
    assert str(directory) in line, "it says where"
    return line


def small_journal(directory: Path, batches: int = 12) -> list[Row]:
    """A journal that was closed in good order: everything is in the main file. What it holds."""
    journal = SqliteJournal(directory)
    seq = append_batches(journal, batches)
    journal.close()
    assert not (directory / WAL).exists()
    return rows(1, seq)


# ---- kills ---------------------------------------------------------------------------------------------------------------


def test_everything_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    """Ten kills of a process that appends: after each, whole batches are there, all those acknowledged among them."""
    rng = random.Random(20)
    acknowledged = 0
    for _ in range(10):
        process = subprocess.Popen(
            program(WRITER, tmp_path), stdout=subprocess.PIPE, text=True, env=environment(), cwd=ROOT
        )
        assert process.stdout is not None
        for _ in range(rng.randint(1, 60)):
            acknowledged = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        for line in process.stdout.read().splitlines(keepends=True):
            acknowledged = int(line) if line.endswith("\n") else acknowledged
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
        found = records_in(tmp_path)
        assert found == rows(1, len(found) + 1), "each record as it was written, none missing between"
        assert len(found) >= acknowledged
        assert len(found) in batch_ends(len(found)), "no part of a batch"


def test_the_log_does_not_grow_from_kill_to_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each start reads all of it, so an orchestrator that never lives for long must not leave ever more."""
    monkeypatch.setattr("services.orchestrator.journal.sqlite._LOG_PAGES_MAX", 60)
    seq, sizes = 1, []
    for life in range(40):
        journal = SqliteJournal(tmp_path / str(life))
        assert list(journal.replay()) == rows(1, seq)
        seq = append_batches(journal, 3, seq)
        (tmp_path / str(life + 1)).mkdir()
        for name in (MAIN, WAL):
            shutil.copyfile(tmp_path / str(life) / name, tmp_path / str(life + 1) / name)
        journal.close()
        sizes.append((tmp_path / str(life + 1) / WAL).stat().st_size // FRAME)
    assert 30 < max(sizes) < 90


def batch_ends(up_to: int) -> set[int]:
    ends, seq = {0}, 1
    while seq <= up_to:
        seq = batch_from(seq)[-1][0] + 1
        ends.add(seq - 1)
    return ends


# ---- torn tails ----------------------------------------------------------------------------------------------------------


class Crashed:
    """The files as a crash leaves them, all commits in the log, and how long the log was after each."""

    def __init__(self, directory: Path, batches: int = 25) -> None:
        journal = SqliteJournal(directory / "live")
        self.main = (directory / "live" / MAIN).read_bytes()
        self.ends = [(os.path.getsize(directory / "live" / WAL), 0)]
        """(length of the log, last record) after each acknowledged batch."""
        seq = 1
        for _ in range(batches):
            seq = append_batches(journal, 1, seq)
            self.ends.append((os.path.getsize(directory / "live" / WAL), seq - 1))
        assert (directory / "live" / MAIN).read_bytes() == self.main, "nothing was moved from the log meanwhile"
        self.log = (directory / "live" / WAL).read_bytes()
        journal.close()
        self._target = directory / "crashed"

    def image(self, log: bytes) -> Path:
        """A directory with these files and this log."""
        shutil.rmtree(self._target, ignore_errors=True)
        self._target.mkdir()
        (self._target / MAIN).write_bytes(self.main)
        (self._target / WAL).write_bytes(log)
        return self._target

    def acknowledged(self, length: int) -> int:
        """The last record that was acknowledged when the log was so long."""
        return max((last for end, last in self.ends if end <= length), default=0)


@pytest.fixture
def crashed(tmp_path: Path) -> Crashed:
    return Crashed(tmp_path)


def test_a_log_cut_anywhere_gives_exactly_the_batches_that_are_whole(crashed: Crashed) -> None:
    rng = random.Random(21)
    edges = {end + step for end, _ in crashed.ends for step in (-1, 0, 1)}
    cuts = {rng.randrange(crashed.ends[0][0], len(crashed.log)) for _ in range(120)} | edges
    for cut in sorted(cut for cut in cuts if crashed.ends[0][0] <= cut <= len(crashed.log)):
        assert records_in(crashed.image(crashed.log[:cut])) == rows(1, crashed.acknowledged(cut) + 1), cut


def test_a_last_batch_that_reached_the_disk_in_pieces_is_cut_off(crashed: Crashed) -> None:
    """Power loss before the sync: any sectors of the last batch may be missing, everything before it stands."""
    rng = random.Random(22)
    (synced, before), (end, last) = crashed.ends[-2:]
    for _ in range(60):
        log = bytearray(crashed.log)
        for start in range(synced, end, 512):
            if rng.random() < 0.3:
                part = min(512, end - start)
                log[start : start + part] = rng.choice([bytes(part), rng.randbytes(part)])
        whole = bytes(log) == crashed.log
        assert records_in(crashed.image(bytes(log))) == rows(1, (last if whole else before) + 1)


def test_a_frame_whose_header_is_torn_in_the_middle_proves_nothing(crashed: Crashed) -> None:
    """Its page and commit mark may be those of an older log, in the sector before, while all that follows is of the batch that was under way."""
    last = crashed.ends[-1][1]
    directory = crashed.image(crashed.log)
    journal = SqliteJournal(directory)
    journal.append(rows(last + 1, last + 3_000))
    log = bytearray((directory / WAL).read_bytes())
    journal.close()
    torn = [start for start in range(len(crashed.log), len(log) - FRAME, FRAME) if start % 512 == 504]
    assert torn, "the batch is large enough"
    for start in torn:
        log[start : start + 8] = (2).to_bytes(4, "big") + (9).to_bytes(4, "big")
    assert records_in(crashed.image(bytes(log))) == rows(1, last + 1)


def test_a_journal_goes_on_after_a_torn_tail(crashed: Crashed) -> None:
    directory = crashed.image(crashed.log[:-100])
    before = crashed.ends[-2][1]
    journal = SqliteJournal(directory)
    journal.append(rows(before + 1, before + 30))
    assert list(journal.replay()) == rows(1, before + 30)
    journal.close()
    assert records_in(directory) == rows(1, before + 30)


def test_bit_rot_in_the_log_is_no_torn_tail(crashed: Crashed) -> None:
    """Damage before a later commit would silently drop acknowledged batches: it is named instead, and stays so."""
    rng = random.Random(23)
    second_last = crashed.ends[-3][0]
    for _ in range(80):
        log = bytearray(crashed.log)
        place = rng.randrange(second_last)
        log[place] ^= 1 << rng.randrange(8)
        directory = crashed.image(bytes(log))
        for _ in range(2):
            assert f"{WAL} is damaged" in (line := refusal(directory)), place
            assert "restore it from a backup" in line
        assert (directory / WAL).read_bytes() == log, "what can be saved is left for people to look at"


# ---- bit-rot -------------------------------------------------------------------------------------------------------------


def flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


@pytest.mark.parametrize(("part", "flips"), [("all of it", 100), ("first page", 100)])
def test_a_flipped_bit_is_named_or_harmless(tmp_path: Path, part: str, flips: int) -> None:
    """Whatever bit of the file flips, a start reads the same records and identity, or says that the journal is damaged."""
    expected = small_journal(tmp_path / "good")
    journal = SqliteJournal(tmp_path / "good")
    identity = journal.orchestrator_id
    journal.close()
    content = (tmp_path / "good" / MAIN).read_bytes()
    rng = random.Random(24)
    length = len(content) if part == "all of it" else 4096
    named = 0
    for _ in range(flips):
        bit = rng.randrange(length * 8)
        directory = tmp_path / "bad"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        (directory / MAIN).write_bytes(flipped(content, bit))
        try:
            journal = SqliteJournal(directory)
        except InvalidArgument as error:
            line = str(error)
        else:
            try:
                assert list(journal.replay()) == expected, f"bit {bit} made a silent difference"
                assert journal.orchestrator_id == identity, f"bit {bit} made a silent difference"
                continue
            except JournalBroken as error:
                line = str(error)
            finally:
                journal.close()
        named += 1
        assert "\n" not in line
        assert line.startswith(f"journal {directory / MAIN}")
    assert named > flips // 20, "the flips hit something"


def test_a_flipped_bit_in_a_body_is_named_with_its_record(tmp_path: Path) -> None:
    small_journal(tmp_path)
    content = (tmp_path / MAIN).read_bytes()
    place = content.index(b"result 8 ")
    (tmp_path / MAIN).write_bytes(flipped(content, place * 8 + 3))
    assert "record 8 is damaged (its checksum differs); restore it from a backup" in refusal(tmp_path)
    journal = SqliteJournal(tmp_path)
    assert journal.read([7, 9]) == [*rows(7, 8), *rows(9, 10)]
    with pytest.raises(JournalBroken, match="record 8 is damaged"):
        journal.read([7, 8])
    journal.close()


def test_a_disk_that_cannot_be_read_is_no_damage_to_restore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the disk says nothing about the content, and a backup mends no disk."""

    def fail(*_: object) -> NoReturn:
        trouble = sqlite3.OperationalError("disk I/O error")
        trouble.sqlite_errorcode = sqlite3.SQLITE_IOERR_READ
        raise trouble

    small_journal(tmp_path)
    journal = SqliteJournal(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(journal, "_db", SimpleNamespace(execute=fail))
        for read in (
            lambda: journal.read([7]),
            lambda: journal.history(1, 1, 9),
            lambda: journal.newest(1, 9),
            lambda: list(journal.replay()),
            lambda: journal._jobs_between(1, 9),
        ):
            with pytest.raises(JournalBroken) as caught:
                read()
            assert str(caught.value) == (
                f"journal {tmp_path / MAIN} cannot be read: disk I/O error; look at its disk, then start again"
            )
    journal.close()
    monkeypatch.setattr(SqliteJournal, "_open", fail)
    assert "disk I/O error; look at its disk, then start again" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EIO, "look at its disk, then start again"),
        (errno.EACCES, "give a --state whose files this user can read and write"),
    ],
)
@pytest.mark.parametrize("place", ["check", "_open"])
def test_a_log_that_cannot_be_read_is_no_damage_to_restore(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, number: int, advice: str
) -> None:
    def fail(*_: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    expected = small_journal(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(wal if place == "check" else SqliteJournal, place, fail)
        line = refusal(tmp_path)
    assert line == f"journal {tmp_path / MAIN}: [Errno {number}] {os.strerror(number)}; {advice}"
    assert records_in(tmp_path) == expected


def change(directory: Path, statement: str) -> None:
    db = sqlite3.connect(directory / MAIN)
    db.execute("PRAGMA writable_schema = ON")
    with db:
        db.execute(statement)
    db.close()


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("kind = kind | 8", 8),
        ("kind = 'six'", 8),
        ("crc = crc + 1", 8),
        ("crc = 'x' || crc", 8),
        ("job = job + 1", 8),
        ("seq = 3000", 3000),
        ("body = 'text'", 8),
        ("body = substr(body, 2)", 8),
    ],
)
def test_every_column_of_a_record_is_covered_by_its_checksum(tmp_path: Path, damage: str, named: int) -> None:
    small_journal(tmp_path)
    change(tmp_path, f"UPDATE record SET {damage} WHERE seq = 8")
    assert f"record {named} is damaged" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE sqlite_master SET name = 'recorb', tbl_name = 'recorb' WHERE name = 'record'", "damaged"),
        ("DELETE FROM sqlite_master WHERE name = 'record_job'", "damaged"),
        ("UPDATE meta SET value = 'another' WHERE key = 'orchestrator_id'", "its identity is damaged"),
        ("DELETE FROM meta", "its identity is damaged"),
        ("DROP TABLE record", "damaged"),
    ],
)
def test_a_damaged_table_of_contents_is_never_taken_for_an_empty_journal(
    tmp_path: Path, statement: str, words: str
) -> None:
    small_journal(tmp_path)
    change(tmp_path, statement)
    assert words in refusal(tmp_path)


def test_a_missing_record_is_noticed(tmp_path: Path) -> None:
    """A row that the file's structure has lost, with nothing wrong in those that are left."""
    small_journal(tmp_path)
    change(
        tmp_path, "DELETE FROM sqlite_master WHERE name = 'record_job'"
    )  # so that the index keeps what the table loses
    change(tmp_path, "DELETE FROM record WHERE seq = 8")
    db = sqlite3.connect(tmp_path / MAIN)
    db.execute("PRAGMA writable_schema = ON")
    db.execute(
        "INSERT INTO sqlite_master VALUES ('index', 'record_job', 'record', 4, 'CREATE INDEX record_job ON record (job)')"
    )
    db.commit()
    db.close()
    assert "wrong # of entries in index record_job" in refusal(tmp_path)


# ---- a full disk ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mount)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {made.stderr.strip()}")
    yield mount
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


def test_a_full_disk_keeps_nothing_of_a_batch_and_the_same_batch_goes_in_later(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1 << 20))
    journal = SqliteJournal(small_disk / "state")
    acknowledged = append_until_full(journal)
    assert acknowledged > 0
    batch = rows(acknowledged + 1, acknowledged + 4, 20_000)
    for _ in range(3):
        with pytest.raises(JournalFull):
            journal.append(batch)
        assert list(journal.replay()) == rows(1, acknowledged + 1, 20_000)
    ballast.unlink()
    journal.append(batch)
    assert list(journal.replay()) == rows(1, acknowledged + 4, 20_000)
    journal.close()
    assert records_in(small_disk / "state") == rows(1, acknowledged + 4, 20_000)


def append_until_full(journal: SqliteJournal) -> int:
    last = 0
    try:
        while True:
            journal.append(rows(last + 1, last + 4, 20_000))
            last += 3
    except JournalFull:
        return last


def test_a_batch_larger_than_the_disk_keeps_nothing(small_disk: Path) -> None:
    journal = SqliteJournal(small_disk / "state")
    journal.append(rows(1, 10))
    with pytest.raises(JournalFull):
        journal.append(rows(10, 60, 100_000))
    journal.append(rows(10, 20))
    journal.close()
    assert records_in(small_disk / "state") == rows(1, 20)


def test_a_start_on_a_full_disk_reads_what_is_there(small_disk: Path) -> None:
    """As a crash on a full disk leaves it: the log cannot be moved into the main file, and need not be."""
    journal = SqliteJournal(small_disk / "state")
    journal.append(rows(1, 40, 3000))
    image = small_disk / "image"
    shutil.copytree(small_disk / "state", image)
    journal.close()
    shutil.rmtree(small_disk / "state")
    fill(small_disk)
    journal = SqliteJournal(image)
    assert list(journal.replay()) == rows(1, 40, 3000)
    with pytest.raises(JournalFull):
        journal.append(rows(40, 90, 3000))
    (small_disk / "filler").unlink()
    journal.append(rows(40, 90, 3000))
    journal.close()
    assert records_in(image) == rows(1, 90, 3000)


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def test_a_first_start_on_a_full_disk_says_so(small_disk: Path) -> None:
    (small_disk / "state").mkdir()
    fill(small_disk)
    assert "make room" in refusal(small_disk / "state")
    (small_disk / "filler").unlink()
    assert records_in(small_disk / "state") == []


def epochs(directory: Path, last: int = 0) -> SqliteJournal:
    """A journal of starts: so many, or as many as there are when the file needs another page."""
    journal, seq, pages = SqliteJournal(directory), 0, []
    while seq < last or not last:
        seq += 1
        journal.append([(seq, EpochStarted(epoch=seq, wall_ns=1 << 60))])
        pages += journal._db.execute("PRAGMA page_count").fetchone()
        if not last and pages[-1] > pages[0]:
            break
    return journal


@pytest.fixture
def full_backup(tmp_path: Path) -> tuple[Path, int]:
    """A backup to whose file the record of a new epoch adds pages; the number of its last record."""
    journal = epochs(tmp_path / "until it grows")
    last = max(seq for seq, _ in journal.replay()) - 1
    journal.close()
    journal = epochs(tmp_path / "live", last)
    backup = journal.back_up()
    journal.close()
    return backup, last


def restored_rows(last: int) -> list[Row]:
    """The last records of a journal that was restored from `full_backup`."""
    return [(last + SEQS_SKIPPED, EpochStarted(epoch=last + EPOCHS_SKIPPED, wall_ns=0, history_gap=True))]


def test_a_restore_that_finds_no_room_says_so_in_one_line_and_leaves_nothing(
    small_disk: Path, full_backup: tuple[Path, int]
) -> None:
    """However little is missing: for the copy, for opening it, for the record of the new epoch, or for that in the main file."""
    backup, last = full_backup
    state, lines, room = small_disk / "state", set(), 0
    while not (state / MAIN).exists():
        shutil.rmtree(state, ignore_errors=True)
        fill(small_disk)
        os.truncate(small_disk / "filler", (small_disk / "filler").stat().st_size - room)
        room += 4096
        try:
            restore(backup, state, 0)
        except InvalidArgument as error:
            line = str(error)
            assert line.startswith(f"--restore {backup}")
            assert "\n" not in line
            lines.add(line.rpartition(": ")[2])
        assert not (state / "restoring").exists()
    assert lines == {
        "No space left on device; make room on the disk of --state",
        "database or disk is full; make room on the disk of --state",
    }
    (small_disk / "filler").unlink()
    assert records_in(state)[last:] == restored_rows(last)


@contextmanager
def no_writes() -> Iterator[None]:
    """Whatever this process writes to a file fails, as on a broken disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fails_when_the_restored_journal_is_closed_takes_nothing_from_it(
    tmp_path: Path, full_backup: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite says nothing of what fails while it closes a file: by then the new epoch is in the file that is put in place."""
    backup, last = full_backup
    close = SqliteJournal.close

    def fail(self: SqliteJournal) -> None:
        with no_writes():
            close(self)

    with monkeypatch.context() as patch:
        patch.setattr(SqliteJournal, "close", fail)
        restore(backup, tmp_path / "state", 0)
    assert records_in(tmp_path / "state")[last:] == restored_rows(last)
    with monkeypatch.context() as patch:
        patch.setattr(SqliteJournal, "close", fail)
        patch.setattr(SqliteJournal, "into_one_file", lambda _: None)
        with pytest.raises(InvalidArgument) as caught:
            restore(backup, tmp_path / "other", 0)
    assert str(caught.value) == (
        f"--restore {backup}: the record of the new epoch did not get into the journal; look at the disk of --state"
    )
    assert os.listdir(tmp_path / "other") == ["lock"]


def test_a_disk_that_fails_when_the_new_epoch_gets_into_the_file_restores_nothing(
    tmp_path: Path, full_backup: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    move = SqliteJournal.into_one_file

    def fail(self: SqliteJournal) -> None:
        with no_writes():
            move(self)

    monkeypatch.setattr(SqliteJournal, "into_one_file", fail)
    with pytest.raises(
        InvalidArgument, match=r"cannot be written: disk I/O error; look at its disk, then start again$"
    ):
        restore(full_backup[0], tmp_path / "state", 0)
    assert os.listdir(tmp_path / "state") == ["lock"]


def test_a_disk_that_fills_while_a_backup_is_made_is_full_and_not_broken(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = small_disk / "state"
    journal = SqliteJournal(state)
    journal.append(rows(1, 40, 3000))
    fill(small_disk)
    with pytest.raises(JournalFull, match="no room for a copy"):
        journal.back_up()
    monkeypatch.setattr(journal, "free_bytes", lambda: (1 << 40, 1 << 40))  # it was not full a moment ago
    with pytest.raises(JournalFull) as caught:
        journal.back_up()
    assert str(caught.value) == f"no backup of {state / MAIN} was made: database or disk is full"
    (small_disk / "filler").unlink()
    assert not list(state.glob("backup-*"))
    journal.append(rows(40, 41))
    assert journal.back_up().exists()
    journal.close()


def test_a_backup_that_is_not_wanted_any_more_ends_soon_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever it looks: while it copies, and while it reads the copy to verify it."""
    monkeypatch.setattr("services.orchestrator.journal.sqlite._BACKUP_PAGES", 16)
    monkeypatch.setattr("services.orchestrator.journal.sqlite._LOOK_STEPS", 1_000)
    journal = SqliteJournal(tmp_path)
    journal.append(rows(1, 200, 3000))
    looks, asked, made = 0, 0, None

    def stopped() -> bool:
        nonlocal asked
        asked += 1
        return asked > looks

    while made is None:
        asked = 0
        try:
            made = journal.back_up(stopped)
        except BackupStopped:
            assert asked <= looks + 3, "it went on"
            assert not list(tmp_path.glob("backup-*"))
            looks += 1
    assert looks > 10
    assert list(tmp_path.glob("backup-*")) == [made.parent]
    journal.close()


# ---- wrong hands ---------------------------------------------------------------------------------------------------------


def test_a_second_orchestrator_on_the_same_state_is_refused_in_one_line(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    journal.append(rows(1, 3))
    second = subprocess.run(
        program("-m", "services.orchestrator", "--port", "0", "--state", tmp_path),
        capture_output=True,
        text=True,
        env=environment(),
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    journal.append(rows(3, 5))
    journal.close()
    assert second.returncode != 0
    assert second.stdout == ""
    (line,) = second.stderr.splitlines()
    assert f"--state {tmp_path} is used by another orchestrator: stop it or give another directory" in line
    assert records_in(tmp_path) == rows(1, 5)


def test_a_journal_that_another_program_has_open_is_refused_in_one_line(tmp_path: Path) -> None:
    small_journal(tmp_path)
    other = sqlite3.connect(tmp_path / MAIN, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    try:
        assert "end the other program that has it open" in refusal(tmp_path)
    finally:
        other.close()


def test_another_format_is_refused_in_one_line(tmp_path: Path) -> None:
    small_journal(tmp_path)
    change(tmp_path, "UPDATE meta SET value = '99' WHERE key = 'format'")
    line = refusal(tmp_path)
    assert "it has format 99, this version reads format 1; use the version that wrote it" in line


def no_database(directory: Path) -> None:
    directory.mkdir()
    (directory / MAIN).write_bytes(b"this is a letter, not a database\n" * 300)


def another_database(directory: Path) -> None:
    directory.mkdir()
    db = sqlite3.connect(directory / MAIN)
    db.execute("CREATE TABLE recipe (name TEXT)")
    db.commit()
    db.close()


def a_directory_as_journal(directory: Path) -> None:
    (directory / MAIN).mkdir(parents=True)


def a_file(directory: Path) -> None:
    directory.write_text("I was here first")


def a_file_on_the_way(directory: Path) -> None:
    directory.parent.write_text("I was here first")


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (no_database, "file is not a database; restore it from a backup or give another --state"),
        (another_database, "it is no journal, or its table of contents is damaged; restore it"),
        (
            a_directory_as_journal,
            "unable to open database file; give a --state whose files this user can read and write",
        ),
        (a_file, "File exists; give a directory that can be written"),
        (a_file_on_the_way, "Not a directory; give a directory that can be written"),
    ],
)
def test_what_is_no_state_directory_is_refused_in_one_line(
    tmp_path: Path, prepare: Callable[[Path], None], words: str
) -> None:
    directory = tmp_path / "above" / "state"
    if prepare is not a_file_on_the_way:
        directory.parent.mkdir()
    prepare(directory)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for _ in range(2):
        assert words in refusal(directory)
    for path, content in before.items():
        assert path.read_bytes() == content, "what is not ours stays as it is"


def test_a_directory_that_cannot_be_written_is_refused_in_one_line(small_disk: Path) -> None:
    state = small_disk / "state"
    small_journal(state)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "Read-only file system; give a directory that can be written" in refusal(state)
    assert "Read-only file system; give a directory that can be written" in refusal(small_disk / "new")


def test_a_refused_journal_can_be_opened_once_it_is_mended(tmp_path: Path) -> None:
    """A refusal keeps neither the lock nor the file."""
    expected = small_journal(tmp_path)
    content = (tmp_path / MAIN).read_bytes()
    (tmp_path / MAIN).write_bytes(content[:3000])
    refusal(tmp_path)
    (tmp_path / MAIN).write_bytes(content)
    assert records_in(tmp_path) == expected
