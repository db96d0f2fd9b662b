"""The outbox file: reports that have no final verdict yet survive the agent's death.

Append-only records of length, CRC and one serialised `Reports` message; a torn end is left out when it is loaded. Written, not synced: the
death of the process loses nothing, the loss of the whole machine loses reports of attempts that the orchestrator then runs again.

Beside it a note says whose queue the reports are of: another orchestrator may have tasks of the same names. The note is durable before the first report of
that queue is kept.
"""

from __future__ import annotations

import json
import logging
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from antfarm.errors import InvalidArgument
from antfarm.files import sync, write_durably

log = logging.getLogger("antfarm.worker")

_HEAD = struct.Struct("<II")
_UNNOTED = "whose reports they are cannot be noted, so they are kept in memory only"
_UNKEPT = "reports are kept in memory only"
_UNREPLACED = "it cannot be written anew, so some reports are kept in memory only"
_UNCUT = "it cannot be shortened, so reports that have their verdict may be sent again"


class FileOutbox:
    """An `antfarm.link.Outbox` in a file. A disk that is full or fails is complained about once and costs the survival of reports only.

    Raises InvalidArgument in one line when the file cannot be opened or read at the start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._note = path.with_name("queue.json")
        self._aside = path.with_suffix(".new")
        with self._at_the_start():
            self._aside.unlink(missing_ok=True)  # of a process that died while it wrote it
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._size = os.fstat(self._fd).st_size
            self._queue = _read_note(self._note)
        self._noted = True  # what is appended belongs to whom the note names
        self._torn = False  # behind _size lies what is no message, and what was appended to it would not be found again
        self._complaints: set[str] = set()

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return self._size

    @property
    def queue(self) -> str:
        """Id of the orchestrator whose queue the reports are of; empty when none has said it."""
        return self._queue

    def belong(self, queue: str) -> None:
        """Note it before anything is kept. Blocks for one sync, when it is another one than before. Where it cannot be noted nothing is kept."""
        self._noted = queue == self._queue or (self._emptied() and self._note_down(queue))

    def _emptied(self) -> bool:
        """Whether nothing is kept of another queue. Something is where the file could not be emptied when that was given up."""
        return not self._queue or not self._size or self._truncate(0)

    def _note_down(self, queue: str) -> bool:
        try:
            write_durably(self._note, json.dumps(queue) + "\n")
            sync(self._note.parent)
        except OSError as error:
            self._complain(_UNNOTED, error.strerror)
            self._queue = ""  # nobody knows what the note says now
            return False
        self._complaints.discard(_UNNOTED)
        self._queue = queue
        return True

    def load(self) -> Iterator[bytes]:
        """The messages of an earlier process."""
        with self._at_the_start():
            data = self._path.read_bytes()
        start = 0
        while start + _HEAD.size <= len(data):
            size, crc = _HEAD.unpack_from(data, start)
            message = data[start + _HEAD.size : start + _HEAD.size + size]
            if len(message) < size or zlib.crc32(message) != crc:
                break
            yield message
            start += _HEAD.size + size
        if start < len(data):
            log.warning("%s: %d bytes at its end are torn and left out", self._path, len(data) - start)
            self._cut(start)

    def append(self, message: bytes) -> None:
        """Keep one more message: one write."""
        if not self._noted:
            return
        if self._torn and not self._truncate(self._size):
            return
        data = _HEAD.pack(len(message), zlib.crc32(message)) + message
        if self._write(self._fd, data, _UNKEPT):
            self._size += len(data)
        else:
            self._cut(self._size)

    def replace(self, messages: Sequence[bytes]) -> None:
        """Keep exactly these; atomically. Where the disk does not let it, what was kept before stays."""
        if not messages:
            self._truncate(0)
            return
        if not self._noted:
            return
        data = b"".join(_HEAD.pack(len(m), zlib.crc32(m)) + m for m in messages)
        try:
            fd = os.open(self._aside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self._complain(_UNREPLACED, error.strerror)
            return
        if self._write(fd, data, _UNREPLACED) and self._rename():
            os.close(self._fd)
            self._fd, self._size, self._torn = fd, len(data), False
            self._complaints.clear()
        else:
            os.close(fd)
            with suppress(OSError):  # it would keep the room that the disk lacks
                self._aside.unlink()

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    @contextmanager
    def _at_the_start(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InvalidArgument(
                f"{self._path}: {error.strerror}; reports may be in it: mend the disk, or give another --state"
            ) from None

    def _rename(self) -> bool:
        try:
            os.replace(self._aside, self._path)
        except OSError as error:
            self._complain(_UNREPLACED, error.strerror)
            return False
        return True

    def _truncate(self, size: int) -> bool:
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            self._complain(_UNCUT, error.strerror)
            return False
        self._size, self._torn = size, False
        self._complaints.discard(_UNCUT)
        return True

    def _cut(self, size: int) -> None:
        """What lies behind is no message; where it cannot be cut off now, it is before the next one is written."""
        self._size, self._torn = size, True
        self._truncate(size)

    def _write(self, fd: int, data: bytes, consequence: str) -> bool:
        try:
            written = os.write(fd, data)
        except OSError as error:
            self._complain(consequence, error.strerror)
            return False
        if written < len(data):
            self._complain(consequence, "no space left")
            return False
        if fd == self._fd:
            self._complaints.discard(_UNKEPT)
        return True

    def _complain(self, consequence: str, cause: str | None) -> None:
        """Once, until that goes well again."""
        if consequence in self._complaints or (consequence == _UNREPLACED and _UNKEPT in self._complaints):
            return
        self._complaints.add(consequence)
        log.warning("%s: %s; %s", self._path, cause, consequence)


def _read_note(path: Path) -> str:
    """Whom the note names; empty when there is none. OSError when it is there and cannot be read."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return ""
    except ValueError as error:
        log.warning(
            "%s is no note of ours: %s; whoever answers is taken for the orchestrator of the reports", path, error
        )
        return ""
    return found if isinstance(found, str) else ""
