"""One farm for one state directory: the lock of whoever runs it, and the note that tells others where it serves.

The embedded farm keeps the same two files, so that neither takes the other's directory; its note outlives it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antfarm import files
from antfarm.errors import InvalidArgument, WrongState

_LOCK, _NOTE = "lock", "farm.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A state directory that is this process's own. Programs that inherit `lock` keep it from others until they have ended too."""

    directory: Path
    lock: int

    def tell(self, orchestrator: str, storage: str) -> None:
        """Let others know where the farm serves."""
        write_note(self.directory, {"pid": os.getpid(), "orchestrator": orchestrator, "storage": storage})


@contextmanager
def claim(directory: Path) -> Iterator[Claim]:
    """Have the directory for one's own within the block. WrongState in one line when another farm runs there."""
    try:
        lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InvalidArgument(f"{error.filename}: {error.strerror}; choose another state directory") from None
    try:
        if not files.lock(lock, directory / _LOCK, f"the state directory {directory}"):
            raise WrongState(_taken(directory))
        (directory / _NOTE).unlink(missing_ok=True)  # of one that was killed
        try:
            yield Claim(directory=directory, lock=lock)
        finally:
            (directory / _NOTE).unlink(missing_ok=True)
    finally:
        os.close(lock)


def _taken(directory: Path) -> str:
    note = read_note(directory)
    if "orchestrator" not in note:
        return f"a farm starts or ends in {directory} just now: try again in a moment, or give --state DIR"
    if not alive(note.get("pid")):
        return f"the farm that ran in {directory} was killed and is ending: try again in a moment, or give --state DIR"
    return f"a farm runs here already ({note['orchestrator']}): use it, or give --state DIR"


def read_note(directory: Path) -> dict[str, Any]:
    """What is noted of the farm of a state directory; empty when nothing is, or nothing that can be read."""
    try:
        found = json.loads((directory / _NOTE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_note(directory: Path, note: Mapping[str, Any]) -> None:
    """Note it, whole or not at all."""
    temporary = directory / f"{_NOTE}.tmp"
    temporary.write_text(json.dumps(note))
    temporary.replace(directory / _NOTE)


def alive(pid: Any) -> bool:
    """True when a process of that number runs; what is no number is none."""
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
