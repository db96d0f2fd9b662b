"""The driver: the only mutator of the core.

Events are handled in batches, whatever has gathered when the loop gets to it. The records of a batch go to the journal in one group commit,
together with those of all batches that were handled while the last commit was under way; effects that name a record leave when it is durable, the
others at once. The commit runs in the journal's own thread, so that the next batch is handled meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from antfarm.errors import DiskFull, Internal, Overloaded, Unavailable
from antfarm.failpoint import failpoint
from services.orchestrator.core import events
from services.orchestrator.core.effects import Audit, Effect, Reply
from services.orchestrator.core.machine import Core, Step
from services.orchestrator.core.records import Record
from services.orchestrator.journal.ballast import reserve_bytes
from services.orchestrator.journal.base import BackupStopped, Journal, JournalBroken, JournalFull
from services.orchestrator.runtime.results import ResultCache

log = logging.getLogger("antfarm.orchestrator")

DISK_RETRY_S = 1.0
_Found = TypeVar("_Found")


class Clock(Protocol):
    """The two clocks: one that decides when, one that is only recorded."""

    def monotonic_ns(self) -> int:
        """Never goes back."""
        ...

    def wall_ns(self) -> int:
        """Nanoseconds since 1970, as far as this machine knows."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request."""

    existed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Backup:
    """A copy of the journal that is made, or there."""

    making: asyncio.Future[Path]
    stopped: threading.Event
    """Set when nobody wants it any more."""

    async def end(self) -> None:
        """Stop the thread that makes it, wait until it has ended, and remove the copy, however often the caller is cancelled meanwhile.

        The loop cancels whoever is left when it closes, and a thread that goes on would use a journal that is closed.
        """
        self.stopped.set()
        cancelled = None
        while not self.making.done():
            try:
                await asyncio.wait((self.making,))
            except asyncio.CancelledError as error:
                cancelled = error
        if self.making.exception() is None:
            shutil.rmtree(self.making.result().parent, ignore_errors=True)
        if cancelled is not None:
            raise cancelled


