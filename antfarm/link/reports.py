"""Reports on their way: kept in the outbox before they are sent, sent again on each new connection, packed into frames.

It owns the order of things: outbox first, then the stream; words of running attempts in front of outcomes. Which reports are
still owed is the session's to say; nothing here awaits.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Required, TypedDict

from google.protobuf.message import DecodeError

from antfarm.failpoint import failpoint
from antfarm.link.outbox import MemoryOutbox, Outbox
from antfarm.link.session import Session, Token
from antfarm.model import BATCH_BYTES_MAX, LOG_TAIL_BYTES_MAX
from antfarm.v1 import common_pb2, report_queue_pb2

log = logging.getLogger("antfarm.link")

OUTBOX_BYTES_MAX = 1024 * 1024
"""How far the outbox may grow beyond twice what is unacked before it is cut down to that. More of it would be sent again after a crash, in vain."""
OUTBOX_KEPT_BYTES = 64 * 1024
"""An outbox in which nothing is unacked is emptied from this size on, and at every heartbeat."""
REPORT_OVERHEAD_BYTES = 128
"""Counted for each report and word beside its texts."""

Report = tuple[str, int, report_queue_pb2.Outcome, int]
"""(job_id, epoch, outcome, bytes that it takes). The outcome is a part of the frame in which it left first, and keeps that in memory."""


class OutcomeParts(TypedDict, total=False):
    """The fields of an Outcome under their names. The message itself is made in the frame that it leaves in: made alone and copied it takes three times as long."""

    index: Required[int]
    attempt: Required[int]
    ending: Required[int]
    result: bytes
    outputs: list[common_pb2.BlobRef]
    failure: common_pb2.Failure
    run_us: int
    never_started: bool
    app_failures: int


class Frame:
    """A frame of reports as it grows: outcomes grouped by job and epoch, in order within each."""

    __slots__ = ("_groups", "message", "size_bytes")

    def __init__(self) -> None:
        self.message = report_queue_pb2.PushReportsRequest()
        self.size_bytes = 0
        self._groups: dict[tuple[str, int], Any] = {}

    def outcomes(self, job_id: str, epoch: int) -> Any:
        """The repeated field for outcomes of that job and epoch."""
        found = self._groups.get((job_id, epoch))
        if found is None:
            group = self.message.reports.outcomes.add(job_id=job_id, epoch=epoch)
            found = self._groups[job_id, epoch] = group.outcomes
        return found

    def has_room(self, size_bytes: int) -> bool:
        """Whether so much more goes in; something always goes into an empty one."""
        return self.size_bytes + size_bytes <= BATCH_BYTES_MAX or not self.size_bytes


class Reports:
    """All that waits to be sent on the Report Queue. `wake` is set when there is something; `settled` while no report is unacked."""

    def __init__(self, session: Session, outbox: Outbox) -> None:
        self.wake = asyncio.Event()
        self.settled = asyncio.Event()
        self.settled.set()
        self._session = session
        self._outbox = outbox
        self._durable = not isinstance(outbox, MemoryOutbox)
        self._connected = False
        self._fresh: list[Frame] = []  # of this turn of the loop, not yet in the outbox
        self._ready: deque[Frame] = deque()  # to send on this connection; all unacked
        self._words: dict[Token, report_queue_pb2.Running] = {}  # newest word per attempt; bounded by what is held
        self._recover()

    # ---- in ---------------------------------------------------------------------------------------------------------

    def add(self, job_id: str, epoch: int, parts: OutcomeParts) -> None:
        """Take the outcome of an attempt that is held; others are dropped, and so is a second one."""
        token = (job_id, parts["index"], epoch, parts["attempt"])
        if self._session.held.get(token, 1):
            return
        size = _size_bytes(parts)
        fresh = self._fresh
        if not fresh:
            self.settled.clear()
            asyncio.get_running_loop().call_soon(self.keep)
            fresh.append(Frame())
        elif not fresh[-1].has_room(size):
            fresh.append(Frame())
        frame = fresh[-1]
        outcome = frame.outcomes(job_id, epoch).add(**parts)
        outcome.report_no = self._session.report(token, (job_id, epoch, outcome, size), size)
        frame.size_bytes += size
        if self._words:
            word = self._words.get(token)
            if word is not None and not word.log:
                del self._words[token]  # progress of what has ended says nothing any more; its last log lines do

    def say(self, word: report_queue_pb2.Running) -> None:
        """Take a word of a running attempt. While it waits, a newer one replaces it and their logs are joined and cut."""
        token = (word.job_id, word.index, word.epoch, word.attempt)
        if token not in self._session.held:
            return
        older = self._words.get(token)
        if older is not None and older.log:
            word.log = (older.log + word.log).encode()[-LOG_TAIL_BYTES_MAX:].decode("utf-8", "ignore")
        self._words[token] = word
        if self._connected:
            self.wake.set()

    def keep(self) -> None:
        """Write the reports of this turn of the loop to the outbox, all at once, and let them be sent."""
        fresh, self._fresh = self._fresh, []
        if not fresh:
            return
        failpoint("link.before_outbox")
        if self._durable:
            if self._outbox.size_bytes > OUTBOX_BYTES_MAX + 2 * self._session.unacked_bytes:
                self._outbox.replace([frame.message.reports.SerializeToString() for frame in self._all_unacked()])
            else:
                for frame in fresh:
                    self._outbox.append(frame.message.reports.SerializeToString())
        failpoint("link.after_outbox")
        if self._connected:
            self._ready.extend(fresh)
            self.wake.set()
        self.note_verdicts()

    def _recover(self) -> None:
        """Take up what an earlier process of this worker left; the next Hello holds their tokens."""
        count = 0
        for message in self._outbox.load():
            try:
                groups = report_queue_pb2.Reports.FromString(message).outcomes
            except DecodeError:
                log.warning("a message in the outbox is none of ours and left out")
                continue
            for group in groups:
                for outcome in group.outcomes:
                    token = (group.job_id, outcome.index, group.epoch, outcome.attempt)
                    size = outcome.ByteSize() + REPORT_OVERHEAD_BYTES
                    report = (group.job_id, group.epoch, outcome, size)
                    outcome.report_no = self._session.recovered(token, report, size)
                    count += outcome.report_no > 0
        if count:
            self.settled.clear()
            log.info("%d reports of an earlier process of this worker will be sent again", count)

    # ---- out --------------------------------------------------------------------------------------------------------

    def connected(self) -> None:
        """A new connection: all that is unacked goes out on it."""
        self.keep()
        self._connected = True
        self._ready = deque(self._all_unacked())
        self.wake.set()

    def disconnected(self) -> None:
        """The connection has ended; reports wait for the next one."""
        self._connected = False
        self._ready.clear()

    def forget_all(self) -> None:
        """The session has forgotten all attempts with their reports: nothing is said of them any more, nor kept for an heir of this process."""
        self._fresh.clear()
        self._words.clear()
        self._outbox.replace(())
        self.note_verdicts()

    def take_due(self, now_ns: int) -> None:
        """Queue again what was told to wait until now."""
        reports: list[Any] = [self._session.get(number) for number in self._session.due(now_ns)]
        self._ready.extend(pack(reports))

    def note_verdicts(self) -> None:
        """Verdicts were taken: perhaps nothing is owed any more."""
        if not self._session.unacked_count and not self._fresh:
            self.settled.set()
            if self._outbox.size_bytes > OUTBOX_KEPT_BYTES:
                self._outbox.replace(())

    def tidy(self) -> None:
        """Empty the outbox when nothing in it is owed; called now and then and at the end."""
        if self._outbox.size_bytes and not self._session.unacked_count:
            self._outbox.replace(())

    def next_frame(self) -> report_queue_pb2.PushReportsRequest | None:
        """All that waits, up to the size of a frame; None when nothing does."""
        ready, words = self._ready, self._words
        if not ready and not words:
            return None
        frame = ready.popleft() if ready else Frame()
        reports = frame.message.reports
        while ready and frame.has_room(ready[0].size_bytes):
            more = ready.popleft()
            reports.MergeFrom(more.message.reports)
            frame.size_bytes += more.size_bytes
        while words and frame.size_bytes < BATCH_BYTES_MAX:
            word = words.pop(next(iter(words)))
            reports.running.append(word)
            frame.size_bytes += len(word.log) * 4 + REPORT_OVERHEAD_BYTES
        return frame.message

    def _all_unacked(self) -> Iterator[Frame]:
        reports: list[Any] = [report for _, report in self._session.unacked()]
        return pack(reports)


def pack(reports: Iterable[Report]) -> Iterator[Frame]:
    """Frames of what was reported before."""
    frame = Frame()
    for job_id, epoch, outcome, size in reports:
        if not frame.has_room(size):
            yield frame
            frame = Frame()
        frame.outcomes(job_id, epoch).append(outcome)
        frame.size_bytes += size
    if frame.size_bytes:
        yield frame


def _size_bytes(parts: OutcomeParts) -> int:
    size = len(parts.get("result", b"")) + REPORT_OVERHEAD_BYTES
    if "failure" in parts:
        size += parts["failure"].ByteSize()
    if "outputs" in parts:
        size += sum(blob.ByteSize() + 4 for blob in parts["outputs"])
    return size
