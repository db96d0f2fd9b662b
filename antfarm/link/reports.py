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
from antfarm.model import BATCH_BYTES_MAX, LOG_TAIL_BYTES_MAX, Ending
from antfarm.v1 import common_pb2, report_queue_pb2

log = logging.getLogger("antfarm.link")

OUTBOX_BYTES_MAX = 1024 * 1024
"""How far the outbox may grow beyond twice what is unacked before it is cut down to that. More of it would be sent again after a crash, in vain."""
OUTBOX_KEPT_BYTES = 64 * 1024
"""An outbox in which nothing is unacked is emptied from this size on, and at every heartbeat."""
REPORT_OVERHEAD_BYTES = 128
"""Counted for each report and word beside its texts."""

_SUCCEEDED = int(Ending.SUCCEEDED)


class OutcomeParts(TypedDict, total=False):
    """The fields of an Outcome under their names, but for the number. No message is made of it alone: most travel as columns, `Frame.message`."""

    index: Required[int]
    attempt: Required[int]
    ending: Required[int]
    result: bytes
    outputs: list[common_pb2.BlobRef]
    failure: common_pb2.Failure
    run_us: int
    never_started: bool
    app_failures: int


Report = tuple[str, int, OutcomeParts, int]
"""(job_id, epoch, outcome, bytes that it takes)."""
_Numbered = list[tuple[int, OutcomeParts]]
_Ready = tuple[report_queue_pb2.PushReportsRequest, int]
"""A frame that is whole, and what it counts in bytes."""


class Frame:
    """A frame of reports as it grows: outcomes grouped by job and epoch, plain successes apart from all others, each in order."""

    __slots__ = ("_groups", "size_bytes")

    def __init__(self) -> None:
        self.size_bytes = 0
        self._groups: dict[tuple[str, int], tuple[_Numbered, _Numbered]] = {}

    def add(self, number: int, report: Report) -> None:
        """Take one more."""
        job_id, epoch, parts, size = report
        group = self._groups.get((job_id, epoch))
        if group is None:
            group = self._groups[job_id, epoch] = ([], [])
        plain, others = group
        if parts["ending"] == _SUCCEEDED and "outputs" not in parts:
            plain.append((number, parts))
        else:
            others.append((number, parts))
        self.size_bytes += size

    def has_room(self, size_bytes: int) -> bool:
        """Whether so much more goes in; something always goes into an empty one."""
        return self.size_bytes + size_bytes <= BATCH_BYTES_MAX or not self.size_bytes

    def message(self, *, columns: bool) -> report_queue_pb2.PushReportsRequest:
        """The frame as it travels. Plain successes are columns where the reader knows these: many small messages take ten times as long, to make and to read."""
        message = report_queue_pb2.PushReportsRequest()
        message.reports.SetInParent()
        for (job_id, epoch), (plain, others) in self._groups.items():
            group = message.reports.outcomes.add(job_id=job_id, epoch=epoch)
            if columns and plain:
                group.successes.report_nos.extend([number for number, _ in plain])
                group.successes.indices.extend([parts["index"] for _, parts in plain])
                group.successes.attempts.extend([parts["attempt"] for _, parts in plain])
                group.successes.run_us.extend([parts.get("run_us", 0) for _, parts in plain])
                group.successes.results.extend([parts.get("result", b"") for _, parts in plain])
            for number, parts in others if columns else (*plain, *others):
                group.outcomes.add(report_no=number, **parts)
        return message


def _reports_in(message: report_queue_pb2.Reports) -> Iterator[Report]:
    """What a message reports, as it was before."""
    for group in message.outcomes:
        found = [_parts(outcome) for outcome in group.outcomes]
        columns = group.successes
        rows = zip(columns.indices, columns.attempts, columns.run_us, columns.results, strict=True)
        for index, attempt, run_us, result in rows:
            found.append(OutcomeParts(index=index, attempt=attempt, ending=_SUCCEEDED, run_us=run_us, result=result))
        for parts in found:
            yield group.job_id, group.epoch, parts, _size_bytes(parts)


