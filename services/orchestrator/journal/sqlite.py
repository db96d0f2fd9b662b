"""The journal in one SQLite file: write-ahead log, FULL sync, one connection, exclusive.

One table of records in the order of their sequence numbers, each with a CRC-32 over its place and content: SQLite does not check its pages,
and a damaged record must be named, never skipped. Keys grow, which makes rows five times cheaper than random keys.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from antfarm.errors import InvalidArgument
from services.orchestrator.core.records import JobPurged, Record
from services.orchestrator.journal.base import JournalBroken, JournalFull
from services.orchestrator.journal.codec import decode, encode, job_of

FORMAT = "1"
_READ_CHUNK = 500


class SqliteJournal:
    """The journal of one orchestrator in `directory`/journal.sqlite."""

    def __init__(self, directory: Path) -> None:
        """Open or make it. InvalidArgument in one line when the directory cannot be used or another process has it."""
        self._path = directory / "journal.sqlite"
        self._directory = directory
        self._lock = _lock(directory)
        try:
            self._db = self._open()
            self.orchestrator_id = self._check_format()
        except (sqlite3.DatabaseError, OSError) as error:
            self._lock.close()
            raise InvalidArgument(
                f"journal {self._path}: {error}; restore it from a backup or give another --state"
            ) from None

    def _open(self) -> sqlite3.Connection:
        # One thread uses it at a time, but not always the same: opened in the main thread, written in the journal's.
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA wal_autocheckpoint = 4000")
        db.execute("CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID")
        db.execute(
            "CREATE TABLE IF NOT EXISTS record (seq INTEGER PRIMARY KEY, job INTEGER NOT NULL, kind INTEGER NOT NULL,"
            " crc INTEGER NOT NULL, body BLOB NOT NULL)"
        )
        db.execute("CREATE INDEX IF NOT EXISTS record_job ON record (job)")
        return db

    def _check_format(self) -> str:
        meta = dict(self._db.execute("SELECT key, value FROM meta"))
        if not meta:
            meta = {"format": FORMAT, "orchestrator_id": secrets.token_hex(8)}
            self._db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        if meta.get("format") != FORMAT:
            raise sqlite3.DatabaseError(f"it has format {meta.get('format')}, this version reads format {FORMAT}")
        return str(meta["orchestrator_id"])

    def replay(self) -> Iterator[tuple[int, Record]]:
        """All records in order."""
        try:
            for seq, job, kind, crc, body in self._db.execute(
                "SELECT seq, job, kind, crc, body FROM record ORDER BY seq"
            ):
                yield seq, self._checked(seq, job, kind, crc, body)
        except sqlite3.DatabaseError as error:
            raise JournalBroken(f"journal {self._path} is damaged: {error}; restore it from a backup") from None

    def _checked(self, seq: int, job: int, kind: int, crc: int, body: bytes) -> Record:
        if crc != _crc(seq, job, kind, body):
            raise JournalBroken(
                f"journal {self._path}: record {seq} is damaged (its checksum differs); restore it from a backup"
            )
        try:
            return decode(kind, body)
        except ValueError as error:
            raise JournalBroken(f"journal {self._path}: record {seq}: {error}; use the version that wrote it") from None

    def append(self, records: Sequence[tuple[int, Record]]) -> None:
        """One transaction, synced before it returns."""
        rows = []
        for seq, record in records:
            kind, body = encode(record)
            job = job_of(record)
            rows.append((seq, job, kind, _crc(seq, job, kind, body), body))
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT INTO record VALUES (?, ?, ?, ?, ?)", rows)
            for _, record in records:
                if isinstance(record, JobPurged):
                    self._db.execute("DELETE FROM record WHERE job = ?", (record.job,))
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise JournalFull(str(error)) from None
            raise JournalBroken(
                f"journal {self._path} cannot be written: {error}; look at its disk, then start again"
            ) from None

    def _roll_back(self) -> None:
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except sqlite3.Error:
            pass  # the error that led here is the one to tell

    def read(self, seqs: Sequence[int]) -> list[tuple[int, Record]]:
        """Records by sequence number."""
        found: list[tuple[int, Record]] = []
        for start in range(0, len(seqs), _READ_CHUNK):
            part = seqs[start : start + _READ_CHUNK]
            marks = ",".join("?" * len(part))
            rows = self._db.execute(f"SELECT seq, job, kind, crc, body FROM record WHERE seq IN ({marks})", tuple(part))
            by_seq = {row[0]: self._checked(*row) for row in rows}
            found.extend((seq, by_seq[seq]) for seq in part if seq in by_seq)
        return found

    def free_bytes(self) -> tuple[int, int]:
        """Room on its disk."""
        usage = shutil.disk_usage(self._directory)
        return usage.free, usage.total

    def close(self) -> None:
        """Close the file and let go of the directory."""
        self._db.close()
        self._lock.close()


def _crc(seq: int, job: int, kind: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(b"%d/%d/%d" % (seq, job, kind)))


def _lock(directory: Path) -> IO[str]:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = open(directory / "lock", "a+")  # noqa: SIM115 - held as long as the journal is open
    except OSError as error:
        raise InvalidArgument(f"--state {directory}: {error.strerror}; give a directory that can be written") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise InvalidArgument(
            f"--state {directory} is used by another orchestrator: stop it or give another directory"
        ) from None
    os.set_inheritable(lock.fileno(), False)
    return lock
