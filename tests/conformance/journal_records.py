"""Records that follow from their sequence number, so that whoever reads a journal knows what must be in it."""

from __future__ import annotations

from antfarm.model import TaskState
from services.orchestrator.core import records as r
from services.orchestrator.core.records import Record
from services.orchestrator.journal.base import Journal

Row = tuple[int, Record]


def record_of(seq: int, payload_bytes: int = 300) -> Record:
    """The record of that number: outcomes and submissions in turn, of job 1 to 4."""
    if seq % 3:
        ended = r.EndedTask(
            index=seq, state=TaskState.SUCCEEDED, epoch=1, attempt=1, result=b"result %d " % seq * (payload_bytes // 12)
        )
        return r.TasksEnded(job=seq % 4 + 1, worker_id="w1", ended=[ended])
    payloads = [b"payload %d " % seq * (payload_bytes // 24)] * 2
    return r.TasksAdded(job=seq % 4 + 1, first_index=seq, payloads=payloads, wall_ns=seq)


def rows(first: int, end: int, payload_bytes: int = 300) -> list[Row]:
    """Records first..end-1."""
    return [(seq, record_of(seq, payload_bytes)) for seq in range(first, end)]


def append_batches(journal: Journal, count: int, seq: int = 1) -> int:
    """Append so many batches, the first from that number on; the number that comes next."""
    for _ in range(count):
        batch = batch_from(seq)
        journal.append(batch)
        seq = batch[-1][0] + 1
    return seq


def batch_from(seq: int) -> list[Row]:
    """A batch of one to seven records, where it ends follows from where it begins."""
    return rows(seq, seq + 1 + seq * 7919 % 7)
