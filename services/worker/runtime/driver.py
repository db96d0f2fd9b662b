"""The driver: the one place where things happen to attempts. Events come from the link, the children and the clock; the board decides; the
driver carries out and reports.

All on one loop. What is done per task is a few container operations; everything else is per batch or per tick. The tick turns only while
there is something to watch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from antfarm.errors import InvalidArgument, Unavailable
from antfarm.link import Link
from antfarm.link.estimate import Estimate
from antfarm.link.stream import now_ns
from antfarm.link.window import WindowSizer, worth_a_frame
from antfarm.model import SECOND_NS, Ending, FailureClass
from antfarm.v1 import work_queue_pb2
from services.worker.child.protocol import (
    OUT_BROKEN,
    OUT_DONE,
    OUT_FAILED,
    OUT_LOG,
    OUT_PROGRESS,
    OUT_READY,
    OUT_SAVED,
)
from services.worker.child.record import check_failure, check_progress, check_success, check_text
from services.worker.core.attempt import Attempt, Token
from services.worker.core.board import Board
from services.worker.core.lane import Lane
from services.worker.core.stop import Step, plan_stop
from services.worker.executors.crew import Crew
from services.worker.executors.process import ChildSpec
from services.worker.runtime.inputs import InputReader
from services.worker.runtime.intake import Intake
from services.worker.runtime.reporting import Reporter, death

log = logging.getLogger("antfarm.worker")

TICK_S = 0.05
NOISE_CHARS_MAX = 8 * 1024
_SUCCESSES = (OUT_DONE, OUT_SAVED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How this worker works, from its settings."""

    slots: int
    capacity: dict[str, float]
    grace_ns: int = 10 * SECOND_NS
    storage_override: str = ""


@dataclass(slots=True)
class _Tally:
    """What one batch of records of a lane amounts to."""

    ended: list[Attempt] = field(default_factory=list)
    run_us: dict[Estimate, list[int]] = field(default_factory=dict)


