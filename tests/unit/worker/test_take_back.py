"""Agent and child meet in the shared page, in every order in which their reads and writes can follow each other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest

from services.worker.child.protocol import CURRENT, DEAD_FROM, DEAD_TO, may_start, take_back


class Turns:
    """Lets two threads touch the page one access at a time, in a given order of their names; what one has left over comes at the end."""

    def __init__(self, order: str) -> None:
        self._left = list(order)
        self._ended: set[str] = set()
        self._changed = threading.Condition()

    def wait(self, name: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._mine(name), 10)
            if self._left:
                del self._left[0]
            self._changed.notify_all()

    def _mine(self, name: str) -> bool:
        while self._left and self._left[0] in self._ended:
            del self._left[0]
        return not self._left or self._left[0] == name

    def end(self, name: str) -> None:
        with self._changed:
            self._ended.add(name)
            self._changed.notify_all()


class Page:
    """The page as one side sees it."""

    def __init__(self, words: list[int], turns: Turns, name: str) -> None:
        self._words, self._turns, self._name = words, turns, name

    def __getitem__(self, place: int) -> int:
        self._turns.wait(self._name)
        return self._words[place]

    def __setitem__(self, place: int, value: int) -> None:
        self._turns.wait(self._name)
        self._words[place] = value


def meet(words: list[int], order: str, agent: Callable[[Any], int], child: Callable[[Any], bool]) -> tuple[int, bool]:
    """What both say when they touch the page in that order: `a` for the agent, `c` for the child."""
    turns = Turns(order)
    said: dict[str, Any] = {}

    def run(name: str, side: Callable[[Any], Any]) -> None:
        said[name] = side(Page(words, turns, name))
        turns.end(name)

    threads = [threading.Thread(target=run, args=each) for each in (("a", agent), ("c", child))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return said["a"], said["c"]


ORDERS = ["".join("a" if place in places else "c" for place in range(6)) for places in combinations(range(6), 3)]


@pytest.mark.parametrize("seq", [5, 6, 7])
@pytest.mark.parametrize("before", [(0, 0), (2, 4)], ids=["nothing taken back", "others taken back"])
def test_what_the_agent_takes_for_started_is_started(before: tuple[int, int], seq: int) -> None:
    """The child holds 5 to 9 and is about to start `seq`; the results of those before it have been read."""
    for order in ORDERS:
        words = [0] * 8
        words[CURRENT], words[DEAD_FROM], words[DEAD_TO] = seq - 1, *before
        started, starts = meet(words, order, lambda page: take_back(page, 5, 9), lambda page: may_start(page, seq))
        assert starts or seq > started, f"{order}: the agent takes {seq} for started, and the child leaves it out"
        assert (words[CURRENT], words[DEAD_FROM], words[DEAD_TO]) == (seq, started, 9)


def test_what_was_taken_back_is_not_started_and_what_comes_after_it_is() -> None:
    page: Any = [0] * 8
    assert may_start(page, 1)
    assert take_back(page, 1, 4) == 1
    assert [may_start(page, seq) for seq in (2, 3, 4, 5)] == [False, False, False, True]
