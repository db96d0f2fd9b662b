"""Recorded outcomes as messages of bounded size.

Plain successes, nearly all, travel as columns where the reader asked for that: a message for each of many takes five times as long to make.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from antfarm import wire
from antfarm.model import BATCH_BYTES_MAX, TaskState
from antfarm.v1 import job_pb2
from services.orchestrator.core.records import EndedTask, Record
from services.orchestrator.core.state import Job
from services.orchestrator.runtime.views import outcomes_of

RESULTS_IN_MESSAGE_MAX = 4_096
_ROW_BYTES = 32
"""What a row of the columns takes beside its result, at most."""
_SUCCEEDED = TaskState.SUCCEEDED


def messages(
    found: Sequence[tuple[int, Record]],
    job: Job,
    wanted: frozenset[int] | None,
    cursor: int,
    *,
    columns: bool,
    last: bool,
) -> Iterator[job_pb2.StreamResultsResponse]:
    """What these records say of the job's tasks, all or the wanted ones; made one by one.

    A record larger than one message repeats the cursor before it until its last part. `last`: after these records nothing is left to say.
    """
    growing = _Message()
    for seq, record in found:
        worker_id, outcomes = outcomes_of(record, job, wanted)
        plain, others = _split(outcomes) if columns else ([], outcomes)
        while plain:
            plain = plain[growing.extend(plain, worker_id) :]
            if plain:
                yield growing.end(cursor)
                growing = _Message()
        for task in others:
            if not growing.add(task, worker_id):
                yield growing.end(cursor)
                growing = _Message()
                growing.add(task, worker_id)
        cursor = seq
    if found:
        yield growing.end(cursor, last=last)


def _split(outcomes: Iterable[EndedTask]) -> tuple[Sequence[EndedTask], Sequence[EndedTask]]:
    """(what columns can say, what only a TaskResult can)."""
    tasks = list(outcomes)
    plain = [task for task in tasks if task.state is _SUCCEEDED and not task.outputs]
    if len(plain) == len(tasks):
        return plain, []
    return plain, [task for task in tasks if task.state is not _SUCCEEDED or task.outputs]


class _Message:
    """A message as it grows. Something always goes into an empty one."""

    def __init__(self) -> None:
        self._message = job_pb2.StreamResultsResponse()
        self._results = self._message.results
        self._columns: job_pb2.SucceededTasks | None = None
        self._count = 0
        self._size_bytes = 0

    def extend(self, tasks: Sequence[EndedTask], worker_id: str) -> int:
        """Take the first ones, as many as there is room for. How many that are."""
        sizes = accumulate([len(task.result) + _ROW_BYTES for task in tasks[: RESULTS_IN_MESSAGE_MAX - self._count]])
        ends = list(sizes)
        count = bisect_right(ends, BATCH_BYTES_MAX - self._size_bytes) or int(not self._count)
        if not count:
            return 0
        taken = tasks if count == len(tasks) else tasks[:count]
        columns = self._columns
        if columns is None or columns.worker_id != worker_id:
            columns = self._columns = self._message.succeeded.add(worker_id=worker_id)
        columns.indices.extend([task.index for task in taken])
        columns.attempts.extend([task.attempt for task in taken])
        columns.run_us.extend([task.run_us for task in taken])
        columns.results.extend([task.result for task in taken])
        self._count += count
        self._size_bytes += ends[count - 1]
        return count

    def add(self, task: EndedTask, worker_id: str) -> bool:
        """Take one as a message of its own; False when there is no room."""
        size = wire.ended_to_wire(task, worker_id, self._results.add).ByteSize() + 8
        if self._count and (self._size_bytes + size > BATCH_BYTES_MAX or self._count >= RESULTS_IN_MESSAGE_MAX):
            del self._results[-1]
            return False
        self._count += 1
        self._size_bytes += size
        return True

    def end(self, cursor: int, *, last: bool = False) -> job_pb2.StreamResultsResponse:
        """It is whole."""
        self._message.cursor, self._message.last = cursor, last
        return self._message
