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
