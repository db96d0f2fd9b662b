"""The progress line: rewritten in place on a terminal, a line now and then elsewhere.

Responsible for what is shown of a run that goes on, and for its fitting into the terminal's width.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from typing import TextIO

from clouds.pipeline import Progress

LINE_PAUSE_S = 0.2
PLAIN_PAUSE_S = 5.0
BAR_MIN, BAR_MAX = 5, 30


class Line:
    """Progress of one run on a stream, standard error by default. May be told of from several threads."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._open = False
        self._lock = threading.Lock()  # the supervisor of the farm tells of it too
        self._shown, self._shown_at = "", 0.0
        self._began = 0.0
        try:
            "█░".encode(self._stream.encoding or "ascii")
            self._marks = "█░"
        except UnicodeEncodeError:
            self._marks = "#."

    def note(self, text: str) -> None:
        """A line that stays."""
        with self._lock:
            self._write(f"{text}\n")
            self._open = False

    def begin(self, progress: Progress) -> None:
        """What is there and what is to be done."""
        parts = [
            f"{count} {what}"
            for count, what in (
                (progress.known, "analysed before"),
                (progress.had, "downloaded before"),
                (progress.wanted - progress.had, "to download"),
            )
            if count
        ]
        self.note(f"{_days(progress.asked)}: {', '.join(parts)}")

    def show(self, progress: Progress) -> None:
        """How far it is. The clock of the time left starts with the first call."""
        now = time.monotonic()
        self._began = self._began or now
        pause_s = LINE_PAUSE_S if self._terminal else PLAIN_PAUSE_S
        over = progress.ended >= progress.wanted
        if now - self._shown_at < pause_s and not over:
            return
        self._shown_at = now
        text = self._text(progress, now - self._began)
        if text == self._shown:
            return
        self._shown = text
        if not self._terminal:
            self.note(text)
            return
        with self._lock:
            self._write(text)
            self._open = True

    def end(self) -> None:
        """Leave the line as it is and go on below."""
        with self._lock:
            if self._open:
                self._open = False
                self._stream.write("\n")
                self._stream.flush()

    def _write(self, text: str) -> None:
        self._stream.write(f"\r\x1b[K{text}" if self._open else text)
        self._stream.flush()

    def _text(self, progress: Progress, spent_s: float) -> str:
        left = ""
        if 0 < progress.ended < progress.wanted:
            left = _duration(spent_s * (progress.wanted - progress.ended) / progress.ended)
        told = _told(progress.wanted, progress.downloaded, progress.analysed, progress.failed, left)
        width = shutil.get_terminal_size().columns - 1 if self._terminal else 79
        # As long as the longest words leave room for, so that it does not change its length.
        room = min(
            BAR_MAX, width - len(_told(progress.wanted, progress.wanted, progress.wanted, progress.wanted, "99 min"))
        )
        if room < BAR_MIN:
            return told.strip()[:width]
        filled = room * progress.ended // progress.wanted
        return self._marks[0] * filled + self._marks[1] * (room - filled) + told


def _told(wanted: int, downloaded: int, analysed: int, failed: int, left: str) -> str:
    parts = [f"{downloaded} downloaded", f"{analysed} analysed"]
    if failed:
        parts.append(f"{failed} failed")
    if left:
        parts.append(f"{left} left")
    return f" {_days(wanted)}: {', '.join(parts)}"


def _days(count: int) -> str:
    return f"{count} day{'' if count == 1 else 's'}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
