"""Ballast: a file that does nothing but keep a little room, given up when the disk is full so that what has run can still be recorded.

New tasks are refused long before (`reserve_bytes`), so whatever fills the disk after that is small or somebody else's. The ballast is made
again when it fits above the reserve, never by squeezing what little is left.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

log = logging.getLogger("antfarm.orchestrator")

RESERVE_BYTES = 1 << 30
RESERVE_SHARE = 0.05
SHARE_MAX = 0.02
"""The most of a disk that ballast takes: a small disk is wanted for the journal."""


def reserve_bytes(total: int) -> int:
    """With less than this free on a disk of `total` bytes, new tasks are refused."""
    return int(min(RESERVE_BYTES, total * RESERVE_SHARE))


class Ballast:
    """The file, there or not."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        """Nothing is made yet. `size_bytes` 0: there never is any. OSError when its disk cannot be looked at."""
        self._path = path
        self._size_bytes = size_bytes
        self.there = path.exists()
        if self.there and path.stat().st_size < self._size(shutil.disk_usage(path.parent).total):
            path.unlink()  # cut short by a kill while it was made: it would count as whole for ever
            self.there = False

    def _size(self, total: int) -> int:
        return int(min(self._size_bytes, total * SHARE_MAX))

    def keep(self) -> None:
        """Make it when it is missing and fits above the reserve. A disk that does not allow it is as good as one without room.

        OSError when the disk cannot be looked at.
        """
        if self.there or not self._size_bytes:
            return
        usage = shutil.disk_usage(self._path.parent)
        size = self._size(usage.total)
        if size == 0 or usage.free - size < reserve_bytes(usage.total):
            return
        try:
            with self._path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError:
            self._path.unlink(missing_ok=True)
            return
        self.there = True

    def give_up(self) -> bool:
        """Free its room. False when there was none to free."""
        if not self.there:
            return False
        size = self._path.stat().st_size if self._path.exists() else 0
        self._path.unlink(missing_ok=True)
        self.there = False
        log.warning("the journal's disk is full: %d KiB of ballast were given up, make room", size >> 10)
        return size > 0
