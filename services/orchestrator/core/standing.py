"""Which records of no job still stand, and which later ones have made superfluous: the journal drops these, and a replay comes to the same state."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise

from services.orchestrator.core import records
from services.orchestrator.core.records import Record


def superseded(loose: Sequence[tuple[int, Record]], tasks_between: Callable[[int, int], bool]) -> list[int]:
    """Sequence numbers of records that may go.

    Args:
        loose: all records of no job, in order.
        tasks_between: whether any record of a job lies between two numbers. Tasks remember the epoch in which they came.

    The last record always stays, so that no number is given twice.
    """
    newest: dict[Hashable, tuple[int, bool]] = {}
    """What a record is about -> (the last one about it, whether that says anything)."""
    epochs = [seq for seq, record in loose if isinstance(record, records.EpochStarted)]
    last_epoch = epochs[-1] if epochs else 0
    followed = dict(pairwise(epochs))
    gaps = {seq for seq, record in loose if isinstance(record, records.EpochStarted) and record.history_gap}
    keep: set[int] = {loose[-1][0]} if loose else set()
    highest_purge = (0, 0)
    for seq, record in loose:
        match record:
            case records.EpochStarted():
                # Before a gap too: between the two lie the epochs of what is undone.
                if seq in gaps or seq == last_epoch or followed[seq] in gaps or tasks_between(seq, followed[seq]):
                    keep.add(seq)
            case records.JobPurged():
                highest_purge = max(highest_purge, (record.job, seq))
                if seq > last_epoch:
                    keep.add(seq)
            case records.WorkerSeen() | records.WorkerLeft():
                newest["worker", record.worker_id] = seq, isinstance(record, records.WorkerSeen)
            case records.ParentBound() | records.ParentDone():
                newest["parent", record.job_id, record.index] = seq, isinstance(record, records.ParentBound)
            case _:
                keep.add(seq)
    keep.add(highest_purge[1])
    keep.update(seq for seq, stands in newest.values() if stands)
    return [seq for seq, _ in loose if seq not in keep]
