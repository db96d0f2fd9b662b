"""Ready sets: in order, without what is not QUEUED any more, at a cost that does not depend on how much that is."""

from __future__ import annotations

import random
from typing import Any

from antfarm.model import TaskState
from services.orchestrator.core.ready import Ready

Q, A, C = int(TaskState.QUEUED), int(TaskState.ACTIVE), int(TaskState.CANCELLED)


def test_returned_tasks_come_before_fresh_ones() -> None:
    ready, states = Ready(), bytearray([Q] * 10)
    ready.add_range(0, 4)
    ready.add_returned(7)
    ready.add_returned(6)
    assert ready.take(3, states) == [7, 6, 0]
    assert ready.take(9, states) == [1, 2, 3]
    assert not ready


def test_adjacent_ranges_are_one() -> None:
    ready = Ready()
    for index in range(1_000):
        ready.add_range(index, index + 1)
    ready.add_range(1_000, 1_000)
    assert len(ready._ranges) == 1
    assert ready.size(10_000) == 1_000
    assert ready.size(7) == 7


def test_what_is_not_queued_is_left_out_and_nothing_is_given_twice() -> None:
    ready, states = Ready(), bytearray([Q] * 6)
    ready.add_range(0, 6)
    for index in (2, 2, 5):
        ready.add_returned(index)
    states[3] = A
    states[5] = C
    assert ready.take(2, states) == [2, 0]
    states[0] = states[2] = A
    assert ready.take(9, states) == [1, 4]


def test_prepending_puts_all_of_the_other_first() -> None:
    ready, other, states = Ready(), Ready(), bytearray([Q] * 20)
    ready.add_range(10, 12)
    ready.add_returned(19)
    other.add_range(0, 2)
    other.add_range(5, 7)
    other.add_returned(18)
    ready.prepend(other)
    assert not other
    assert ready.take(20, states) == [18, 19, 0, 1, 5, 6, 10, 11]


def test_a_million_cancelled_tasks_are_passed_over_at_once() -> None:
    class Watched(bytearray):
        looks = 0

        def __getitem__(self, index: Any) -> Any:
            Watched.looks += 1
            return super().__getitem__(index)

    ready, states = Ready(), Watched([C] * 1_000_000)
    states[-1] = Q
    ready.add_range(0, 1_000_000)
    assert ready.take(2, states) == [999_999]
    assert Watched.looks <= 1, "none of them is looked at by itself"


def test_any_mixture_gives_each_queued_task_once() -> None:
    for seed in range(200):
        dice = random.Random(seed)
        states, ready, given = bytearray(50), Ready(), []
        for _ in range(30):
            start = dice.randrange(50)
            end = min(start + dice.randrange(6), 50)
            for index in range(start, end):
                if states[index] == 0:
                    states[index] = Q
            if dice.random() < 0.5:
                ready.add_range(start, end)
            else:
                for index in range(start, end):
                    ready.add_returned(index)
            if dice.random() < 0.5:
                states[dice.randrange(50)] = C
            for index in ready.take(dice.randrange(4), states):
                assert states[index] == Q
                states[index] = A
                given.append(index)
        given += ready.take(100, states)
        assert len(given) == len(set(given))
        assert all(states[index] != Q or index in given for index in range(50))
