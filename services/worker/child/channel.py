"""The child's end of the pipes: reads what the agent sends, writes records, and reads and writes the shared page.

Writing is one system call a record, so that nothing finished is lost when the process dies in the next instruction.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import msgpack

from services.worker.child.protocol import FRAME_BYTES_MAX, PAGE_BYTES

READ_BYTES = 1024 * 1024
LATE_MAX = 1_024
"""Records of signal handlers that wait until their thread has written another one. They are text and progress: of too many the newest stay."""


class Channel:
    """Pipes and page. `send` may be called by any thread; the rest by the one that runs tasks."""

    def __init__(self, in_fd: int, out_fd: int, page_fd: int) -> None:
        for fd in (in_fd, out_fd):
            os.set_inheritable(fd, False)  # programs that tasks start must not hold our pipes
        self.in_fd = in_fd
        self._out_fd = out_fd
        self._map = mmap.mmap(page_fd, PAGE_BYTES)
        os.close(page_fd)
        self.page: memoryview = memoryview(self._map).cast("Q")
        self._unpacker = msgpack.Unpacker(max_buffer_size=FRAME_BYTES_MAX, strict_map_key=False)
        self.waiting: list[list[Any]] = []
        """Frames that came with the first one: to be handled before any other."""
        self._lock = threading.RLock()  # a signal's handler may send in the middle of what its thread sends
        self._sending = False
        self._late: deque[tuple[Any, ...]] = deque(maxlen=LATE_MAX)
        self._pack: Callable[[object], bytes] = msgpack.Packer(unicode_errors="backslashreplace").pack

    def receive_first(self) -> list[Any] | None:
        """Wait for the first frame alone; None when the agent has gone. What came with it is `waiting`."""
        frames = self.receive()
        if not frames:
            return None
        self.waiting = frames[1:]
        return frames[0]

    def receive(self) -> list[list[Any]] | None:
        """Wait for more and return the frames that are whole; None when the agent has gone."""
        data = os.read(self.in_fd, READ_BYTES)
        if not data:
            return None
        self._unpacker.feed(data)
        return list(self._unpacker)

    def send(self, record: tuple[Any, ...]) -> None:
        """Write one record. The process ends when the agent has gone.

        What a signal's handler sends while its own thread is in here is written afterwards: into the middle of a record it must not go.
        """
        with self._lock:
            if self._sending:
                self._late.append(record)
                return
            while True:
                self._sending = True
                try:
                    self._write(record)
                finally:  # a handler may raise
                    self._sending = False
                if not self._late:  # looked at last: from here on a handler writes by itself
                    return
                record = self._late.popleft()

    def _write(self, record: tuple[Any, ...]) -> None:
        data = self._pack(record)
        try:
            written = os.write(self._out_fd, data)
            while written < len(data):
                written += os.write(self._out_fd, data[written:])
        except BrokenPipeError:
            os._exit(0)
