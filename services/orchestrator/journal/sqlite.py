"""The journal in one SQLite file: write-ahead log, FULL sync, one connection, exclusive.

One table of records in the order of their sequence numbers. SQLite does not check what is on its pages, and damage must be named, never
skipped: each record has a CRC-32 over its place and content, the identity has one too, and opening looks for rows that are missing from the file
(its structure), for tables that are not ours (its schema) and for commits that are missing from its log (`wal`). Keys grow, which makes rows five
times cheaper than random keys.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import secrets
import shutil
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from antfarm import files
from antfarm.errors import InvalidArgument
from antfarm.failpoint import failpoint
from services.orchestrator.core.records import JobPurged, Record
from services.orchestrator.core.standing import superseded
from services.orchestrator.journal import wal
from services.orchestrator.journal.ballast import Ballast, reserve_bytes
from services.orchestrator.journal.base import LOOSE_RECORDS_MAX, BackupStopped, JournalBroken, JournalFull
from services.orchestrator.journal.codec import ATTEMPT_KINDS, decode, encode, job_of

FORMAT = "1"
_SCHEMA = {
    "meta": "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "record": "CREATE TABLE record (seq INTEGER PRIMARY KEY, job INTEGER NOT NULL, kind INTEGER NOT NULL,"
    " crc INTEGER NOT NULL, body BLOB NOT NULL)",
    "record_job": "CREATE INDEX record_job ON record (job)",
}
_RESTORE = "restore it from a backup or give another --state"
_LOOK = "look at its disk, then start again"
_MAY = "give a --state whose files this user can read and write"
_ADVICE = {
    sqlite3.SQLITE_BUSY: "end the other program that has it open",
    sqlite3.SQLITE_FULL: "make room on its disk",
    sqlite3.SQLITE_IOERR: _LOOK,
    sqlite3.SQLITE_CANTOPEN: _MAY,
    sqlite3.SQLITE_READONLY: _MAY,
}
"""What to do about errors of SQLite that say nothing about the content."""
_TROUBLE = (sqlite3.Error, UnicodeError)
"""What SQLite raises; the second where damage made an error message or a text unreadable."""
_READ_CHUNK = 500
_LOG_PAGES_MAX = 4_000
"""Pages in the log, about, after which it is moved into the main file."""
_PAGE_BYTES = 4_096
_BACKUP = "backup-"
"""Directories beside the journal in which copies are made."""
_BACKUP_PAGES = 256
"""Pages that a backup copies at a time, about a millisecond."""
_BACKUP_PAUSE_S = 0.002
"""How long it waits when a commit is under way."""
_LOOK_STEPS = 10_000
"""SQLite's own steps between two looks whether what it does is still wanted: less than a millisecond."""
_LOG_BYTES_KEPT = 64 << 20
"""What the log's file is cut to after one large commit."""

_Row = tuple[int, int, int, int, bytes]
"""Number, job, kind, checksum and content of a record."""


