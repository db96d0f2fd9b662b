"""Putting a backup of the journal into an empty state directory.

Whoever starts from a backup goes back in time: outcomes that were acknowledged since are not in it, nor are the epochs that began since. No token of
these may be issued a second time, and workers obey no epoch below the highest that they have seen. Nor may a record have the number of one that is lost:
clients resume behind the last number that they were told, and would never hear of what got a lower one. So the restored journal begins far above in both
(`EPOCHS_SKIPPED`, `SEQS_SKIPPED`), and says that its history has a gap.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from antfarm.errors import InvalidArgument
from antfarm.files import sync
from services.orchestrator.core.records import EpochStarted
from services.orchestrator.core.state import State
from services.orchestrator.journal.base import JournalBroken, JournalFull
from services.orchestrator.journal.sqlite import SqliteJournal, lock_directory

EPOCHS_SKIPPED = 1_000_000
"""More than an orchestrator began since any backup: one epoch a start. The field has room for four thousand restores."""
SEQS_SKIPPED = 1 << 40
"""More than any orchestrator recorded since a backup: at a million records a second that takes twelve days of nothing else. SQLite's numbers, and those
that every language holds exactly (2^53), have room for eight thousand restores."""
_ROOM = "make room on the disk of --state"
_LOOK = "look at the disk of --state"


def restore(backup: Path, directory: Path, wall_ns: int) -> State:
    """Make the backup the journal of the directory; what it holds. Until the last step the directory has no journal.

    InvalidArgument in one line when the backup is none, is damaged, finds no room, or the directory has a journal.
    """
    lock = lock_directory(directory)
    try:
        journal = directory / "journal.sqlite"
        if journal.exists() or journal.with_name("journal.sqlite-wal").exists():
            raise InvalidArgument(f"--state {directory} has a journal: move it away, or give another directory")
        making = directory / "restoring"
        shutil.rmtree(making, ignore_errors=True)
        try:
            making.mkdir()
            state = _made(backup, making, wall_ns)
            os.link(making / journal.name, journal)  # never in place of another
            sync(directory)
        finally:
            shutil.rmtree(making, ignore_errors=True)
        return state
    finally:
        lock.close()


def _made(backup: Path, making: Path, wall_ns: int) -> State:
    try:
        shutil.copyfile(backup, making / "journal.sqlite")
    except OSError as error:
        advice = _ROOM if error.errno == errno.ENOSPC else "give the file of a backup"
        raise InvalidArgument(f"--restore {backup}: {error.strerror}; {advice}") from None
    try:
        journal = SqliteJournal(making)
    except InvalidArgument as error:
        raise InvalidArgument(
            f"--restore {backup} is not a backup of an orchestrator, or is damaged: {error}"
        ) from None
    state = State()
    try:
        for seq, record in journal.replay():
            state.apply(seq, record)
        if not state.epoch:
            raise InvalidArgument(f"--restore {backup}: nothing is in it; give the file of a backup")
        epoch = EpochStarted(epoch=state.epoch + EPOCHS_SKIPPED, wall_ns=wall_ns, history_gap=True)
        state.apply(state.seq + SEQS_SKIPPED, epoch)
        journal.append([(state.seq, epoch)])
        journal.into_one_file()  # only this one is put in place
    except JournalBroken as error:
        raise InvalidArgument(f"--restore {backup}: {error}") from None
    except JournalFull as error:
        raise InvalidArgument(f"--restore {backup}: {error}; {_ROOM}") from None
    except (AssertionError, LookupError) as error:
        raise InvalidArgument(
            f"--restore {backup}: a record does not follow from those before it ({error!r})"
        ) from None
    finally:
        journal.close()
    log = making / "journal.sqlite-wal"
    if log.exists() and log.stat().st_size:
        raise InvalidArgument(f"--restore {backup}: the record of the new epoch did not get into the journal; {_LOOK}")
    sync(making / "journal.sqlite")
    return state