class Driver:
    """Handler of the link and owner of the children."""

    def __init__(self, manner: Manner, spec: ChildSpec, *, on_drain: Callable[[float | None], None]) -> None:
        """Make it; `start` must follow. `on_drain` is told when the orchestrator asks for a drain, and in how many seconds; None: no more."""
        self._manner = manner
        self._board = Board(manner.capacity)
        self._sizer = WindowSizer()
        self._crew = Crew(spec, on_records=self._on_records, on_noise=self._on_noise, on_exit=self._on_exit)
        self._types: dict[str, bool] = {}
        self._link: Link
        self._intake: Intake
        self._in_use = False  # link and intake are there
        self._reporter = Reporter(lambda group: self._intake.forget(group))
        self._on_drain_asked = on_drain
        self._first_ready: asyncio.Future[dict[str, tuple[str, bool]]] | None = None
        self._failed_is_loop = False  # the child that was to be started last and could not be
        self._noise: dict[int, str] = {}  # what a lane without a running attempt wrote last
        self._window = 0
        self._draining = False
        self._owner = b""
        """The orchestrator's process, as its last Welcome names it."""
        self._drain_asked_by: bytes | None = None
        """The one that asked for a drain."""
        self._next_queue = ""
        """Who answers instead of the orchestrator whose attempts are being given up; empty: none are."""
        self._stop_running_at_ns: int | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._all_dead = asyncio.Event()
        self._closed = False

    # ---- start and end ----------------------------------------------------------------------------------------------

    async def start(self) -> dict[str, tuple[str, bool]]:
        """Start the first child and learn from it what can be run: name -> (version, is_async). InvalidArgument when an app cannot be loaded."""
        self._first_ready = asyncio.get_running_loop().create_future()
        self._start_child(is_loop=False)
        while not self._crew.size:  # the system lets no process start now
            await asyncio.sleep(TICK_S)
            self._start_child(is_loop=False)
        types = await self._first_ready
        self._types = {name: is_async for name, (_, is_async) in types.items()}
        return types

    def use(self, link: Link, inputs: InputReader) -> None:
        """The link to report to, before any work comes."""
        self._link = self._reporter.link = link
        self._intake = Intake(
            types=self._types,
            inputs=inputs,
            reporter=self._reporter,
            sizer=self._sizer,
            on_ready=lambda attempts, is_async: self._board.add(attempts, is_async=is_async),
            on_change=self._pump,
        )
        self._in_use = True
        self._resize()

    @property
    def first_window(self) -> int:
        """The window before anything is known."""
        return self._sizer.window(self._manner.slots, 0.0)

    async def drain(self, limit_s: float) -> None:
        """Take nothing more, hand back what has not started, let the rest run for `limit_s`, then stop and hand it back too.

        May be called again after it was cancelled: the limit is the new one, from then on.
        """
        now = now_ns()
        self._draining = True
        self._stop_running_at_ns = now + int(limit_s * SECOND_NS)
        self._resize()
        for lane in self._board.lanes.values():
            self._take_back(lane)
        self._pump()  # hands back all that waits
        await self._idle.wait()

    def resume(self) -> None:
        """Work again after a drain that was not waited for."""
        self._draining = False
        self._stop_running_at_ns = None
        self._idle.clear()
        self._resize()
        self._pump()

    async def close(self) -> None:
        """End all children. Attempts that still ran are not reported: the lease or the next process speaks for them."""
        self._closed = True
        if self._ticking is not None:
            self._ticking.cancel()
        if self._in_use:
            await self._intake.close()
        self._crew.kill_all()
        if self._crew.size:
            await self._all_dead.wait()
        self._crew.close()

    # ---- from the link ----------------------------------------------------------------------------------------------

    def on_welcome(self, welcome: work_queue_pb2.Welcome) -> None:
        """Attached; Storage may have moved, and an orchestrator that was restarted does not know what has started.

        Unavailable while what is of another queue is given up.
        """
        if self._next_queue:
            raise Unavailable("what is of another orchestrator's queue is given up first")
        self._owner = welcome.owner
        if self._drain_asked_by == welcome.owner:
            # Over, or asked for once more in a moment. An orchestrator that was restarted has only forgotten it. Not told by the epoch, which also
            # rises while a process lives.
            self._drain_asked_by = None
            self._on_drain_asked(None)
        for _, attempt in self._board.running():
            attempt.last_word_ns = 0
        # An orchestrator that was restarted below another one may not know yet, and what runs here needs it all the same.
        if address := self._manner.storage_override or welcome.storage_address:
            self._crew.set_storage(address)

    def on_other_queue(self, orchestrator_id: str) -> None:
        """Tokens are of a queue, and another one may have tasks of the same names: give up all that is of the one before, and take the other one when it has ended."""
        if self._next_queue:
            return
        tokens = self._link.forget_all()
        log.warning("another orchestrator answers than before: %d tasks of that one's queue are given up", len(tokens))
        self._next_queue = orchestrator_id
        # What comes of it is reported to nobody: the link does not hold them any more.
        self.on_revoke(tokens, "it is of another queue than that of the orchestrator that answers")

    def _take_next_queue(self) -> None:
        """Once nothing is left here that could be reported under a token of the other queue."""
        if self._next_queue and self._board.idle and self._intake.idle:
            self._intake.forget_queue()
            self._link.queue, self._next_queue = self._next_queue, ""

    def on_tasks(self, groups: list[work_queue_pb2.TaskGroup]) -> None:
        """New attempts."""
        self._intake.take(groups)
        self._pump()

    def on_revoke(self, tokens: list[Token], cause: str) -> None:
        """Stop these; what has not started is simply dropped."""
        wanted = set(tokens)
        lanes = [lane for lane in self._board.lanes.values() if any(attempt.token in wanted for attempt in lane.fed)]
        for lane in lanes:
            self._take_back(lane)
        waiting = self._board.withdraw(lambda attempt: attempt.token in wanted)
        self._reporter.revoked(waiting + self._intake.withdraw(lambda attempt: attempt.token in wanted))
        for lane in lanes:
            for attempt in list(lane.fed):  # what a plain child has left has begun, the first and perhaps later ones
                if attempt.token in wanted:
                    self._stop(lane, attempt, Ending.REVOKED, cause)
        self._pump()

    def on_drain(self, limit_s: float) -> None:
        """The orchestrator asks for a drain."""
        self._drain_asked_by = self._owner
        self._on_drain_asked(limit_s)

    # ---- from the children ------------------------------------------------------------------------------------------

    def _on_records(self, number: int, records: list[list[Any]]) -> float:
        """Take what a child says. For how many seconds it has work waiting, whatever we do meanwhile."""
        lane = self._board.lanes.get(number)
        if lane is None:
            return 0.0
        tally = _Tally()
        try:
            for record in records:
                self._on_record(lane, record, tally)
        finally:
            self._settle(lane, tally)
        self._pump()
        return lane.waiting_s if tally.ended else 0.0

    def _on_record(self, lane: Lane, record: list[Any], tally: _Tally) -> None:
        """One record. ValueError or TypeError when it is none, before anything of it counts."""
        kind = record[0]
        if kind in _SUCCESSES:
            _, seq, run_us, result, *saved = record
            check_success(run_us, result, *saved)
            attempt = lane.finish(seq)
            if attempt is not None:
                tally.ended.append(attempt)
                tally.run_us.setdefault(attempt.group.estimate, []).append(run_us)
                self._reporter.succeeded(attempt, run_us, result, saved[0] if saved else ())
        elif kind == OUT_FAILED:
            check_failure(*record[2:])
            attempt = lane.finish(record[1])
            if attempt is not None:
                tally.ended.append(attempt)
                self._reporter.failed(attempt, *record[2:])
        elif kind == OUT_LOG:
            check_text(record[2])
            attempt = lane.find(record[1])
            if attempt is not None:
                attempt.add_log(record[2])
        elif kind == OUT_PROGRESS:
            fraction, text = check_progress(record[2], record[3])
            attempt = lane.find(record[1])
            if attempt is not None:
                attempt.progress_ns = now_ns()
                attempt.progress, attempt.progress_text = fraction, text
        elif kind == OUT_READY:
            self._on_ready(lane, record[1])
        elif kind == OUT_BROKEN:
            self._on_broken(lane, record[1])
        else:
            raise ValueError("no such record")

    def _settle(self, lane: Lane, tally: _Tally) -> None:
        for estimate, runs in tally.run_us.items():
            estimate.learn(sum(runs), len(runs))
            self._sizer.ended(sum(runs), len(runs))
        if tally.ended:
            self._board.settle(lane, tally.ended, now_ns())
            if lane.doomed and not lane.fed:
                self._crew.kill(lane)  # a signal may still be on its way to it

    def _on_ready(self, lane: Lane, types: list[list[Any]]) -> None:
        if not self._types.items() <= {(name, bool(is_async)) for name, _, is_async in types}:
            # What it lacks was promised to the orchestrator. Never ready, it counts as one that could not be started, and as one that starts until it is dead.
            log.warning("the apps have changed: start the worker again")
            self._crew.kill(lane)
            return
        lane.ready = True
        self._crew.started()
        if self._first_ready is not None and not self._first_ready.done():
            self._first_ready.set_result({name: (version, bool(is_async)) for name, version, is_async in types})

    def _on_broken(self, lane: Lane, line: str) -> None:
        if self._first_ready is not None and not self._first_ready.done():
            self._first_ready.set_exception(InvalidArgument(line))
        else:
            log.warning("a child could not load the apps: %s", line)

    def _on_noise(self, number: int, data: bytes) -> None:
        """Text that a child wrote past Python: it belongs to the attempt that runs, where there is only one."""
        lane = self._board.lanes.get(number)
        text = data.decode("utf-8", "replace")
        if lane is None:
            return
        running = list(lane.running)
        if len(running) == 1:
            running[0].add_log(text)
        else:
            self._noise[number] = (self._noise.get(number, "") + text)[-NOISE_CHARS_MAX:]

    def _on_exit(self, number: int, code: int) -> None:
        lane = self._board.lanes[number]
        started_last = self._crew.remove(number)
        left = self._board.close_lane(lane)
        noise = self._noise.pop(number, "")
        if not lane.ready and not self._closed:
            self._crew.failed_to_start(now_ns())
            self._failed_is_loop = lane.is_loop
            self._not_started(code, noise)
        if self._closed:  # whatever ran is not reported: nobody stopped it but us
            if not self._crew.size:
                self._all_dead.set()
            return
        if lane.is_loop:
            self._blame_loop(lane, left, code, started_last, noise)
        else:
            self._blame_plain(left, code, started_last)
        self._pump()

    def _not_started(self, code: int, noise: str) -> None:
        text = f"a child ended with {death(code)} before it was ready: {' '.join(noise.split())[-500:]}"
        first = self._first_ready
        if first is not None and not first.done():
            first.set_exception(InvalidArgument(text))
        elif first is None or first.cancelled() or first.exception() is None:
            log.warning("%s", text)  # otherwise its exception says already what the child lacked

    def _blame_plain(self, left: list[Attempt], code: int, started_last: int) -> None:
        """The first task without a result was running, or hid its record behind what is none; those that never started are run by another child."""
        if left and (left[0].seq <= started_last or left[0].stop is not None):
            self._reporter.died(left.pop(0), code)
        # Begun behind one that spoilt the pipe: whether they ended is not known, and not theirs to answer for.
        begun = [attempt for attempt in left if attempt.seq <= started_last]
        for attempt in begun:
            if attempt.stop is not None:
                self._reporter.stopped(attempt)
            else:
                self._reporter.released([attempt], never_started=False)
        self._board.put_back(left[len(begun) :])

    def _blame_loop(self, lane: Lane, left: list[Attempt], code: int, started_last: int, noise: str) -> None:
        """Of those that had begun one alone is to blame; among several nobody knows, unless we killed the process because of one. The others are run by another child."""
        begun = [attempt for attempt in left if attempt.seq <= started_last]
        for attempt in left:
            if attempt.stop is not None:
                self._reporter.stopped(attempt)
        for attempt in begun:
            if attempt.stop is not None:
                continue
            if lane.doomed:
                self._reporter.released([attempt], never_started=False)
            elif len(begun) == 1:
                self._reporter.died(attempt, code)
            else:
                self._reporter.suspected(attempt, code, len(begun), noise)
        self._board.put_back([attempt for attempt in left[len(begun) :] if attempt.stop is None])

    # ---- doing ------------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Feed what can be fed, start children that are needed."""
        if self._closed:
            return
        now = now_ns()
        board = self._board
        if self._draining:  # a crash may have put back what had not started
            self._reporter.released(board.withdraw(lambda attempt: True) + self._intake.withdraw(lambda attempt: True))
        for lane, attempts in board.dispatch(now):
            self._crew.feed(lane, attempts)
        plain, loop = board.lanes_wanted()
        if not plain and not loop and self._must_try_again:
            plain, loop = (0, 1) if self._failed_is_loop else (1, 0)
        for is_loop in (False,) * plain + (True,) * loop:
            self._start_child(is_loop=is_loop)
        self._watch()
        self._note_idle()
        self._take_next_queue()

    @property
    def _must_try_again(self) -> bool:
        """Whether to start a child that nobody waits for: only one that gets ready shows that work may be asked for once more.

        Another one of the kind that failed: had the other kind to prove it, each time that this one fails would add a child of it.
        """
        return self._crew.broken and not self._draining and all(lane.ready for lane in self._board.lanes.values())

    def _start_child(self, *, is_loop: bool) -> None:
        number = self._crew.start(is_loop=is_loop, now_ns=now_ns())
        if number is not None:
            self._board.open_lane(number, is_loop=is_loop)
        else:
            self._failed_is_loop = is_loop

    def _take_back(self, lane: Lane) -> None:
        """Plain lanes: what the child has not begun waits here again."""
        # Done twice for nothing it would let the child have what it is just leaving out.
        if not lane.is_loop and len(lane.fed) > 1 and lane.fed[-1].seq > self._crew.begun_last(lane):
            self._board.put_back(lane.take_back(self._crew.take_back(lane)))

    def _has_ended(self, lane: Lane, attempt: Attempt) -> bool:
        """Whether a plain child has begun what comes after the attempt: its record is on its way, and a signal would hit another one.

        After False all that waited behind it is taken back, and it may be signalled.
        """
        if lane.is_loop:
            return False
        if not self._has_passed(lane, attempt):
            self._take_back(lane)
        return self._has_passed(lane, attempt)

    def _has_passed(self, lane: Lane, attempt: Attempt) -> bool:
        # A number that was never fed was written by user code.
        return attempt.seq < self._crew.begun_last(lane) < lane.next_seq

    def _stop(
        self, lane: Lane, attempt: Attempt, ending: Ending, cause: str, failure_class: FailureClass = FailureClass.APP
    ) -> None:
        if attempt.stop is not None:
            return
        now = now_ns()
        ended = self._has_ended(lane, attempt)
        if ended and ending is not Ending.REVOKED:
            return  # it was late by a moment: what its record says counts
        listens = self._crew.listens(lane, attempt)
        attempt.stop = plan_stop(
            ending,
            cause,
            now_ns=now,
            grace_ns=self._manner.grace_ns,
            listens=listens,
            failure_class=failure_class,
        )
        if not ended:
            self._crew.ask(lane, attempt)
            self._advance_stop(lane, attempt, now)

    def _advance_stop(self, lane: Lane, attempt: Attempt, now: int) -> None:
        assert attempt.stop is not None
        if self._has_ended(lane, attempt):
            return
        step = attempt.stop.due(now)
        if step is Step.KILL:
            lane.doomed = True
            self._crew.kill(lane)
        elif step is Step.TERMINATE and not lane.is_loop:
            lane.doomed = True
            self._crew.terminate(lane)

    # ---- the clock --------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Keep the tick turning while there is something to watch."""
        if self._ticking is None and not self._closed and not self._at_rest:
            self._ticking = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    @property
    def _at_rest(self) -> bool:
        return not self._in_use or (self._board.idle and self._intake.idle and not self._crew.broken)

    def _note_idle(self) -> None:
        if self._draining and self._board.idle and self._intake.idle:
            self._idle.set()

    def _tick(self) -> None:
        # The next one is set first, so that it ends the pauses that begin now: set last, each would end just before it, and there would be two messages.
        self._ticking = asyncio.get_running_loop().call_later(TICK_S, self._tick)
        self._crew.listen()  # nobody is judged by the clock for what has been over for a while
        now = now_ns()
        lease_over = self._link.self_lease_over
        drained = self._stop_running_at_ns is not None and now > self._stop_running_at_ns
        for lane, attempt in list(self._board.running()):
            if not attempt.started_ns and not lane.is_loop:
                attempt.started_ns = lane.since_ns
            self._look_after(lane, attempt, now, lease_over=lease_over, drained=drained)
        for lane in self._board.stuck(now):
            self._take_back(lane)
        if lease_over:
            self._hand_back_exclusive()
        self._reporter.released(self._board.stale(now))
        self._resize()
        self._pump()
        if self._at_rest:
            self._ticking.cancel()
            self._ticking = None

    def _look_after(self, lane: Lane, attempt: Attempt, now: int, *, lease_over: bool, drained: bool) -> None:
        """One running attempt at a tick."""
        if attempt.stop is not None:
            self._advance_stop(lane, attempt, now)
        elif cause := attempt.overdue(now):
            self._stop(lane, attempt, Ending.TIMED_OUT, cause)
        elif attempt.expired(now):
            self._stop(lane, attempt, Ending.TIMED_OUT, "its total deadline has passed", FailureClass.EXPIRED)
        elif drained:
            self._stop(lane, attempt, Ending.RELEASED, "the worker was drained")
        elif lease_over and attempt.group.exclusive:
            self._stop(lane, attempt, Ending.RELEASED, "the worker lost touch with its orchestrator")
        self._reporter.speak(attempt, now)

    def _hand_back_exclusive(self) -> None:
        """The own lease is over: what must not overlap with others is not begun any more."""

        def is_exclusive(attempt: Attempt) -> bool:
            return attempt.group.exclusive

        for lane in self._board.lanes.values():
            if any(map(is_exclusive, lane.fed)):
                self._take_back(lane)
        self._reporter.released(self._board.withdraw(is_exclusive) + self._intake.withdraw(is_exclusive))

    def _resize(self) -> None:
        """Ask for as much work as is of use."""
        if self._draining or self._crew.broken:
            wanted = 0
        else:
            now = now_ns()
            ages = [now - attempt.started_ns for _, attempt in self._board.running() if attempt.started_ns]
            wanted = self._sizer.window(self._manner.slots, sum(ages) / len(ages) / SECOND_NS if ages else 0.0)
        if worth_a_frame(wanted, self._window):
            self._window = wanted
            self._link.set_window(wanted)
