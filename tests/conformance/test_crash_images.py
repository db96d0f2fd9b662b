"""Images of the journal's files as a loss of power may leave them: whatever was acknowledged is there, in any of them.

A commit writes the log and syncs it; then the log may be moved into the main file, which is synced in turn. So a crash between two acknowledgements
leaves either any part of the new log beside the old main file, or the whole new log beside a main file of old and new pages. Each sector is
old or new; the log's header, which is synced by itself before the first frame of a new round, is old or new. `make crash-images` makes ten thousand of them.
"""

from __future__ import annotations

import os
import random
import shutil
import struct
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


HOT = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + struct.pack(">5I", 0, 7, 0, SECTOR, 4096).ljust(SECTOR - 8, b"\0")
"""SQLite's own journal of the first write into a new file: before it the file was empty."""


def test_whatever_a_crash_leaves_of_a_first_start_it_starts(tmp_path: Path) -> None:
    """The main file's first page is synced, then the log is made: header, sync, the first transaction. No part of that is taken for damage."""
    journal = SqliteJournal(tmp_path / "live")
    main, log = (tmp_path / "live" / MAIN).read_bytes(), (tmp_path / "live" / WAL).read_bytes()
    journal.close()
    assert len(main) == 4096
    assert len(log) > HEADER + 4096
    target, undo = tmp_path / "image", f"{MAIN}-journal"
    images: list[dict[str, bytes]] = [
        {},
        *({MAIN: content} for content in (b"", main)),
        *({MAIN: content, undo: HOT} for content in (b"", bytes(4096), main[:SECTOR], main)),
        *({MAIN: main, undo: HOT, WAL: content} for content in (b"", bytes(HEADER), log[:HEADER])),
        {MAIN: b"", WAL: b""},
        {MAIN: b"", WAL: log[:HEADER]},  # undone by a start that was killed in its turn
        *({MAIN: main, WAL: log[:length]} for length in range(0, len(log) + 1, SECTOR // 8)),
    ]
    for number, image in enumerate(images):
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for name, content in image.items():
            (target / name).write_bytes(content)
        journal = SqliteJournal(target)
        journal.append(rows(1, 2))
        journal.close()
        journal = SqliteJournal(target)
        assert list(journal.replay()) == rows(1, 2), f"image {number}"
        journal.close()
