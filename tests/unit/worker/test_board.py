"""Which attempt runs where."""

from __future__ import annotations

from itertools import count

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from antfarm.link.estimate import Estimate
from antfarm.model import SECOND_NS
from services.worker.core.attempt import Attempt, Group
from services.worker.core.board import FEED_MAX, STALE_NS, Board
from services.worker.core.lane import HANDLING_S, Lane

_indices = count()


def group(
    mean_s: float | None = None, *, cpu: float = 1.0, is_async: bool = False, at_most_once: bool = False
) -> Group:
    estimate = Estimate()
    estimate.mean_s = mean_s
    return Group(
        job_id="job",
        epoch=1,
        type="t",
        is_async=is_async,
        estimate=estimate,
        cost={"cpu": cpu},
        at_most_once=at_most_once,
    )


def attempts(of: Group, number: int, now_ns: int = 0) -> list[Attempt]:
    return [Attempt(of, next(_indices), 1, b"[]", now_ns) for _ in range(number)]


def board(slots: int = 2, lanes: int = 2) -> Board:
    made = Board({"cpu": float(slots)})
    for number in range(lanes):
        made.open_lane(number, is_loop=False).ready = True
    return made


def give(on: Board, of: Group, number: int) -> list[Attempt]:
    made = attempts(of, number)
    on.add(made, is_async=of.is_async)
    return made


def fed(on: Board) -> list[int]:
    return [len(lane.fed) for lane in on.lanes.values()]


def end(on: Board, lane: Lane) -> None:
    attempt = lane.finish(lane.fed[0].seq)
    assert attempt is not None
    on.settle(lane, [attempt], 0)


def test_each_idle_child_gets_one_and_what_is_unknown_or_long_is_not_fed_ahead() -> None:
    for mean_s in (None, 1.0, 0.03, 0.021):
        on = board()
        give(on, group(mean_s), 5)
        on.dispatch(0)
        assert fed(on) == [1, 1]
        assert len(on.waiting_plain) == 3
        on.check()


def test_short_tasks_are_fed_ahead_for_150_ms_shared_between_the_children() -> None:
    on = board()
    give(on, group(0.01), 100)
    on.dispatch(0)
    assert fed(on) == [16, 16], "the running one and 150 ms ahead"
    on = board()
    give(on, group(1e-5), 100)
    on.dispatch(0)
    assert fed(on) == [50, 50]
    on = board()
    give(on, group(1e-6), 10_000)
    on.dispatch(0)
    assert fed(on) == [FEED_MAX + 1] * 2
    on.check()


def test_a_child_is_topped_up_when_half_of_what_was_ahead_is_done() -> None:
    on = board(slots=1, lanes=1)
    give(on, group(0.01), 100)
    [lane] = on.lanes.values()
    on.dispatch(0)
    for _ in range(7):
        end(on, lane)
    assert on.dispatch(0) == []
    end(on, lane)
    [(_, batch)] = on.dispatch(0)
    assert len(batch) == 8
    assert len(lane.fed) == 16


def test_a_child_says_for_how_long_it_has_work_waiting_behind_the_running_task() -> None:
    on = board(slots=1, lanes=1)
    [lane] = on.lanes.values()
    assert lane.waiting_s == 0.0
    give(on, group(0.03), 5)
    on.dispatch(0)
    assert lane.waiting_s == 0.0, "one runs, and what is long does not wait in the child"
    on = board(slots=1, lanes=1)
    [lane] = on.lanes.values()
    give(on, group(0.01), 100)
    on.dispatch(0)
    assert lane.waiting_s == pytest.approx(0.15)
    end(on, lane)
    assert lane.waiting_s == pytest.approx(0.14)
    on = board(slots=1, lanes=1)
    [lane] = on.lanes.values()
    give(on, group(1e-6), 1_001)
    on.dispatch(0)
    assert lane.waiting_s == pytest.approx(1_000 * HANDLING_S), "tasks of no length are not taken for free"


def test_order_is_kept_and_seqs_grow() -> None:
    on = board(slots=1, lanes=1)
    given = give(on, group(0.001), 30)
    [(lane, batch)] = on.dispatch(0)
    assert batch == given[: len(batch)]
    assert [attempt.seq for attempt in lane.fed] == list(range(1, len(batch) + 1))


def test_tasks_that_may_start_only_once_are_never_fed_behind_others() -> None:
    on = board(slots=1, lanes=1)
    give(on, group(0.001), 1)
    give(on, group(0.001, at_most_once=True), 3)
    on.dispatch(0)
    assert fed(on) == [1]
    end(on, on.lanes[0])
    on.dispatch(0)
    assert fed(on) == [1]


