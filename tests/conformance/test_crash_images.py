"""Images of the journal's files as a loss of power may leave them: whatever was acknowledged is there, in any of them.

A commit writes the log and syncs it; then the log may be moved into the main file, which is synced in turn. So a crash between two acknowledgements
leaves either any part of the new log beside the old main file, or the whole new log beside a main file of old and new pages. Each sector is
old or new; the log's header, which is synced by itself before the first frame of a new round, is old or new. `make crash-images` makes ten thousand of them.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from journal_records import append_batches, rows

from services.orchestrator.journal import sqlite
from services.orchestrator.journal.sqlite import SqliteJournal

MAIN, WAL = "journal.sqlite", "journal.sqlite-wal"
IMAGES = int(os.environ.get("ANTFARM_CRASH_IMAGES", "200"))
SECTOR = 512
HEADER = 32
COMMITS = 60


def mixed(rng: random.Random, old: bytes, new: bytes) -> bytes:
    """What is on the disk when any of the writes from old to new were lost or torn."""
    chance = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0])
    content = bytearray(old if len(old) >= len(new) or rng.random() < 0.3 else old + bytes(len(new) - len(old)))
    for start in range(0, min(len(content), len(new)), SECTOR):
        if rng.random() < chance:
            end = start + SECTOR
            content[start:end] = new[start:end][: len(content) - start]
    return bytes(content)


def mixed_log(rng: random.Random, old: bytes, new: bytes) -> bytes:
    """The log while a commit is written into it. A new header is on the disk before any frame is."""
    if old[:HEADER] != new[:HEADER] and rng.random() < 0.2:
        return (new[:HEADER] if rng.random() < 0.5 else old[:HEADER]) + old[HEADER:]
    return new[:HEADER] + mixed(rng, new[:HEADER] + old[HEADER:], new)[HEADER:]


def history(directory: Path) -> list[tuple[int, bytes, bytes]]:
    """(last acknowledged record, main file, log) after each commit; the log was moved several times."""
    journal = SqliteJournal(directory)
    states, seq = [], 1
    for _ in range(COMMITS):
        seq = append_batches(journal, 1, seq)
        states.append((seq - 1, (directory / MAIN).read_bytes(), (directory / WAL).read_bytes()))
    journal.close()
    return states


@pytest.mark.slow
def test_whatever_a_crash_leaves_everything_acknowledged_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_LOG_PAGES_MAX", 60)
    states = history(tmp_path / "live")
    moves = [at for at in range(1, COMMITS) if states[at - 1][1] != states[at][1]]
    assert len(moves) >= 3, "the log was moved into the main file"
    rng = random.Random(31)
    target = tmp_path / "image"
    lost = 0
    for number in range(IMAGES):
        at = rng.choice(moves) if number % 2 else rng.randrange(1, COMMITS)
        (before, old_main, old_log), (after, new_main, new_log) = states[at - 1], states[at]
        moving = old_main != new_main and rng.random() < 0.5
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        (target / MAIN).write_bytes(mixed(rng, old_main, new_main) if moving else old_main)
        (target / WAL).write_bytes(new_log if moving else mixed_log(rng, old_log, new_log))
        journal = SqliteJournal(target)
        found = list(journal.replay())
        journal.close()
        acknowledged = after if moving else before
        assert found in (rows(1, acknowledged + 1), rows(1, after + 1)), f"image {number}, commit {at}"
        lost += len(found) < after
    assert 0 < lost < IMAGES, "some commits were cut off, others stood"
