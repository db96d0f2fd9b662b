"""Stopping an attempt signals its child only while no later task has begun there, in whatever order agent and child touch the page."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import duration_pb2
from test_take_back import Page, Turns

from antfarm.link import OutcomeParts
from antfarm.model import SECOND_NS, Ending, FailureClass
from antfarm.v1 import common_pb2, work_queue_pb2
from services.worker.child.protocol import (
    CANCEL,
    COOPERATIVE,
    CURRENT,
    OUT_DONE,
    OUT_FAILED,
    OUT_READY,
    may_start,
)
from services.worker.core.lane import Lane
from services.worker.executors.crew import Crew
from services.worker.executors.feeder import Feeder
from services.worker.executors.process import ChildSpec
from services.worker.runtime import driver as module
from services.worker.runtime import intake
from services.worker.runtime.driver import Driver, Manner

FIRST, SECOND, THIRD = 2, 3, 4
"""What the child was fed: seq 1 came before them, so that their type is known to be short."""
TERM, KILL = signal.SIGTERM, signal.SIGKILL
GRACE_NS = SECOND_NS // 2


class Dummy:
    """A child of which there is nothing but its page and the signals that it was sent."""

    def __init__(self) -> None:
        self.words = [0] * 8
        self.page: Any = self.words
        self.signals: list[signal.Signals] = []
        self.started_last = 0

    def feed(self, data: bytes) -> None:
        """Into the void."""

    def listen(self) -> None:
        """Nothing is paused."""

    def terminate(self) -> None:
        self.signals.append(TERM)

    def kill(self) -> None:
        self.signals.append(KILL)


class Dummies(Crew):
    """The crew as it is, of dummies."""

    def __init__(self, spec: ChildSpec, **callbacks: Any) -> None:
        self.said, self.exits = callbacks["on_records"], callbacks["on_exit"]
        self.dummies: dict[int, Dummy] = {}
        self._children: dict[int, Any] = self.dummies  # type: ignore[assignment]
        self._feeders = {}
        self._failures = self._start_after_ns = 0
        self._storage = ""
        self.turned = asyncio.Event()

    def start(self, *, is_loop: bool, now_ns: int) -> int | None:
        number = len(self.dummies) + 1
        self.dummies[number], self._feeders[number] = Dummy(), Feeder()
        return number

    def listen(self) -> None:
        self.turned.set()

    def close(self) -> None:
        """No warden."""


class Upward:
    """The link: what was reported, by index."""

    def __init__(self) -> None:
        self.outcomes: dict[int, OutcomeParts] = {}
        self.self_lease_over = False

    def report(self, job_id: str, epoch: int, parts: OutcomeParts) -> None:
        assert parts["index"] not in self.outcomes
        self.outcomes[parts["index"]] = parts

    def running(self, word: object) -> None:
        """Nobody listens."""

    def set_window(self, window: int) -> None:
        """Nobody gives more."""

    def ending(self, seq: int) -> int | None:
        outcome = self.outcomes.get(seq)
        return None if outcome is None else outcome["ending"]


def driver_of_dummies(monkeypatch: pytest.MonkeyPatch, now_ns: Callable[[], int]) -> Driver:
    """A driver of one slot whose children are dummies, by that clock."""
    monkeypatch.setattr(module, "Crew", Dummies)
    for user in (module, intake):
        monkeypatch.setattr(user, "now_ns", now_ns)
    monkeypatch.setattr(module, "TICK_S", 0.001)
    manner = Manner(slots=1, capacity={"cpu": 1.0}, grace_ns=GRACE_NS)
    return Driver(manner, ChildSpec(apps=(), scratch=Path("/nowhere"), env={}), on_drain=lambda limit_s: None)


class Farm:
    """A driver with one child that was fed FIRST, SECOND and THIRD; the index of each is its seq."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = SECOND_NS
        self.driver = driver_of_dummies(monkeypatch, lambda: self.now_ns)
        self.link = Upward()

    async def fed(self, timeouts: common_pb2.Timeouts | None = None, *, exclusive: bool = False) -> Farm:
        starting = asyncio.create_task(self.driver.start())
        await asyncio.sleep(0)
        self.says([OUT_READY, [["short", "1", False]]])
        await starting
        self.driver.use(self.link, None)  # type: ignore[arg-type]
        self.give(1)
        self.begins(1)
        self.says([OUT_DONE, 1, 1_000, b"1"])
        self.give(FIRST, SECOND, THIRD, timeouts=timeouts, exclusive=exclusive)
        self.begins(FIRST)
        assert self.has() == [FIRST, SECOND, THIRD]
        return self

    def give(self, *seqs: int, timeouts: common_pb2.Timeouts | None = None, exclusive: bool = False) -> None:
        template = common_pb2.TaskTemplate(type="short", timeouts=timeouts, fence_late_results=exclusive)
        group = work_queue_pb2.TaskGroup(job_id=f"job-{seqs[0]}", epoch=1, template=template)
        for seq in seqs:
            remaining = duration_pb2.Duration(nanos=200_000_000)
            group.assignments.add(index=seq, attempt=1, payload=b"[]", remaining=remaining)
        self.driver.on_tasks([group])

    # ---- the child --------------------------------------------------------------------------------------------------

    @property
    def crew(self) -> Dummies:
        return self.driver._crew  # type: ignore[return-value]

    @property
    def child(self) -> Dummy:
        return self.crew.dummies[1]

    def begins(self, seq: int) -> None:
        assert may_start(self.child.page, seq)

    def says(self, *records: list[Any]) -> None:
        self.crew.said(1, list(records))

    def ends(self, *seqs: int) -> None:
        self.says(*([OUT_DONE, seq, 1_000, b"1"] for seq in seqs))

    def dies(self, code: int = -15) -> None:
        self.child.started_last = self.child.words[CURRENT]
        self.crew.exits(1, code)

    # ---- the agent --------------------------------------------------------------------------------------------------

    @property
    def lane(self) -> Lane:
        return self.driver._board.lanes[1]

    def has(self) -> list[int]:
        """What the agent takes for the child's."""
        return [attempt.index for attempt in self.lane.fed]

    def waits(self) -> list[int]:
        return [attempt.index for attempt in self.driver._board.waiting_plain]

    def revoke(self, *seqs: int) -> None:
        self.driver.on_revoke([("job-1" if seq == 1 else f"job-{FIRST}", seq, 1, 1) for seq in seqs], "cancelled")

    async def passes(self, span_ns: int) -> None:
        """Time passes, and the agent notices."""
        self.now_ns += span_ns
        async with asyncio.timeout(10):
            for _ in range(2):
                self.crew.turned.clear()
                await self.crew.turned.wait()


