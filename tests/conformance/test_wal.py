"""A log that a killed process left is looked at without being summed in Python, and nothing is changed by looking."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from journal_records import append_batches

from antfarm.errors import InvalidArgument
from services.orchestrator.journal import wal
from services.orchestrator.journal.sqlite import SqliteJournal

MAIN, LOG = "journal.sqlite", "journal.sqlite-wal"
PAGE_BYTES = 24 + 4096


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """The directory of a journal as SIGKILL leaves it."""
    journal = SqliteJournal(tmp_path / "live")
    append_batches(journal, 10)
    shutil.copytree(tmp_path / "live", tmp_path / "left")
    journal.close()
    return tmp_path / "left"


@pytest.fixture
def summed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of what was summed in Python."""
    lengths: list[int] = []
    real = wal._sum

    def note(content: bytes, before: wal.Sums, big: bool) -> wal.Sums:
        lengths.append(len(content))
        return real(content, before, big)

    monkeypatch.setattr(wal, "_sum", note)
    return lengths


def test_what_sqlite_takes_is_not_summed_again_and_nothing_is_changed(left: Path, summed: list[int]) -> None:
    before = {path.name: path.read_bytes() for path in left.iterdir()}
    assert (len(before[LOG]) - 32) // PAGE_BYTES > 10
    wal.check(left / LOG)
    assert summed == [24]  # the log's own header
    assert {path.name: path.read_bytes() for path in left.iterdir()} == before


def test_where_sqlite_cannot_read_the_main_file_every_frame_is_summed(left: Path, summed: list[int]) -> None:
    frames = (len((left / LOG).read_bytes()) - 32) // PAGE_BYTES
    (left / MAIN).unlink()
    (left / MAIN / "no database").mkdir(parents=True)
    wal.check(left / LOG)
    assert summed == [24] + [PAGE_BYTES - 16] * frames


@pytest.mark.parametrize("state", ["missing", "empty"])
def test_a_log_whose_main_file_is_gone_is_refused_and_kept(left: Path, state: str) -> None:
    """SQLite would throw it away, and begin a new journal in which nothing was ever acknowledged."""
    log, main = (left / LOG).read_bytes(), (left / MAIN).read_bytes()
    if state == "missing":
        (left / MAIN).unlink()
    else:
        os.truncate(left / MAIN, 0)
    for _ in range(2):
        with pytest.raises(InvalidArgument) as caught:
            SqliteJournal(left)
        assert str(caught.value) == (
            f"journal {left / MAIN}: journal.sqlite is {state}, but journal.sqlite-wal beside it has records;"
            " restore it from a backup or give another --state"
        )
        assert (left / LOG).read_bytes() == log
    (left / MAIN).write_bytes(main)
    journal = SqliteJournal(left)
    assert len(list(journal.replay())) > 10
    journal.close()


def test_damage_after_what_sqlite_takes_is_found_where_it_is(left: Path, summed: list[int]) -> None:
    log = bytearray((left / LOG).read_bytes())
    frames = (len(log) - 32) // PAGE_BYTES
    damaged = 32 + (frames // 2) * PAGE_BYTES
    log[damaged + 1000] ^= 255
    log[damaged + 2000] ^= 255
    (left / LOG).write_bytes(log)
    with pytest.raises(wal.WalDamaged, match=rf"^journal.sqlite-wal is damaged at byte {damaged}, before transactions"):
        wal.check(left / LOG)
    assert len(summed) < frames // 2


def test_an_index_that_is_not_of_this_log_is_not_believed(left: Path) -> None:
    log = (left / LOG).read_bytes()
    assert wal._frames_taken(left / LOG, log) == (len(log) - 32) // PAGE_BYTES
    other_salts = log[:16] + bytes(8) + log[24:]
    assert wal._frames_taken(left / LOG, other_salts) == 0
