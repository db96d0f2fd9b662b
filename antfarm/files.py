"""Files that must survive a loss of power."""

from __future__ import annotations

import os
from pathlib import Path


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