class Driver:
    """Feeds the core, commits its records, releases its effects."""

    def __init__(self, core: Core, journal: Journal, clock: Clock, deliver: Callable[[Effect], None]) -> None:
        """`deliver` carries out effects other than replies; it must not block or raise."""
        self.core = core
        self.clock = clock
        self.durable_seq = core.state.seq
        self.results = ResultCache()
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Ends with the error that stops the program: a broken journal or a broken invariant. Nothing is handled after that."""
        self._journal = journal
        self._deliver = deliver
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._loop = asyncio.get_running_loop()
        self._inbox: list[events.Event] = []
        self._scheduled = False
        self._tick_due = False
        self._pending: list[tuple[int, Record]] = []
        self._held: list[tuple[int, Effect]] = []
        self._committing = False
        self._requests: dict[int, asyncio.Future[Answer]] = {}
        self._next_request = 1
        self._watchers: dict[int, set[asyncio.Event]] = {}
        self.dismissal = asyncio.Event()
        """Set when the program stops: nobody is served any more."""
        self._disk_low = False
        self._backup: _Backup | None = None
        self.stalled = False
        """True while the journal has no room: time stands still for the core, so that nothing expires that could not be reported."""
        self._closing = False
        self._news = asyncio.Event()
        """Set when the next records are durable, or turn out to have no room."""

    # ---- in ---------------------------------------------------------------------------------------------------------

    def post(self, event: events.Event) -> None:
        """Hand in an event."""
        self._inbox.append(event)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    async def ask(self, make_event: Callable[[int], events.Event]) -> Answer:
        """Hand in a request and wait until what it did is durable. Raises what the core refused it with."""
        number = self._next_request
        self._next_request += 1
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._requests[number] = future
        try:
            self.post(make_event(number))
            return await future
        finally:
            self._requests.pop(number, None)
            # Its error knows this frame, and through it the request: a circle that only garbage collection would end.
            del future

    def tick(self) -> None:
        """Tell the core the time, unless nothing can be recorded, and look at the disk."""
        try:
            self._look_at_disk()
        except OSError as error:
            self._fail(JournalBroken(f"the journal's disk cannot be looked at: {error}; mend it, then start again"))
        if not self.stalled:
            self._tick_due = True
            self._schedule()

    def _look_at_disk(self) -> None:
        free, total = self._journal.free_bytes()
        low = self.stalled or free < reserve_bytes(total)
        if low != self._disk_low:
            self._disk_low = low
            log.warning("disk %s: %d MiB free", "low, new tasks are refused" if low else "has room again", free >> 20)
            self.post(events.DiskLow(low=low))

    # ---- turn -------------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Handle everything that has gathered, then place once."""
        self._scheduled = False
        if self.failed.done():
            return
        batch, self._inbox = self._inbox, []
        if self._tick_due:
            # Time comes last: nobody is given up whose word has been read already.
            self._tick_due = False
            batch.append(events.Tick(wall_ns=self.clock.wall_ns()))
        now = self.clock.monotonic_ns()
        try:
            for event in batch:
                self._take(self.core.handle(event, now))
            self._take(self.core.place(now))
        except Exception as error:
            self._fail(error)
            return
        self._commit()

    def _take(self, step: Step) -> None:
        self._pending.extend(step.records)
        for effect in step.effects:
            if effect.after <= self.durable_seq:
                self._release(effect)
            else:
                self._held.append((effect.after, effect))

    # ---- out --------------------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        """Hand all that waits to the journal, unless a commit is under way. No task and no coroutine: they would wait for turns of the loop of their own."""
        if self._pending and not self._committing:
            self._committing = True
            batch, self._pending = self._pending, []
            touched, self.core.state.touched = self.core.state.touched, {}
            self._append(batch, touched)

    def _append(self, batch: list[tuple[int, Record]], touched: dict[int, None]) -> None:
        def tell(done: Future[None]) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
                self._loop.call_soon_threadsafe(self._appended, batch, touched, done.exception())

        self._thread.submit(self._journal.append, batch).add_done_callback(tell)

    def _appended(self, batch: list[tuple[int, Record]], touched: dict[int, None], error: BaseException | None) -> None:
        """The batch is durable, or `error` says why not."""
        if isinstance(error, JournalFull) and not self._closing:  # what is lost at the end was never acknowledged
            self._stall()
            self._loop.call_later(DISK_RETRY_S, self._append, batch, touched)
            return
        self._committing = False
        if error is not None:
            self._fail(error)
            return
        try:
            self.stalled = False
            self.results.add(batch)
            self.durable_seq = batch[-1][0]
            self._commit()  # first: the journal works while what is durable is told
            failpoint("driver.before_release")
            self._wake(touched)  # before verdicts: somebody may wait for the result
            self._release_durable()
            failpoint("driver.after_release")
            self._tell()
        except Exception as defect:
            self._fail(defect)

    def _stall(self) -> None:
        """No acks, no expiries: the farm waits. What is known stays known, and the same batch is written when there is room.

        The core hears no ticks meanwhile, and takes the gap between two of them for a pause of its own, which counts against nobody.
        """
        self.stalled = True
        self._tell()
        if not self._disk_low:
            self._disk_low = True
            log.error("the journal's disk is full: nothing is acknowledged until there is room")
            self.post(events.DiskLow(low=True))

    def _release_durable(self) -> None:
        held, self._held = self._held, []
        for after, effect in held:
            if after <= self.durable_seq:
                self._release(effect)
            else:
                self._held.append((after, effect))

    def _release(self, effect: Effect) -> None:
        if isinstance(effect, Reply):
            future = self._requests.get(effect.request)
            if future is not None and not future.done():
                if effect.error is not None:
                    future.set_exception(effect.error)
                else:
                    future.set_result(Answer(effect.existed))
        elif isinstance(effect, Audit):
            log.info("%s", effect.text)
        else:
            self._deliver(effect)

    def _fail(self, error: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_exception(error)

    # ---- reading ----------------------------------------------------------------------------------------------------

    async def _read(self, read: Callable[[], _Found]) -> _Found:
        """Read from the journal. What cannot be read stops the program, as what cannot be written does: then whoever waits for it is cancelled."""
        try:
            return await self._loop.run_in_executor(self._thread, read)
        except JournalBroken as error:
            self._fail(error)
            raise asyncio.CancelledError from None

    async def read_records(self, seqs: list[int]) -> list[tuple[int, Record]]:
        """Durable records by number, from the cache or the journal, in the order asked for."""
        found = {seq: record for seq in seqs if (record := self.results.get(seq)) is not None}
        missing = [seq for seq in seqs if seq not in found]
        if missing:
            found.update(await self._read(lambda: self._journal.read(missing)))
        return [(seq, found[seq]) for seq in seqs if seq in found]

    @asynccontextmanager
    async def backup(self) -> AsyncIterator[Path]:
        """A verified copy of the journal, removed at the end. DiskFull without room for it, Overloaded while another is made, Internal; Unavailable at the end of the program."""
        if self._backup is not None:
            raise Overloaded("another backup is under way; try again", retry_after_s=5.0)
        stopped = threading.Event()
        making = self._loop.run_in_executor(None, self._journal.back_up, stopped.is_set)
        self._backup = backup = _Backup(making=making, stopped=stopped)
        try:
            yield await asyncio.shield(making)
        except BackupStopped:
            raise Unavailable("the orchestrator is stopping: try again") from None
        except JournalFull as error:
            raise DiskFull(str(error)) from None
        except JournalBroken as error:
            raise Internal(str(error)) from None
        finally:
            try:
                await backup.end()
            finally:
                self._backup = None

    async def read_history(self, job: int, first: int, last: int) -> list[tuple[int, Record]]:
        """Durable records of single attempts of a job, as `Journal.history`; commits go on between two calls."""
        return await self._read(lambda: self._journal.history(job, first, last))

    async def newest_record(self, job: int, last: int) -> int:
        """Number of a job's newest record up to `last`, as `Journal.newest`."""
        return await self._read(lambda: self._journal.newest(job, last))

    async def settled(self, seq: int) -> bool:
        """Return True when the records up to that number are durable, False when there is no room to make them so."""
        while self.durable_seq < seq:
            if self.stalled:
                return False
            await self._news.wait()
        return True

    async def next_commit(self) -> None:
        """Wait until further records are durable, or turn out to have no room, or the program stops."""
        await self._news.wait()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def watch(self, job: int) -> asyncio.Event:
        """An event that is set whenever durable facts of the job change. Give it back with `unwatch`."""
        event = asyncio.Event()
        self._watchers.setdefault(job, set()).add(event)
        return event

    def unwatch(self, job: int, event: asyncio.Event) -> None:
        """Stop watching."""
        watchers = self._watchers.get(job, set())
        watchers.discard(event)
        if not watchers:
            self._watchers.pop(job, None)

    @property
    def dismissed(self) -> bool:
        """True when the program stops."""
        return self.dismissal.is_set()

    def dismiss(self) -> None:
        """Wake all who watch, for the last time: the program stops, as `dismissed` says."""
        self.dismissal.set()
        self._tell()
        self._wake(dict.fromkeys(self._watchers))

    def _wake(self, touched: dict[int, None]) -> None:
        for job in touched:
            for event in self._watchers.get(job, ()):
                event.set()

    async def close(self) -> None:
        """Commit what is waiting, unless the disk is full, and let go of the journal, and of a backup of it. The caller closes the journal."""
        self._closing = True
        if self._backup is not None:
            await self._backup.end()
        while self._scheduled or self._committing:
            if self.failed.done():
                break
            await asyncio.sleep(0.001)
        if not self.failed.done():
            self.failed.cancel()
        await self._loop.run_in_executor(None, self._thread.shutdown)


def explain_failure(error: BaseException) -> str:
    """One line for an operator about what stopped the driver."""
    if isinstance(error, JournalBroken):
        return str(error)
    if isinstance(error, JournalFull):
        return "the journal's disk is full: what was not acknowledged is not kept; make room, then start again"
    return f"a defect stopped the orchestrator: {error!r}; its journal is intact, start it again"