def test_a_task_waits_until_its_resources_are_free_and_one_too_large_runs_alone() -> None:
    on = board(slots=2, lanes=3)
    give(on, group(cpu=1.5), 1)
    give(on, group(cpu=1), 1)
    on.dispatch(0)
    assert fed(on) == [1, 0, 0]
    end(on, on.lanes[0])
    on.dispatch(0)
    assert sum(fed(on)) == 1
    give(on, group(cpu=64), 1)
    on.dispatch(0)
    assert sum(fed(on)) == 1
    for lane in on.lanes.values():
        if lane.fed:
            end(on, lane)
    on.dispatch(0)
    assert sum(fed(on)) == 1
    on.check()


def test_as_many_children_are_wanted_as_could_run_something() -> None:
    on = board(slots=4, lanes=1)
    assert on.lanes_wanted() == (0, 0)
    give(on, group(), 9)
    assert on.lanes_wanted() == (3, 0)
    on.dispatch(0)
    assert on.lanes_wanted() == (3, 0)
    on.open_lane(7, is_loop=False)
    assert on.lanes_wanted() == (2, 0), "one is starting"
    on = Board({"cpu": 1.0})
    give(on, group(is_async=True), 9)
    assert on.lanes_wanted() == (0, 1)
    on.open_lane(1, is_loop=True)
    assert on.lanes_wanted() == (0, 0)
    on = Board({"cpu": 1.0})
    give(on, group(cpu=0.25), 9)
    assert on.lanes_wanted() == (4, 0)


def test_coroutines_share_one_child_up_to_the_free_resources() -> None:
    on = Board({"cpu": 2.0})
    lane = on.open_lane(1, is_loop=True)
    lane.ready = True
    give(on, group(is_async=True, cpu=0.5), 6)
    on.dispatch(0)
    assert len(lane.fed) == 4
    second = lane.fed[1]
    assert lane.finish(second.seq) is second
    on.settle(lane, [second], 0)
    on.dispatch(0)
    assert len(lane.fed) == 4
    on.check()


