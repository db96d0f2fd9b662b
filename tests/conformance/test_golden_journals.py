"""Journals of every version so far are read to the last field, and what a newer version would write behaves as docs/operations.md says."""

from __future__ import annotations

import re
import shutil
import sqlite3
import zlib
from pathlib import Path
from typing import get_args

import msgpack
import pytest
from golden_journals import GOLDEN, RECORDS
from orchestrator_harness import durable_parts

from antfarm.errors import InvalidArgument
from antfarm.model import TaskState
from services.orchestrator import core
from services.orchestrator.core import records as r
from services.orchestrator.core.state import State
from services.orchestrator.journal.base import JournalBroken
from services.orchestrator.journal.codec import encode, job_of
from services.orchestrator.journal.sqlite import SqliteJournal


def copy_of(version: str, directory: Path) -> Path:
    shutil.copyfile(GOLDEN / f"{version}.sqlite", directory / "journal.sqlite")
    return directory


def read(directory: Path) -> list[tuple[int, r.Record]]:
    journal = SqliteJournal(directory)
    try:
        return list(journal.replay())
    finally:
        journal.close()


def written(version: str) -> list[tuple[int, r.Record]]:
    """The records that stand after their purges."""
    purged = {record.job for record in RECORDS[version] if isinstance(record, r.JobPurged)}
    return [(seq, record) for seq, record in enumerate(RECORDS[version], 1) if job_of(record) not in purged]


def state_of(rows: list[tuple[int, r.Record]]) -> State:
    state = State()
    for seq, record in rows:
        state.apply(seq, record)
    return state


def test_there_is_a_journal_of_every_version_and_nothing_else() -> None:
    assert {path.stem for path in GOLDEN.glob("*.sqlite")} == set(RECORDS)


def test_every_kind_of_record_that_version_1_wrote_is_in_its_journal() -> None:
    assert {encode(record)[0] for record in RECORDS["1"]} == set(range(1, 19))


def test_the_core_writes_only_what_the_last_release_can_read() -> None:
    """So that going back one version needs no step (ADR 19): a new kind is read by one version and written from the next one on."""
    sources = "".join(file.read_text() for file in Path(core.__file__).parent.glob("*.py"))
    kinds = {kind.__name__ for kind in get_args(r.Record)}
    written = kinds & set(re.findall(r"\brecords\.([A-Z]\w+)\(", sources))
    assert len(written) >= 18
    assert written <= {type(record).__name__ for record in RECORDS[max(RECORDS, key=int)]}


@pytest.mark.parametrize("version", RECORDS)
def test_a_journal_of_a_version_yields_exactly_what_was_written(version: str, tmp_path: Path) -> None:
    rows = read(copy_of(version, tmp_path))
    assert rows == written(version)
    assert durable_parts(state_of(rows)) == durable_parts(state_of(written(version)))


def test_version_1_in_words(tmp_path: Path) -> None:
    state = state_of(read(copy_of("1", tmp_path)))
    assert (state.seq, state.epoch, state.history_gap, state.next_job) == (33, 9, True, 6)
    assert state.seen == {"w1": False}
    assert [parent.token for parent in state.parents.values()] == [
        ("above", 4, 3, 2),
        ("above", 9, 3, 1),
        ("above", 8, 3, 2),
    ]
    assert [(parent.job, parent.local) for parent in state.parents.values()] == [(0, 0), (5, 2), (5, 1)]
    rich, dependent, cancelled = (state.by_id[job_id] for job_id in ("rich", "dependent", "cancelled"))
    assert len(state.jobs) == 4
    assert list(rich.states)[:2] == [TaskState.SUCCEEDED, TaskState.FAILED]
    assert (rich.template.resources, rich.template.limit.max_active) == ({"cpu": 0.5, "gpu": 1.0}, 3)
    assert (rich.notes[3].app_failures, rich.notes[3].infra_failures) == (1, 1)
    assert (dependent.paused, dependent.closed, dependent.retry_of) == (True, True, "rich")
    assert (list(cancelled.states), cancelled.cause) == ([TaskState.CANCELLED], "changed my mind")


@pytest.mark.parametrize("version", RECORDS)
def test_a_journal_of_a_version_goes_on(version: str, tmp_path: Path) -> None:
    rows = read(copy_of(version, tmp_path))
    more = [(rows[-1][0] + 1, r.EpochStarted(epoch=10, wall_ns=1))]
    journal = SqliteJournal(tmp_path)
    journal.append(more)
    journal.close()
    assert read(tmp_path) == rows + more


def insert(directory: Path, seq: int, kind: int, body: bytes) -> None:
    """A row as a newer version would write it."""
    crc = zlib.crc32(body, zlib.crc32(b"%d/%d/%d" % (seq, 0, kind)))
    with sqlite3.connect(directory / "journal.sqlite") as db:
        db.execute("INSERT INTO record VALUES (?, ?, ?, ?, ?)", (seq, 0, kind, crc, body))
    db.close()


def test_fields_of_a_newer_version_are_passed_over(tmp_path: Path) -> None:
    insert(copy_of("1", tmp_path), 34, 13, msgpack.packb(["w9", False, {"new": 1}, [2]]))
    assert read(tmp_path)[-1] == (34, r.WorkerSeen(worker_id="w9"))


def test_a_kind_of_record_of_a_newer_version_is_refused_by_name_and_nothing_is_changed(tmp_path: Path) -> None:
    insert(copy_of("1", tmp_path), 34, 99, msgpack.packb([1]))
    before = (tmp_path / "journal.sqlite").read_bytes()
    with pytest.raises(JournalBroken, match=r"record 34: record kind 99 is unknown to this version; use the version"):
        read(tmp_path)
    assert (tmp_path / "journal.sqlite").read_bytes() == before


def test_another_format_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(copy_of("1", tmp_path) / "journal.sqlite") as db:
        db.execute("UPDATE meta SET value = '2' WHERE key = 'format'")
    db.close()
    with pytest.raises(InvalidArgument, match=r"it has format 2, this version reads format 1; use the version"):
        read(tmp_path)