def _parts(outcome: report_queue_pb2.Outcome) -> OutcomeParts:
    parts = OutcomeParts(index=outcome.index, attempt=outcome.attempt, ending=outcome.ending)
    fields: Any = {field.name: value for field, value in outcome.ListFields() if field.name != "report_no"}
    parts.update(fields)
    return parts


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
        self._columns = True  # whether they are known to whom it is connected
        self._fresh: list[Frame] = []  # of this turn of the loop, not yet in the outbox
        self._ready: deque[_Ready] = deque()  # to send on this connection; all unacked
        self._words: dict[Token, report_queue_pb2.Running] = {}  # newest word per attempt; bounded by what is held
        self._recover()

    # ---- in ---------------------------------------------------------------------------------------------------------

    def add(self, job_id: str, epoch: int, parts: OutcomeParts) -> None:
        """Take the outcome of an attempt that is held; others are dropped, and so is a second one."""
        token = (job_id, parts["index"], epoch, parts["attempt"])
        size = _size_bytes(parts)
        report = (job_id, epoch, parts, size)
        number = self._session.report(token, report, size)
        if not number:
            return
        fresh = self._fresh
        if not fresh:
            self.settled.clear()
            asyncio.get_running_loop().call_soon(self.keep)
            fresh.append(Frame())
        elif not fresh[-1].has_room(size):
            fresh.append(Frame())
        fresh[-1].add(number, report)
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
        ready = [(frame.message(columns=self._columns), frame.size_bytes) for frame in fresh]
        failpoint("link.before_outbox")
        if self._durable:
            if self._outbox.size_bytes > OUTBOX_BYTES_MAX + 2 * self._session.unacked_bytes:
                self._outbox.replace([message.reports.SerializeToString() for message, _ in self._all_unacked()])
            else:
                for message, _ in ready:
                    self._outbox.append(message.reports.SerializeToString())
        failpoint("link.after_outbox")
        if self._connected:
            self._ready.extend(ready)
            self.wake.set()
        self.note_verdicts()

    def _recover(self) -> None:
        """Take up what an earlier process of this worker left; the next Hello holds their tokens."""
        count = 0
        for message in self._outbox.load():
            try:
                reports = list(_reports_in(report_queue_pb2.Reports.FromString(message)))
            except (DecodeError, ValueError):
                log.warning("a message in the outbox is none of ours and left out")
                continue
            for report in reports:
                job_id, epoch, parts, size = report
                token = (job_id, parts["index"], epoch, parts["attempt"])
                count += self._session.recovered(token, report, size) > 0
        if count:
            self.settled.clear()
            log.info("%d reports of an earlier process of this worker will be sent again", count)

    # ---- out --------------------------------------------------------------------------------------------------------

    def connected(self, *, columns: bool) -> None:
        """A new connection: all that is unacked goes out on it. `columns`: who is there knows Successes."""
        self.keep()
        self._connected, self._columns = True, columns
        self._ready = deque(self._all_unacked())
        self.wake.set()

    def disconnected(self) -> None:
        """The connection has ended; reports wait for the next one."""
        self._connected, self._columns = False, True
        self._ready.clear()

    def forget_all(self) -> None:
        """The session has forgotten all attempts with their reports: nothing is said of them any more, nor kept for an heir of this process."""
        self._fresh.clear()
        self._words.clear()
        self._outbox.replace(())
        self.note_verdicts()

    def take_due(self, now_ns: int) -> None:
        """Queue again what was told to wait until now."""
        self._ready.extend(self._pack((number, self._session.get(number)) for number in self._session.due(now_ns)))

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
        message, size = ready.popleft() if ready else (report_queue_pb2.PushReportsRequest(), 0)
        reports = message.reports
        while ready and size + ready[0][1] <= BATCH_BYTES_MAX:
            more, more_size = ready.popleft()
            reports.MergeFrom(more.reports)
            size += more_size
        while words and size < BATCH_BYTES_MAX:
            word = words.pop(next(iter(words)))
            reports.running.append(word)
            size += len(word.log) * 4 + REPORT_OVERHEAD_BYTES
        return message

    def _all_unacked(self) -> Iterator[_Ready]:
        return self._pack(self._session.unacked())

    def _pack(self, reports: Iterable[tuple[int, Any]]) -> Iterator[_Ready]:
        """Frames of what was reported before, by number."""
        frame = Frame()
        for number, report in reports:
            if not frame.has_room(report[3]):
                yield frame.message(columns=self._columns), frame.size_bytes
                frame = Frame()
            frame.add(number, report)
        if frame.size_bytes:
            yield frame.message(columns=self._columns), frame.size_bytes


def _size_bytes(parts: OutcomeParts) -> int:
    size = len(parts.get("result", b"")) + REPORT_OVERHEAD_BYTES
    if "failure" in parts:
        size += parts["failure"].ByteSize()
    if "outputs" in parts:
        size += sum(blob.ByteSize() + 4 for blob in parts["outputs"])
    return size
