"""Recently recorded outcomes, kept in memory so that clients who follow a job are not served from the disk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from services.orchestrator.core.records import JobCancelled, Record, TasksEnded

CACHE_BYTES_MAX = 64 << 20
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
            if isinstance(record, TasksEnded):
                size = sum(len(task.result) for task in record.ended) + _TASK_BYTES * len(record.ended)
            elif isinstance(record, JobCancelled):
                size = _TASK_BYTES
            else:
                continue
            self._records[seq] = (size, record)
            self._bytes += size
        while self._bytes > self._bytes_max:
            _, (size, _) = self._records.popitem(last=False)
            self._bytes -= size

    def get(self, seq: int) -> Record | None:
        """The record, when it is still here."""
        entry = self._records.get(seq)
        return entry[1] if entry is not None else None
