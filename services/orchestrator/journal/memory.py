"""A journal in memory, for tests: durable as long as the object lives. Records still pass through the codec."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from services.orchestrator.core.records import JobPurged, Record
from services.orchestrator.core.standing import superseded
from services.orchestrator.journal.base import LOOSE_RECORDS_MAX, JournalBroken
from services.orchestrator.journal.codec import ATTEMPT_KINDS, decode, encode, job_of


class MemoryJournal:
    """Keeps encoded records in a dictionary."""

    def __init__(self) -> None:
        self.orchestrator_id = "memory"
        self.rows: dict[int, tuple[int, int, bytes]] = {}
        """seq -> (job, kind, body)."""
        self._look_at = LOOSE_RECORDS_MAX

    def replay(self) -> Iterator[tuple[int, Record]]:
        """All records in order."""
        for seq, (_, kind, body) in sorted(self.rows.items()):
            yield seq, decode(kind, body)

    def append(self, records: Sequence[tuple[int, Record]]) -> None:
        """Keep records."""
        rows = {seq: (job_of(record), *encode(record)) for seq, record in records}
        if len(rows) < len(records) or rows.keys() & self.rows.keys():
            raise JournalBroken("a sequence number is used twice")
        self.rows.update(rows)
        for _, record in records:
            if isinstance(record, JobPurged):
                self.rows = {seq: row for seq, row in self.rows.items() if row[0] != record.job}
        loose = [seq for seq in sorted(self.rows) if not self.rows[seq][0]]
        if len(loose) >= self._look_at:
            gone = superseded(self.read(loose), self._jobs_between)
            for seq in gone:
                del self.rows[seq]
            self._look_at = max(LOOSE_RECORDS_MAX, 2 * (len(loose) - len(gone)))

    def _jobs_between(self, first: int, last: int) -> bool:
        return any(first < seq < last and row[0] for seq, row in self.rows.items())

    def read(self, seqs: Sequence[int]) -> list[tuple[int, Record]]:
        """Records by sequence number."""
        return [(seq, decode(*self.rows[seq][1:])) for seq in seqs if seq in self.rows]

    def back_up(self, stopped: Callable[[], bool] = bool) -> Path:
        """There is no file to copy."""
        raise JournalBroken("a journal in memory has no backup")

    def history(self, job: int, first: int, last: int) -> list[tuple[int, Record]]:
        """Records of single attempts of a job."""
        return [
            (seq, decode(kind, body))
            for seq, (of, kind, body) in sorted(self.rows.items())
            if of == job and first <= seq <= last and kind in ATTEMPT_KINDS
        ]

    def newest(self, job: int, last: int) -> int:
        """The highest number of a record of a job."""
        return max((seq for seq, row in self.rows.items() if row[0] == job and seq <= last), default=0)

    def free_bytes(self) -> tuple[int, int]:
        """Plenty."""
        return 1 << 40, 1 << 40

    def close(self) -> None:
        """Nothing to let go of."""