@pytest.fixture
async def farm(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Farm]:
    made = Farm(monkeypatch)
    yield made
    for number in list(made.crew.dummies):
        made.driver._board.close_lane(made.driver._board.lanes[number])
        made.crew.remove(number)
    await made.driver.close()


# ---- nothing later has begun ------------------------------------------------------------------------------------------


async def test_a_running_attempt_is_signalled_when_all_behind_it_was_taken_back(farm: Farm) -> None:
    await farm.fed()
    farm.revoke(FIRST)
    assert (farm.has(), farm.waits()) == ([FIRST], [SECOND, THIRD])
    assert farm.child.signals == [TERM]
    await farm.passes(GRACE_NS)
    assert farm.child.signals == [TERM, KILL]
    farm.dies(-9)
    assert farm.link.ending(FIRST) == Ending.REVOKED
    assert sorted(farm.link.outcomes) == [1, FIRST]


async def test_one_that_looks_at_its_context_is_asked_first_and_signalled_later(farm: Farm) -> None:
    await farm.fed()
    farm.child.words[COOPERATIVE] = FIRST
    farm.revoke(FIRST)
    assert farm.child.signals == []
    await farm.passes(GRACE_NS // 2)
    assert farm.child.signals == [TERM]


async def test_a_page_that_user_code_wrote_over_protects_nobody(farm: Farm) -> None:
    await farm.fed()
    farm.child.words[CURRENT] = (1 << 64) - 1
    farm.revoke(FIRST)
    assert farm.child.signals == [TERM]


async def test_exclusive_attempts_that_wait_are_handed_back_at_the_own_lease(farm: Farm) -> None:
    """Behind a running one, in its child or here: none of them begins when others may have been given it."""
    await farm.fed(exclusive=True)
    farm.link.self_lease_over = True
    await farm.passes(0)
    assert farm.child.signals == [TERM]
    assert [farm.link.outcomes[seq]["never_started"] for seq in (SECOND, THIRD)] == [True, True]
    farm.dies()
    assert farm.link.ending(FIRST) == Ending.RELEASED
    assert not farm.link.outcomes[FIRST]["never_started"]


# ---- a later one has begun --------------------------------------------------------------------------------------------


def timeouts(**limits: int) -> common_pb2.Timeouts:
    return common_pb2.Timeouts(**{name: duration_pb2.Duration(seconds=value) for name, value in limits.items()})


async def stop_by_revoke(farm: Farm) -> None:
    await farm.fed()
    farm.begins(SECOND)
    farm.revoke(FIRST)


async def stop_by_limit(farm: Farm, limits: common_pb2.Timeouts) -> None:
    await farm.fed(limits)
    farm.begins(SECOND)
    await farm.passes(3 * SECOND_NS // 2)


async def stop_by_drain(farm: Farm) -> None:
    await farm.fed()
    farm.begins(SECOND)
    farm.draining = asyncio.create_task(farm.driver.drain(0.5))  # type: ignore[attr-defined]
    await asyncio.sleep(0)
    await farm.passes(SECOND_NS)


async def stop_by_self_lease(farm: Farm) -> None:
    await farm.fed(exclusive=True)
    farm.begins(SECOND)
    farm.link.self_lease_over = True
    await farm.passes(0)


REASONS: dict[str, Callable[[Farm], Any]] = {
    "revoked": stop_by_revoke,
    "run timeout": lambda farm: stop_by_limit(farm, timeouts(run=1)),
    "progress timeout": lambda farm: stop_by_limit(farm, timeouts(progress=1)),
    "total deadline": lambda farm: stop_by_limit(farm, timeouts(total=1)),
    "drain": stop_by_drain,
    "self-lease": stop_by_self_lease,
}


@pytest.mark.parametrize("reason", REASONS)
async def test_the_child_of_an_attempt_that_has_ended_is_never_signalled(farm: Farm, reason: str) -> None:
    """Its record lies in the pipe, and the child has begun the next: that one would die, and be charged for it."""
    await REASONS[reason](farm)
    await farm.passes(0)
    assert farm.child.signals == []
    assert farm.has()[:2] == [FIRST, SECOND]
    if reason == "revoked":
        for _ in range(3):
            await farm.passes(GRACE_NS)
            assert farm.child.signals == []
    farm.link.self_lease_over = False
    farm.ends(FIRST, SECOND)
    assert farm.link.ending(SECOND) == Ending.SUCCEEDED
    assert farm.link.ending(FIRST) == (Ending.REVOKED if reason == "revoked" else Ending.SUCCEEDED)
    if reason == "drain":
        await farm.draining  # type: ignore[attr-defined]
    if reason in ("drain", "self-lease"):
        assert farm.link.outcomes[THIRD]["never_started"]
    else:
        assert farm.has() == [THIRD], "the child goes on"
    assert farm.child.signals == []


async def test_what_an_attempt_failed_of_before_it_was_to_be_stopped_is_what_is_reported(farm: Farm) -> None:
    await stop_by_limit(farm, timeouts(run=1))
    farm.says([OUT_FAILED, FIRST, 1_000, FailureClass.APP, "ValueError", "no good", ""])
    assert farm.link.ending(FIRST) == Ending.FAILED
    assert farm.link.outcomes[FIRST]["failure"].kind == "ValueError"


async def test_a_revoked_attempt_that_had_failed_is_reported_as_revoked(farm: Farm) -> None:
    await stop_by_revoke(farm)
    farm.says([OUT_FAILED, FIRST, 1_000, FailureClass.APP, "ValueError", "no good", ""])
    assert farm.link.ending(FIRST) == Ending.REVOKED
    assert "failure" not in farm.link.outcomes[FIRST]


async def test_the_crash_of_the_next_one_is_its_own(farm: Farm) -> None:
    await stop_by_revoke(farm)
    farm.ends(FIRST)
    farm.dies(-11)
    assert farm.link.ending(FIRST) == Ending.REVOKED
    assert farm.link.outcomes[SECOND]["failure"].kind == "signal SIGSEGV"
    assert farm.link.ending(THIRD) is None


async def test_one_that_ends_while_it_is_asked_is_not_signalled_when_its_time_is_over(farm: Farm) -> None:
    await farm.fed()
    farm.child.words[COOPERATIVE] = FIRST
    farm.revoke(FIRST)
    assert not may_start(farm.child.page, SECOND)
    for _ in range(3):
        await farm.passes(GRACE_NS)
    assert farm.child.signals == []
    farm.ends(FIRST)
    assert farm.link.ending(FIRST) == Ending.REVOKED


async def test_one_that_ends_of_its_sigterm_is_not_killed_while_its_record_is_on_its_way(farm: Farm) -> None:
    await farm.fed()
    farm.revoke(FIRST)
    assert not may_start(farm.child.page, SECOND)
    await farm.passes(GRACE_NS)
    assert farm.child.signals == [TERM]
    farm.ends(FIRST)
    assert farm.child.signals == [TERM, KILL], "the child itself goes: a signal may still be on its way to it"
    farm.dies(-9)
    assert sorted(farm.link.outcomes) == [1, FIRST]


# ---- the one that was begun later is the one to stop --------------------------------------------------------------------


async def test_one_that_runs_behind_unread_records_is_stopped_and_the_records_count(farm: Farm) -> None:
    await farm.fed()
    farm.begins(SECOND)
    farm.revoke(SECOND)
    assert farm.child.signals == [TERM]
    assert farm.waits() == [THIRD]
    farm.ends(FIRST)
    await farm.passes(GRACE_NS)
    assert farm.child.signals == [TERM, KILL]
    farm.dies(-9)
    assert (farm.link.ending(FIRST), farm.link.ending(SECOND)) == (Ending.SUCCEEDED, Ending.REVOKED)
    assert farm.link.ending(THIRD) is None


async def test_of_two_that_are_revoked_the_running_one_is_signalled(farm: Farm) -> None:
    await farm.fed()
    farm.begins(SECOND)
    farm.revoke(FIRST, SECOND)
    assert farm.child.signals == [TERM]
    farm.ends(FIRST)
    farm.dies()
    assert (farm.link.ending(FIRST), farm.link.ending(SECOND)) == (Ending.REVOKED, Ending.REVOKED)


async def test_one_that_is_asked_to_stop_is_still_asked_when_an_earlier_one_is_revoked(farm: Farm) -> None:
    await farm.fed()
    farm.begins(SECOND)
    farm.child.words[COOPERATIVE] = SECOND
    farm.revoke(SECOND)
    farm.revoke(FIRST)
    assert farm.child.words[CANCEL] == SECOND
    assert farm.child.signals == []


async def test_what_is_fed_behind_one_that_is_asked_to_stop_is_taken_back_before_the_signal(farm: Farm) -> None:
    await farm.fed()
    farm.begins(SECOND)
    farm.child.words[COOPERATIVE] = SECOND
    farm.revoke(SECOND)
    farm.ends(FIRST)
    fed = farm.has()[1:]
    await farm.passes(GRACE_NS // 2)
    assert farm.child.signals == [TERM]
    assert farm.has() == [SECOND]
    assert not any(may_start(farm.child.page, attempt.seq) for attempt in farm.lane.fed if attempt.index in fed)


# ---- what the pipe does not say any more --------------------------------------------------------------------------------


async def test_what_began_behind_one_that_spoilt_the_pipe_is_not_begun_again(farm: Farm) -> None:
    """Its record and theirs lie behind what is no record, so that nobody can tell whether they ended."""
    await farm.fed()
    farm.begins(SECOND)
    farm.dies(-9)
    assert farm.link.outcomes[FIRST]["failure"].kind == "signal SIGKILL"
    assert (farm.link.ending(SECOND), farm.link.outcomes[SECOND]["never_started"]) == (Ending.RELEASED, False)
    assert farm.link.ending(THIRD) is None
    assert farm.waits() == [THIRD]


async def test_one_that_was_to_be_stopped_behind_it_ends_as_stopped(farm: Farm) -> None:
    await farm.fed()
    farm.begins(SECOND)
    farm.child.words[COOPERATIVE] = SECOND
    farm.revoke(SECOND)
    farm.dies(-9)
    assert farm.link.outcomes[FIRST]["failure"].kind == "signal SIGKILL"
    assert farm.link.ending(SECOND) == Ending.REVOKED
    assert farm.waits() == [THIRD]


# ---- every order --------------------------------------------------------------------------------------------------------


class Killed(Exception):
    """The child was signalled."""


AGENT_READS, CHILD_READS = 12, 3
ORDERS = [
    "".join("c" if place in places else "a" for place in range(AGENT_READS + CHILD_READS))
    for places in combinations(range(AGENT_READS + CHILD_READS), CHILD_READS)
]


@pytest.mark.slow
@pytest.mark.parametrize("ended", [0, 1], ids=["the first runs", "the second runs"])
async def test_no_order_of_accesses_lets_a_signal_hit_what_is_the_childs(farm: Farm, ended: int) -> None:
    """The child ends what it runs and begins the next, while the agent stops the first."""
    await farm.fed()
    running = FIRST + ended
    signals = []
    for order in ORDERS:
        farm.child.words[:] = [0] * 8
        farm.child.words[CURRENT] = running
        turns = Turns(order)
        begun: list[int] = []
        hit: list[int] = []

        def child(turns: Turns = turns, begun: list[int] = begun) -> None:
            try:
                if may_start(Page(farm.child.words, turns, "c"), running + 1):
                    begun.append(running + 1)
            finally:
                turns.end("c")

        def terminate(hit: list[int] = hit) -> None:
            hit.append(farm.child.words[CURRENT])

        farm.child.page = Page(farm.child.words, turns, "a")
        farm.child.terminate = terminate  # type: ignore[method-assign]
        thread = threading.Thread(target=child)
        thread.start()
        farm.revoke(FIRST)
        turns.end("a")
        thread.join(20)
        signals += hit
        innocent = [seq for seq in farm.has() if seq != FIRST]
        assert not hit or not innocent, f"{order}: {innocent} are the child's, and it was signalled"
        assert begun == [] or begun[0] in farm.has() + farm.waits(), f"{order}: {begun} is nobody's"
        for seq in innocent[ended:]:
            assert begun == [seq], f"{order}: the agent takes {seq} for begun, and the child leaves it out"
        assert sorted(farm.has() + farm.waits()) == [FIRST, SECOND, THIRD]
        self_heal(farm)
    assert set(signals) == (set() if ended else {FIRST}), "seen by the agent, what runs is what is to be stopped"


def self_heal(farm: Farm) -> None:
    """As it was before."""
    lane, board = farm.lane, farm.driver._board
    attempts = sorted([*lane.fed, *board.waiting_plain], key=lambda attempt: attempt.index)
    board.waiting_plain.clear()
    lane.fed.clear()
    lane.doomed = False
    for attempt in attempts:
        attempt.stop, attempt.seq = None, attempt.index
        lane.fed.append(attempt)
