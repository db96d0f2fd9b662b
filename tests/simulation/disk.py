"""The modelled journal: what is durable, how long that takes, and what a crash, a full disk or an old backup leave of it.

Records pass through the real codec. A commit is one transaction: a crash in the middle of it leaves all of it or nothing, by a coin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from services.orchestrator.core.records import EpochStarted, JobPurged, Record
from services.orchestrator.core.standing import superseded
from services.orchestrator.journal.backup import EPOCHS_SKIPPED, SEQS_SKIPPED
from services.orchestrator.journal.codec import decode, encode, job_of
from tests.simulation.kernel import MS

Row = tuple[int, int, bytes]
"""(job, kind, body)"""


class Disk:
    """The disk of one orchestrator; outlives its processes."""

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}
        self.mend()
        self.compact_at = 256
        """Loose records at which those that later ones have superseded are dropped."""
        self.backups: list[dict[int, Row]] = []

    def mend(self) -> None:
        """As disks are when nothing is wrong."""
        self.commit_ns = 2 * MS
        self.full = self.low = False

    def commit(self, batch: Sequence[tuple[int, Record]]) -> None:
        """Make one transaction durable."""
        for seq, record in batch:
            assert seq not in self.rows, f"sequence number {seq} is used twice"
            self.rows[seq] = (job_of(record), *encode(record))
        for _, record in batch:
            if isinstance(record, JobPurged):
                self.rows = {seq: row for seq, row in self.rows.items() if row[0] != record.job}
        self._compact()

    def _compact(self) -> None:
        loose = [seq for seq, row in self.rows.items() if not row[0]]
        if len(loose) >= self.compact_at:
            between = [seq for seq, row in self.rows.items() if row[0]]
            gone = superseded(list(self.read(loose)), lambda first, last: any(first < seq < last for seq in between))
            for seq in gone:
                del self.rows[seq]
            self.compact_at = max(256, 2 * (len(loose) - len(gone)))

    def read(self, seqs: Sequence[int]) -> Iterator[tuple[int, Record]]:
        """Durable records by number."""
        for seq in seqs:
            row = self.rows.get(seq)
            if row is not None:
                yield seq, decode(row[1], row[2])

    def replay(self) -> Iterator[tuple[int, Record]]:
        """All of them in order."""
        return self.read(sorted(self.rows))

    def back_up(self) -> None:
        """Keep a copy of what is durable now."""
        self.backups.append(dict(self.rows))

    def restore(self, backup: dict[int, Row]) -> None:
        """Go back in time, as the restoring command does it: with an epoch and a number beyond all that may have been since the backup."""
        self.rows = dict(backup)
        self.backups.clear()
        epochs = [record.epoch for _, record in self.replay() if isinstance(record, EpochStarted)]
        gap = EpochStarted(epoch=max(epochs, default=0) + EPOCHS_SKIPPED, wall_ns=0, history_gap=True)
        self.commit([(max(self.rows, default=0) + SEQS_SKIPPED, gap)])
