"""What every journal does; the file that a new one joins by one line in `JOURNALS`."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from journal_records import record_of, rows

from antfarm.model import Failure, FailureClass, JobId, JobSpec, TaskTemplate
from services.orchestrator.core import records as r
from services.orchestrator.journal.base import Journal, JournalBroken
from services.orchestrator.journal.memory import MemoryJournal
from services.orchestrator.journal.sqlite import SqliteJournal


def reopen_memory(journal: Journal | None, path: Path) -> Journal:
    return journal or MemoryJournal()


def reopen_sqlite(journal: Journal | None, path: Path) -> Journal:
    if journal is not None:
        journal.close()
    return SqliteJournal(path / "state")


JOURNALS: dict[str, Callable[[Journal | None, Path], Journal]] = {"memory": reopen_memory, "sqlite": reopen_sqlite}
"""How to make each journal (None), and how to close it and open it again."""


class Shelf:
    """A journal that can be closed and opened again."""

    def __init__(self, reopen: Callable[[Journal | None, Path], Journal], path: Path) -> None:
        self._reopen = reopen
        self._path = path
        self.journal = reopen(None, path)

    def reopen(self) -> Journal:
        self.journal = self._reopen(self.journal, self._path)
        return self.journal


@pytest.fixture(params=JOURNALS)
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shelf]:
    shelf = Shelf(JOURNALS[request.param], tmp_path)
    yield shelf
    shelf.journal.close()


@pytest.fixture
def journal(shelf: Shelf) -> Journal:
    return shelf.journal


def test_a_new_journal_is_empty_and_has_an_id(journal: Journal) -> None:
    assert list(journal.replay()) == []
    assert journal.read([1, 2]) == []
    assert journal.orchestrator_id


def test_replay_gives_all_batches_in_the_order_of_their_numbers(journal: Journal) -> None:
    journal.append(rows(1, 4))
    journal.append(rows(4, 5))
    journal.append([])
    journal.append(rows(7, 12))
    assert list(journal.replay()) == rows(1, 5) + rows(7, 12)


def test_what_was_appended_is_there_after_closing_and_opening(shelf: Shelf) -> None:
    name = shelf.journal.orchestrator_id
    shelf.journal.append(rows(1, 50))
    journal = shelf.reopen()
    assert journal.orchestrator_id == name
    assert list(journal.replay()) == rows(1, 50)
    journal.append(rows(50, 60))
    assert list(shelf.reopen().replay()) == rows(1, 60)


def test_read_gives_records_in_the_order_asked_for_and_leaves_out_what_is_not_there(journal: Journal) -> None:
    journal.append(rows(1, 10))
    assert journal.read([9, 2, 77, 5, 2]) == [(seq, record_of(seq)) for seq in (9, 2, 5, 2)]
    assert journal.read([]) == []


def test_history_gives_the_attempts_of_one_job_between_two_numbers_in_order(shelf: Shelf) -> None:
    failure = Failure(failure_class=FailureClass.APP, message="no")

    def failed(job: int, index: int) -> r.AttemptFailed:
        return r.AttemptFailed(
            job=job, index=index, epoch=1, attempt=1, worker_id="w", failure=failure, app_failures=1, crashes=0, infra_failures=0
        )  # fmt: skip

    issued = r.AttemptIssued(job=1, index=2, epoch=1, attempt=1, worker_id="w")
    records: list[r.Record] = [
        failed(1, 0), failed(2, 0), issued, r.JobClosed(job=1), r.AttemptReturned(job=1, index=2), failed(1, 1)
    ]  # fmt: skip
    shelf.journal.append(list(enumerate(records, start=1)))
    for reopened in (False, True):
        journal = shelf.reopen() if reopened else shelf.journal
        assert journal.history(1, 1, 6) == [(1, records[0]), (3, issued), (5, records[4]), (6, records[5])]
        assert journal.history(1, 2, 5) == [(3, issued), (5, records[4])]
        assert journal.history(2, 3, 99) == []
    shelf.journal.append([(7, r.JobPurged(job=1))])
    assert shelf.journal.history(1, 1, 9) == []


def test_the_newest_record_of_a_job_is_found_over_any_gap(shelf: Shelf) -> None:
    far = 1 << 50
    records = [(2, r.JobClosed(job=1)), (3, r.JobClosed(job=2)), (4, r.JobClosed(job=1)), (far, r.JobClosed(job=1))]
    shelf.journal.append(records)
    for reopened in (False, True):
        journal = shelf.reopen() if reopened else shelf.journal
        found = [journal.newest(1, last) for last in (1, 2, 3, 4, far - 1, far, far + 9)]
        assert found == [0, 2, 2, 4, 4, far, far]
        assert (journal.newest(2, far), journal.newest(3, far)) == (3, 0)
    shelf.journal.append([(far + 1, r.JobPurged(job=1))])
    assert shelf.journal.newest(1, far) == 0


def test_any_number_of_records_can_be_read_at_once(journal: Journal) -> None:
    journal.append(rows(1, 1301))
    backwards = list(range(1300, 0, -1))
    assert [seq for seq, _ in journal.read(backwards)] == backwards


def test_a_purge_removes_the_records_of_that_job_alone(shelf: Shelf) -> None:
    shelf.journal.append([(1, r.EpochStarted(epoch=1, wall_ns=1)), *rows(2, 30)])
    shelf.journal.append([(30, r.JobPurged(job=2))])
    kept = [row for row in rows(2, 30) if row[1].job != 2]  # type: ignore[union-attr]
    assert len(kept) == 21
    expected = [(1, r.EpochStarted(epoch=1, wall_ns=1)), *kept, (30, r.JobPurged(job=2))]
    for reopened in (False, True):
        journal = shelf.reopen() if reopened else shelf.journal
        assert list(journal.replay()) == expected
        assert journal.read([5, 6]) == [(6, record_of(6))], "5 is of job 2"


def test_a_job_can_be_purged_in_the_batch_that_made_it(journal: Journal) -> None:
    spec = JobSpec(template=TaskTemplate(type="t"))
    created = r.JobCreated(job=9, job_id=JobId("j"), spec=spec, wall_ns=1)
    journal.append([(1, created), (2, r.JobClosed(job=9)), (3, r.JobPurged(job=9)), (4, r.JobClosed(job=8))])
    assert list(journal.replay()) == [(3, r.JobPurged(job=9)), (4, r.JobClosed(job=8))]


def test_a_number_that_is_used_twice_is_refused_and_nothing_of_the_batch_is_kept(shelf: Shelf) -> None:
    shelf.journal.append(rows(1, 5))
    with pytest.raises(JournalBroken):
        shelf.journal.append([(5, record_of(5)), (3, record_of(3))])
    with pytest.raises(JournalBroken):
        shelf.journal.append([(6, record_of(6)), (6, record_of(6))])
    assert list(shelf.reopen().replay()) == rows(1, 5)


def test_a_record_that_cannot_be_written_keeps_its_whole_batch_out(journal: Journal) -> None:
    with pytest.raises(UnicodeEncodeError):
        journal.append([(1, r.JobClosed(job=1)), (2, r.JobCancelled(job=1, cause="\ud800"))])
    assert list(journal.replay()) == []
    journal.append(rows(1, 3))
    assert list(journal.replay()) == rows(1, 3)


def test_free_bytes_are_some_of_all(journal: Journal) -> None:
    free, total = journal.free_bytes()
    assert 0 < free <= total


def test_sqlite_syncs_every_commit(tmp_path: Path) -> None:
    """The settings that durability rests on are those in force, not only those asked for."""
    journal = SqliteJournal(tmp_path)
    in_force = {
        name: journal._db.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "locking_mode")
    }
    journal.close()
    assert in_force == {"journal_mode": "wal", "synchronous": 2, "locking_mode": "exclusive"}
    assert sqlite3.threadsafety >= 1