class SqliteJournal:
    """The journal of one orchestrator in `directory`/journal.sqlite."""

    def __init__(self, directory: Path, ballast_bytes: int = 0, stopped: Callable[[], bool] | None = None) -> None:
        """Open or make it. InvalidArgument in one line when the directory cannot be used, another process has it, or it is damaged.

        Where `stopped` is given, whatever is under way fails once it is true.
        """
        self._path = directory / "journal.sqlite"
        self._log_pages = 0
        """Pages written to the log since it was last moved, as far as can be told from outside."""
        self._directory = directory
        self._broken = False
        self._loose, self._look_at = 0, LOOSE_RECORDS_MAX
        """Records of no job, and how many of them are worth a look."""
        self._lock = lock_directory(directory)
        for left in directory.glob(_BACKUP + "*"):  # of a process that was killed while it made one
            shutil.rmtree(left, ignore_errors=True)
        try:
            wal.check(self._path.with_name("journal.sqlite-wal"))
            # One thread uses it at a time, but not always the same: opened in the main thread, written in the journal's.
            self._db = sqlite3.connect(self._path, timeout=0, isolation_level=None, check_same_thread=False)
            self._db.set_progress_handler(stopped, _LOOK_STEPS)
        except (wal.WalDamaged, sqlite3.Error, OSError) as error:
            self._lock.close()
            raise self._unusable(error) from None
        try:
            self.orchestrator_id = self._open()
            self._ballast = Ballast(directory / "journal.ballast", ballast_bytes)
            self._ballast.keep()
        except InvalidArgument:
            self.close()
            raise
        except (*_TROUBLE, OSError) as error:
            self.close()
            raise self._unusable(error) from None

    def _unusable(self, error: object, advice: str = "") -> InvalidArgument:
        return InvalidArgument(f"journal {self._path}: {error}; {advice or _advice(error)}")

    def _open(self) -> str:
        """Look at what is there, or make it. Returns the orchestrator's id."""
        db = self._db
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        schema = dict(db.execute("SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"))
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        made = self._check(schema) if schema or pages > 1 else ""
        # Not before it is known to be ours: the mode is written into the file.
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        # SQLite would move the log into the main file by itself, but say nothing of a sync that failed while it did.
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES_KEPT}")
        name = made or self._make()
        (self._loose,) = db.execute("SELECT count(*) FROM record WHERE job = 0").fetchone()
        log = self._path.with_name("journal.sqlite-wal")
        self._log_pages = log.stat().st_size // _PAGE_BYTES if log.exists() else 0  # of a process that was killed
        return name

    def _check(self, schema: dict[str, str]) -> str:
        """The id of a journal that is whole, as far as it can be told without reading the records."""
        # First of all the format: what else a file of another format should look like is not for us to say.
        meta = dict(self._db.execute("SELECT key, value FROM meta")) if "meta" in schema else {}
        found = meta.get("format")
        if found is not None and found != FORMAT:
            raise self._unusable(
                f"it has format {found}, this version reads format {FORMAT}",
                "use the version that wrote it or give another --state",
            )
        if schema != _SCHEMA:
            raise self._unusable("it is no journal, or its table of contents is damaged")
        if meta.get("crc") != _meta_crc(meta):
            raise self._unusable("its identity is damaged")
        (structure,) = self._db.execute("PRAGMA integrity_check(1)").fetchone()
        if structure != "ok":
            raise self._unusable(f"it is damaged: {' '.join(structure.split())}")
        return str(meta["orchestrator_id"])

    def _make(self) -> str:
        meta = {"format": FORMAT, "orchestrator_id": secrets.token_hex(8)}
        meta["crc"] = _meta_crc(meta)
        self._db.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA.values():
            self._db.execute(statement)
        self._db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        self._db.execute("COMMIT")
        return meta["orchestrator_id"]

    def replay(self) -> Iterator[tuple[int, Record]]:
        """All records in order."""
        return self._select("ORDER BY seq")

    def _select(self, which: str, arguments: Sequence[int] = ()) -> Iterator[tuple[int, Record]]:
        with self._reading():
            for row in self._db.execute(f"SELECT seq, job, kind, crc, body FROM record {which}", arguments):
                yield row[0], self._checked(*row)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except _TROUBLE as error:
            if _code(error) == sqlite3.SQLITE_IOERR:  # which says nothing about the content
                raise JournalBroken(f"journal {self._path} cannot be read: {error}; {_LOOK}") from None
            raise JournalBroken(f"journal {self._path} is damaged: {error}; restore it from a backup") from None

    def _checked(self, seq: int, job: int, kind: int, crc: int, body: bytes) -> Record:
        try:
            whole = crc == _crc(seq, job, kind, body)
        except TypeError:
            whole = False  # damage may turn a number into text
        if not whole:
            raise JournalBroken(
                f"journal {self._path}: record {seq} is damaged (its checksum differs); restore it from a backup"
            )
        try:
            return decode(kind, body)
        except ValueError as error:
            raise JournalBroken(f"journal {self._path}: record {seq}: {error}; use the version that wrote it") from None

    def append(self, records: Sequence[tuple[int, Record]]) -> None:
        """One transaction, synced before it returns. On a full disk the ballast goes first."""
        rows = []
        for seq, record in records:
            kind, body = encode(record)
            job = job_of(record)
            rows.append((seq, job, kind, _crc(seq, job, kind, body), body))
        purged = [(record.job,) for _, record in records if isinstance(record, JobPurged)]
        try:
            self._append(rows, purged)
        except OSError as error:  # of the ballast
            raise self._failed(error) from None

    def _append(self, rows: Sequence[_Row], purged: Sequence[tuple[int]]) -> None:
        try:
            self._commit(rows, purged)
        except JournalFull:
            if not self._ballast.give_up():
                raise
            self._commit(rows, purged)
        self._loose += sum(not row[1] for row in rows)
        if self._loose >= self._look_at:
            self._compact()
        self._move_log()
        self._ballast.keep()

    def _compact(self) -> None:
        """Drop the records of no job that later ones have superseded. Where there is no room for that, they stay for now."""
        loose = list(self._select("WHERE job = 0 ORDER BY seq"))
        gone = superseded(loose, self._jobs_between)
        with contextlib.suppress(JournalFull):
            self._commit((), (), gone)
        self._loose = len(loose) - len(gone)
        self._look_at = max(LOOSE_RECORDS_MAX, 2 * self._loose)

    def _jobs_between(self, first: int, last: int) -> bool:
        between = "SELECT 1 FROM record WHERE seq > ? AND seq < ? AND +job > 0 LIMIT 1"
        with self._reading():
            return self._db.execute(between, (first, last)).fetchone() is not None

    def _commit(self, rows: Sequence[_Row], purged: Sequence[tuple[int]], gone: Sequence[int] = ()) -> None:
        """Keep rows; drop those of purged jobs, and single ones."""
        if self._broken:
            raise JournalBroken(f"journal {self._path} failed before: start again")
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT INTO record VALUES (?, ?, ?, ?, ?)", rows)
            deleted = self._db.executemany("DELETE FROM record WHERE job = ?", purged).rowcount
            deleted += self._db.executemany("DELETE FROM record WHERE seq = ?", ((seq,) for seq in gone)).rowcount
            failpoint("journal.before_commit")
            self._db.execute("COMMIT")
            failpoint("journal.after_commit")
        except _TROUBLE as error:
            self._roll_back()
            raise self._failed(error) from None
        self._log_pages += 4 + max(deleted, 0) + sum(1 + len(row[4]) // _PAGE_BYTES for row in rows)

    def _failed(self, error: object) -> JournalFull | JournalBroken:
        """When a write or sync failed, nothing is written to these files again by this process: a sync that is repeated may lie.

        Where there was no room, nothing was lost by trying.
        """
        if _code(error) == sqlite3.SQLITE_FULL:
            return JournalFull(str(error))
        self._broken = self._broken or not isinstance(error, sqlite3.IntegrityError)
        return JournalBroken(f"journal {self._path} cannot be written: {error}; {_LOOK}")

    def _move_log(self) -> None:
        """Move the log into the main file when it has grown. Where there is no room for that, it goes on growing meanwhile."""
        if self._log_pages < _LOG_PAGES_MAX:
            return
        self._log_pages = 0
        with contextlib.suppress(JournalFull):
            self._checkpoint("PASSIVE")

    def into_one_file(self) -> None:
        """Move all of the log into the main file, which then is the journal, alone and synced. JournalFull, JournalBroken.

        Closing does that too, but keeps to itself what went wrong.
        """
        self._checkpoint("TRUNCATE")

    def _checkpoint(self, how: str) -> None:
        try:
            self._db.execute(f"PRAGMA wal_checkpoint({how})").fetchone()
        except _TROUBLE as error:
            raise self._failed(error) from None

    def _roll_back(self) -> None:
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except _TROUBLE:
            pass  # the error that led here is the one to tell

    def read(self, seqs: Sequence[int]) -> list[tuple[int, Record]]:
        """Records by sequence number."""
        found: list[tuple[int, Record]] = []
        for start in range(0, len(seqs), _READ_CHUNK):
            part = seqs[start : start + _READ_CHUNK]
            by_seq = dict(self._select(f"WHERE seq IN ({','.join('?' * len(part))})", part))
            found.extend((seq, by_seq[seq]) for seq in part if seq in by_seq)
        return found

    def back_up(self, stopped: Callable[[], bool] = bool) -> Path:
        """See `Journal`. Some pages at a time, so that a commit never waits for more than these; what it changes meanwhile is in the copy too."""

        def look(*_: int) -> None:
            if stopped():
                raise BackupStopped

        free, total = self.free_bytes()
        if free < self._path.stat().st_size + reserve_bytes(total):
            raise JournalFull(f"there is no room for a copy of {self._path} beside it")
        directory = self._directory / f"{_BACKUP}{secrets.token_hex(4)}"
        try:
            directory.mkdir()
            path = directory / self._path.name
            with contextlib.closing(sqlite3.connect(path)) as target:
                self._db.backup(target, pages=_BACKUP_PAGES, progress=look, sleep=_BACKUP_PAUSE_S)
            verify(directory, stopped)
        except BaseException as error:
            shutil.rmtree(directory, ignore_errors=True)
            if stopped():
                raise BackupStopped from None
            if _is_full(error):
                raise JournalFull(f"no backup of {self._path} was made: {error}") from None
            if isinstance(error, (*_TROUBLE, OSError, InvalidArgument)):
                raise JournalBroken(f"no backup of {self._path} was made: {error}") from None
            raise
        return path

    def history(self, job: int, first: int, last: int) -> list[tuple[int, Record]]:
        """Records of single attempts of a job."""
        kinds = ",".join(map(str, ATTEMPT_KINDS))
        return list(
            self._select(
                f"WHERE job = ? AND seq BETWEEN ? AND ? AND kind IN ({kinds}) ORDER BY seq", (job, first, last)
            )
        )

    def newest(self, job: int, last: int) -> int:
        """The highest number of a record of a job: the last entry of the index."""
        found = self._select("WHERE job = ? AND seq <= ? ORDER BY seq DESC LIMIT 1", (job, last))
        return next((seq for seq, _ in found), 0)

    def free_bytes(self) -> tuple[int, int]:
        """Room on its disk."""
        usage = shutil.disk_usage(self._directory)
        return usage.free, usage.total

    def close(self) -> None:
        """Close the file and let go of the directory."""
        if self._broken:
            # Closing would move the log into the main file and sync again what failed to sync. The end of the process closes it as it is.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._db))
        else:
            self._db.close()
        self._lock.close()


def verify(directory: Path, stopped: Callable[[], bool]) -> None:
    """Open the journal there and read all of it. InvalidArgument or JournalBroken names the damage, or that it was stopped."""
    journal = SqliteJournal(directory, stopped=stopped)
    try:
        for _ in journal.replay():
            pass
    finally:
        journal.close()


def _advice(error: object) -> str:
    """What to do about an error at the start. One of the disk says nothing about the content, and a backup would lose what was acknowledged since."""
    if isinstance(error, OSError):
        return _MAY if isinstance(error, PermissionError) else _LOOK
    return _ADVICE.get(_code(error), _RESTORE)


def _code(error: object) -> int:
    """SQLite's primary code of an error, 0 where it gave none."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _is_full(error: object) -> bool:
    """True for an error that says no more than that there is no room."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return _code(error) == sqlite3.SQLITE_FULL


def _crc(seq: int, job: int, kind: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(b"%d/%d/%d" % (seq, job, kind)))


def _meta_crc(meta: dict[str, str]) -> str:
    return str(zlib.crc32(f"{meta.get('format')}/{meta.get('orchestrator_id')}".encode()))


def lock_directory(directory: Path) -> IO[str]:
    """The lock of a state directory, made if missing; InvalidArgument when another process has it. Close it to let go."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = open(directory / "lock", "a+")  # noqa: SIM115 - held as long as the journal is open
    except OSError as error:
        raise InvalidArgument(f"--state {directory}: {error.strerror}; give a directory that can be written") from None
    try:
        if not files.lock(lock.fileno(), directory / "lock", f"--state {directory}"):
            raise InvalidArgument(
                f"--state {directory} is used by another orchestrator: stop it or give another directory"
            )
    except InvalidArgument:
        lock.close()
        raise
    return lock
