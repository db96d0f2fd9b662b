"""The seam between the orchestrator and what makes its records durable. Every engine passes the same conformance tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from services.orchestrator.core.records import Record


class JournalFull(Exception):
    """No room: nothing of the batch was kept, and the same batch may be appended again when there is room."""


class JournalBroken(Exception):
    """A write or sync failed in a way that leaves its outcome unknown, a record could not be read, or the content is damaged: stop and recover.

    The message says where and what to do.
    """


class BackupStopped(Exception):
    """It is not wanted any more, and nothing is left of it."""


LOOSE_RECORDS_MAX = 4_000
"""Records of no job after which a journal looks which of them still stand: again when there are twice as many as stood."""


class Journal(Protocol):
    """Blocking; used by one thread at a time."""

    orchestrator_id: str
    """Stable id, made with the journal."""

    def replay(self) -> Iterator[tuple[int, Record]]:
        """All records in order. JournalBroken names the place of any damage but a torn tail that was never acknowledged."""
        ...

    def append(self, records: Sequence[tuple[int, Record]]) -> None:
        """Make records durable, all of them or none. JournalFull, JournalBroken.

        A JobPurged takes all records of its job with it, and records of no job go when later ones have superseded them.
        """
        ...

    def read(self, seqs: Sequence[int]) -> list[tuple[int, Record]]:
        """The records of these sequence numbers, in the order asked for; purged ones are left out."""
        ...

    def back_up(self, stopped: Callable[[], bool] = ...) -> Path:
        """A file with all that is durable now, verified, alone in a directory that the caller removes. JournalFull without room, JournalBroken.

        May run in a thread of its own, while another appends. Ends soon when `stopped` is true, which it asks often: BackupStopped.
        """
        ...

    def history(self, job: int, first: int, last: int) -> list[tuple[int, Record]]:
        """Records of single attempts (`codec.ATTEMPT_KINDS`) of a job with numbers from `first` to `last`, in order.

        The caller bounds the span: it costs up to a look at each record in it.
        """
        ...

    def newest(self, job: int, last: int) -> int:
        """The highest number up to `last` of a record of a job, 0 when there is none: at no cost however many numbers lie between."""
        ...

    def free_bytes(self) -> tuple[int, int]:
        """(free, total) bytes where the journal lies."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...