def test_a_child_stuck_with_one_task_gives_back_what_it_has_not_started_in_order() -> None:
    on = board(slots=1, lanes=1)
    given = give(on, group(0.001), 10)
    on.dispatch(0)
    [lane] = on.lanes.values()
    assert on.stuck(SECOND_NS // 100) == []
    assert on.stuck(SECOND_NS) == [lane]
    on.put_back(lane.take_back(started_seq=2))
    assert list(lane.fed) == given[:2]
    assert list(on.waiting_plain) == given[2:]
    assert lane.bytes_fed == 4
    on.check()


def test_what_a_dead_child_had_not_ended_comes_back_and_its_resources_are_free() -> None:
    on = board(slots=1, lanes=1)
    given = give(on, group(0.001), 5)
    on.dispatch(0)
    left = on.close_lane(on.lanes[0])
    assert left == given
    on.put_back(left[1:])
    assert on.free == {"cpu": 1.0}
    assert list(on.waiting_plain) == given[1:]
    on.check()


@pytest.mark.parametrize("dies", [True, False], ids=["its child dies", "they end"])
def test_coroutines_that_ask_for_none_of_what_the_worker_lacks_are_like_others(dies: bool) -> None:
    on = Board({"cpu": 2.0})
    lane = on.open_lane(1, is_loop=True)
    lane.ready = True
    of = group(is_async=True)
    of.cost = {"cpu": 1.0, "gpu": 0.0}
    given = give(on, of, 2)
    on.dispatch(0)
    on.check()
    if dies:
        assert on.close_lane(lane) == given
    else:
        assert [lane.finish(attempt.seq) for attempt in given] == given
        on.settle(lane, given, 0)
    assert on.free == {"cpu": 2.0}
    on.check()


def test_a_doomed_or_stopping_child_is_fed_nothing() -> None:
    on = board(slots=1, lanes=1)
    give(on, group(0.001), 1)
    on.dispatch(0)
    on.lanes[0].fed[0].stop = object()  # type: ignore[assignment]
    give(on, group(0.001), 3)
    assert on.dispatch(0) == []
    end(on, on.lanes[0])
    on.lanes[0].doomed = True
    assert on.dispatch(0) == []
    assert on.lanes_wanted() == (1, 0)


def test_what_waits_for_too_long_is_taken_off() -> None:
    on = board(slots=1, lanes=0)
    old = attempts(group(), 3, now_ns=0)
    new = attempts(group(), 2, now_ns=STALE_NS)
    on.add(old + new, is_async=False)
    assert on.stale(STALE_NS) == []
    assert on.stale(STALE_NS + 1) == old
    assert list(on.waiting_plain) == new


def test_a_result_of_a_task_that_was_taken_back_is_nobodys() -> None:
    lane = Lane(1, is_loop=False)
    for attempt in attempts(group(), 3):
        lane.feed(attempt, 0)
    lane.take_back(started_seq=1)
    assert lane.finish(2) is None
    assert lane.finish(1) is not None
    assert lane.finish(1) is None


class Machine(RuleBasedStateMachine):
    """No attempt is lost or in two places, and no more runs than fits, whatever happens."""

    def __init__(self) -> None:
        super().__init__()
        self.board = Board({"cpu": 3.0, "gpu": 1.0})
        self.groups = [
            group(m, cpu=c, is_async=a) for m in (None, 1e-4, 5.0) for c in (0.5, 1.0, 2.0) for a in (False, True)
        ]
        self.alive: set[Attempt] = set()
        self.numbers = count()
        self.now = 0

    @rule(which=st.integers(0, 17), number=st.integers(1, 40))
    def arrive(self, which: int, number: int) -> None:
        made = attempts(self.groups[which], number, self.now)
        self.alive.update(made)
        self.board.add(made, is_async=self.groups[which].is_async)

    @rule()
    def start_children(self) -> None:
        plain, loop = self.board.lanes_wanted()
        for is_loop in [False] * plain + [True] * loop:
            self.board.open_lane(next(self.numbers), is_loop=is_loop)

    @rule(data=st.data())
    @precondition(lambda self: self.board.lanes)
    def get_ready(self, data: st.DataObject) -> None:
        self.board.lanes[data.draw(st.sampled_from(sorted(self.board.lanes)))].ready = True

    @rule()
    def dispatch(self) -> None:
        for lane, batch in self.board.dispatch(self.now):
            assert lane.usable
            assert all(attempt in lane.fed for attempt in batch)
        used = sum(
            sum(a.group.cost["cpu"] for a in lane.fed) if lane.is_loop else lane.cost.get("cpu", 0.0)
            for lane in self.board.lanes.values()
        )
        assert used <= 3.0 + 1e-9

    @rule(data=st.data(), number=st.integers(1, 60))
    @precondition(lambda self: any(lane.fed for lane in self.board.lanes.values()))
    def finish(self, data: st.DataObject, number: int) -> None:
        lane = data.draw(st.sampled_from([lane for lane in self.board.lanes.values() if lane.fed]))
        ended = []
        for _ in range(min(number, len(lane.fed))):
            position = data.draw(st.integers(0, len(lane.fed) - 1)) if lane.is_loop else 0
            attempt = lane.finish(lane.fed[position].seq)
            assert attempt is not None
            ended.append(attempt)
        self.alive.difference_update(ended)
        self.board.settle(lane, ended, self.now)

    @rule(data=st.data())
    @precondition(lambda self: self.board.lanes)
    def die(self, data: st.DataObject) -> None:
        lane = self.board.lanes[data.draw(st.sampled_from(sorted(self.board.lanes)))]
        left = self.board.close_lane(lane)
        gone = left if lane.is_loop else left[:1]
        self.alive.difference_update(gone)
        self.board.put_back([attempt for attempt in left if attempt not in gone])

    @rule(step=st.integers(0, 3 * SECOND_NS))
    def pass_time(self, step: int) -> None:
        self.now += step
        for lane in self.board.stuck(self.now):
            self.board.put_back(lane.take_back(lane.fed[0].seq))
        self.alive.difference_update(self.board.stale(self.now))

    @invariant()
    def whole(self) -> None:
        self.board.check()
        everywhere = [*self.board.waiting_plain, *self.board.waiting_loop]
        for lane in self.board.lanes.values():
            everywhere += lane.fed
        assert set(everywhere) == self.alive
        assert self.board.idle == (not self.alive)


Machine.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestMachine = Machine.TestCase


def test_small_coroutines_do_not_starve_a_function_that_needs_a_whole_slot() -> None:
    on = board(slots=1, lanes=1)
    loop = on.open_lane(5, is_loop=True)
    loop.ready = True
    small = group(is_async=True, cpu=0.5)
    on.add(attempts(small, 1, now_ns=1), is_async=True)
    on.dispatch(1)
    on.add(attempts(group(), 1, now_ns=2), is_async=False)
    on.add(attempts(small, 5, now_ns=3), is_async=True)
    on.dispatch(3)
    assert [len(lane.fed) for lane in on.lanes.values()] == [0, 1]
    end(on, loop)
    on.dispatch(4)
    assert [len(lane.fed) for lane in on.lanes.values()] == [1, 0]


def test_children_are_not_all_started_at_once() -> None:
    on = Board({"cpu": 100.0})
    give(on, group(), 100)
    assert on.lanes_wanted() == (8, 0)
    for number in range(8):
        on.open_lane(number, is_loop=False)
    assert on.lanes_wanted() == (0, 0)
    on.lanes[0].ready = True
    on.dispatch(0)
    assert on.lanes_wanted() == (1, 0)
