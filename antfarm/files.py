"""Files that must survive a loss of power, and locks that keep other processes out."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from antfarm.errors import InvalidArgument


def sync(path: Path | str) -> None:
    """Make what a file or the entries of a directory hold durable. OSError when that fails: then nobody knows what is on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, text: str) -> None:
    """Replace a small file, all or nothing. The directory is the caller's to sync."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)  # one whose sync failed before is never synced again
    with open(fresh, "x") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)


def lock(fd: int, path: Path, where: str) -> bool:
    """Lock an open file for as long as it or a copy of it is open, in whatever process. False when another process has it.

    InvalidArgument, told as of `where`, when its file system has no locks.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise InvalidArgument(
            f"{where}: {path} cannot be locked: {error.strerror}; give a directory of a local disk"
        ) from None
    return True
