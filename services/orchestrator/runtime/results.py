"""Recently recorded outcomes, kept in memory so that clients who follow a job are not served from the disk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from services.orchestrator.core.records import JobCancelled, Record, TasksEnded

CACHE_BYTES_MAX = 64 << 20
PART_BYTES_MAX = 4 << 20
"""What one reader may keep of records while its connection takes no more; a single record may be larger."""
_TASK_BYTES = 250
"""What an outcome costs beside its result, roughly."""


class ResultCache:
    """Durable TasksEnded and JobCancelled records by number; the oldest go when it is full."""

    def __init__(self, bytes_max: int = CACHE_BYTES_MAX) -> None:
        self._records: OrderedDict[int, tuple[int, Record]] = OrderedDict()
        self._bytes = 0
        self._bytes_max = bytes_max

    def add(self, batch: Sequence[tuple[int, Record]]) -> None:
        """Keep the records of a batch that end tasks."""
        for seq, record in batch:
            if isinstance(record, TasksEnded | JobCancelled):
                size = _size_bytes(record)
                self._records[seq] = (size, record)
                self._bytes += size
        while self._bytes > self._bytes_max:
            _, (size, _) = self._records.popitem(last=False)
            self._bytes -= size

    def get(self, seq: int) -> Record | None:
        """The record, when it is still here."""
        entry = self._records.get(seq)
        return entry[1] if entry is not None else None


def first_part(found: Sequence[tuple[int, Record]]) -> Sequence[tuple[int, Record]]:
    """The first records, as many as are together within PART_BYTES_MAX; one at least."""
    left = PART_BYTES_MAX
    for count, (_, record) in enumerate(found):
        left -= _size_bytes(record)
        if left < 0:
            return found[: max(count, 1)]
    return found


def _size_bytes(record: Record) -> int:
    """What it takes in memory, roughly."""
    if isinstance(record, TasksEnded):
        return sum([len(task.result) for task in record.ended]) + _TASK_BYTES * len(record.ended)
    return _TASK_BYTES
