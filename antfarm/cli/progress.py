"""How far a job is, on standard error: one line that changes on a terminal, a line every 30 s elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import IO

from antfarm.model import JobStatus, TaskState
from antfarm.text import show

QUIET_S = 30.0
"""Between two lines where there is no terminal."""
_REDRAW_S = 0.1


def summary(status: JobStatus) -> str:
    """Counts in words, e.g. "45/100 done, 3 failed, 4 running"."""
    counts = status.counts
    ended = sum(count for state, count in counts.items() if state.terminal)
    parts = [f"{ended:,}/{status.task_count:,} done"]
    for names, word in (
        ((TaskState.FAILED, TaskState.DEAD_LETTER, TaskState.EXPIRED), "failed"),
        ((TaskState.CANCELLED,), "cancelled"),
        ((TaskState.ACTIVE,), "running"),
        ((TaskState.WAITING,), "waiting"),
    ):
        count = sum(counts.get(name, 0) for name in names)
        if count:
            parts.append(f"{count:,} {word}")
    if status.retried_count:
        parts.append(f"{status.retried_count:,} retried")
    if status.paused:
        parts.append("paused")
    elif status.type_paused:
        parts.append("task type paused")
    return ", ".join(parts)


class ProgressLine:
    """Shows one job. `update` as often as one likes, `close` at the end."""

    def __init__(self, stream: IO[str] | None = None, *, wanted: bool = True) -> None:
        self._stream = stream or sys.stderr
        self._wanted = wanted
        self._live = self._stream.isatty()
        self._shown_at = time.monotonic() if not self._live else 0.0
        self._history: deque[tuple[float, int]] = deque(maxlen=50)
        self._drawn = False

    def update(self, status: JobStatus) -> None:
        """Show the status if it is time to."""
        now = time.monotonic()
        ended = sum(count for state, count in status.counts.items() if state.terminal)
        if not self._history or now - self._history[-1][0] > _REDRAW_S:
            self._history.append((now, ended))
        if not self._wanted or now - self._shown_at < (_REDRAW_S if self._live else QUIET_S):
            return
        self._shown_at = now
        text = f"{summary(status)}{self._pace(status.task_count - ended)}"
        if self._live:
            self._stream.write(f"\r\x1b[K{text}")
            self._drawn = True
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def _pace(self, left: int) -> str:
        if len(self._history) < 2:
            return ""
        (t0, n0), (t1, n1) = self._history[0], self._history[-1]
        rate = (n1 - n0) / (t1 - t0)
        if rate <= 0:
            return ""
        return f", {rate:,.1f}/s" + (f", {show(left / rate)} left" if left else "")

    def clear(self) -> None:
        """Take the line away, so that other text can be printed."""
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._drawn = False
            self._shown_at = 0.0

    def close(self, status: JobStatus | None = None) -> None:
        """End with a last line about the status."""
        self.clear()
        if self._wanted and status is not None:
            took = f" in {show(status.duration_s)}" if status.duration_s is not None else ""
            self._stream.write(f"{status.state.name.lower()}: {summary(status)}{took}\n")
            self._stream.flush()
