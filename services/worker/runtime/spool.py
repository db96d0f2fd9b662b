"""The outbox file: reports that have no final verdict yet survive the agent's death.

Append-only records of length, CRC and one serialised `Reports` message; a torn end is left out when it is loaded. Written, not synced: the
death of the process loses nothing, the loss of the whole machine loses reports of attempts that the orchestrator then runs again.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

log = logging.getLogger("antfarm.worker")

_HEAD = struct.Struct("<II")


class FileOutbox:
    """An `antfarm.link.Outbox` in a file. A full disk is complained about once and costs the survival of reports only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size
        self._complained = False

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return self._size

    def load(self) -> Iterator[bytes]:
        """The messages of an earlier process."""
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
            self._truncate(start)

    def append(self, message: bytes) -> None:
        """Keep one more message: one write."""
        self._write(self._fd, _HEAD.pack(len(message), zlib.crc32(message)) + message)

    def replace(self, messages: Sequence[bytes]) -> None:
        """Keep exactly these; atomically."""
        if not messages:
            self._truncate(0)
            return
        aside = self._path.with_suffix(".new")
        fd = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        before, self._size = self._size, 0
        if self._write(fd, b"".join(_HEAD.pack(len(m), zlib.crc32(m)) + m for m in messages)):
            os.replace(aside, self._path)
            os.close(self._fd)
            self._fd = fd
        else:
            self._size = before
            os.close(fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _truncate(self, size: int) -> None:
        os.ftruncate(self._fd, size)
        self._size = size

    def _write(self, fd: int, data: bytes) -> bool:
        try:
            written = os.write(fd, data)
        except OSError as error:
            return self._complain(str(error.strerror))
        if written < len(data):
            os.ftruncate(fd, self._size)
            return self._complain("no space left")
        self._size += written
        self._complained = False
        return True

    def _complain(self, cause: str) -> bool:
        if not self._complained:
            self._complained = True
            log.warning("%s: %s; reports are kept in memory only", self._path, cause)
        return False
