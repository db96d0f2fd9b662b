"""A process that appends to a journal as fast as it can and prints each sequence number once it is acknowledged. It is meant to be killed."""

from __future__ import annotations

import sys
from pathlib import Path

from journal_records import append_batches

from services.orchestrator.journal.sqlite import SqliteJournal

if __name__ == "__main__":
    journal = SqliteJournal(Path(sys.argv[1]))
    seq = max((seq for seq, _ in journal.replay()), default=0) + 1
    while True:
        seq = append_batches(journal, 1, seq)
        print(seq - 1, flush=True)  # noqa: T201 - what its reader waits for
