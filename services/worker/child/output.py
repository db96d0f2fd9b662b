"""What a task prints and logs: bound to its attempt, shipped line by line, limited.

`sys.stdout`, `sys.stderr` and all loggers of the child lead here. What programs and C libraries write to the file descriptors goes by another pipe,
which the agent reads.
"""

from __future__ import annotations

import io
import logging
import sys
import time
from collections.abc import Callable

from services.worker.child.channel import Channel
from services.worker.child.protocol import LOG_CHARS_MAX, LOG_RECORDS_MAX, LOG_WINDOW_S, OUT_LOG


class AttemptLog:
    """Text of one attempt on its way to the agent.

    Whole lines go at once as long as they are few. Beyond the limits of a window they are put together, and of what is too much the end is
    kept; that goes with the first line after the window, or when the attempt ends.
    """

    __slots__ = ("_channel", "_late", "_late_size", "_left_out", "_line", "_records", "_room", "_seq", "_window_ends")

    def __init__(self, channel: Channel, seq: int) -> None:
        self._channel = channel
        self._seq = seq
        self._line = ""  # not yet ended
        self._late: list[str] = []
        self._late_size = 0
        self._left_out = 0
        self._room = 0
        self._records = 0
        self._window_ends = 0.0

    def write(self, text: str) -> None:
        """Take text."""
        if "\n" not in text and len(self._line) + len(text) < LOG_CHARS_MAX:
            self._line += text
            return
        head, newline, self._line = (self._line + text).rpartition("\n")
        if len(self._line) >= LOG_CHARS_MAX:  # a line without end
            head, newline, self._line = head + newline + self._line, "", ""
        self._ship(head + newline)

    def _ship(self, text: str) -> None:
        now = time.monotonic()
        if now >= self._window_ends:
            self._window_ends = now + LOG_WINDOW_S
            self._room, self._records = LOG_CHARS_MAX, LOG_RECORDS_MAX
            if self._late:
                self._send_late()
        if len(text) <= self._room and self._records > 0 and not self._late:
            self._room -= len(text)
            self._records -= 1
            self._channel.send((OUT_LOG, self._seq, text))
            return
        self._late.append(text)
        self._late_size += len(text)
        if self._late_size > 2 * LOG_CHARS_MAX:
            kept = "".join(self._late)[-LOG_CHARS_MAX:]
            self._left_out += self._late_size - len(kept)
            self._late, self._late_size = [kept], len(kept)

    def _send_late(self) -> None:
        text = "".join(self._late)
        self._left_out += max(len(text) - LOG_CHARS_MAX, 0)
        text = text[-LOG_CHARS_MAX:]
        if self._left_out:
            text = f"... {self._left_out:,} characters left out ...\n{text}"
        self._late, self._late_size, self._left_out = [], 0, 0
        self._room -= len(text)
        self._channel.send((OUT_LOG, self._seq, text))

    def close(self) -> None:
        """Ship the rest; the attempt ends."""
        if self._line:
            self._late.append(self._line)
            self._line = ""
        if self._late:
            self._send_late()


class AttemptStream(io.TextIOBase):
    """Stands for stdout and stderr: what is written belongs to the attempt that writes, or to none."""

    def __init__(self, find: Callable[[], AttemptLog | None], fd: int) -> None:
        super().__init__()
        self._find = find
        self._fd = fd

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """As programs expect it."""
        return "utf-8"

    def writable(self) -> bool:
        """True."""
        return True

    def close(self) -> None:
        """Stay open: a task that closes its output would close that of all later ones."""

    def fileno(self) -> int:
        """The descriptor, for programs that tasks start."""
        return self._fd

    def write(self, text: str) -> int:
        """Take text."""
        log = self._find()
        if log is not None:
            log.write(text)
        return len(text)


def capture(find: Callable[[], AttemptLog | None]) -> logging.Logger:
    """Lead output and logs to attempts. Returns the logger for `ctx.log`."""
    sys.stdout = AttemptStream(find, 1)
    sys.stderr = AttemptStream(find, 2)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    logger = logging.getLogger("antfarm.task")
    logger.setLevel(logging.DEBUG)
    return logger
