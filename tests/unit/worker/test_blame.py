"""Whom the end of a process of coroutines is laid to: those that had begun there. The others run elsewhere as if nothing had been."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from test_start_again import Farm, Started

from antfarm.model import PROCESS_LOST_KIND, SECOND_NS, Ending, FailureClass
from services.worker.child.protocol import OUT_DONE


class Loop(Farm):
    """A driver with one child that was fed two coroutines."""

    async def fed(self) -> Started:
        await self.serve()
        self.give("aio", 1, 2)
        child = await self.child()
        child.is_ready()
        assert self.where(child) == ([1, 2], [])
        return child

    def where(self, child: Started) -> tuple[list[int], list[int]]:
        """What the child has, and what waits."""
        board = self.driver._board
        lane = board.lanes.get(child.number)
        return [a.index for a in lane.fed] if lane else [], [a.index for a in board.waiting_loop]

    def failure(self, index: int) -> tuple[int, str]:
        failure = self.link.outcomes[index]["failure"]
        return failure.failure_class, failure.kind

    async def another_runs(self, *indices: int) -> None:
        child = await self.child()
        assert child.mode == "loop"
        child.is_ready()
        assert self.where(child) == ([*indices], [])
        child.ends(*range(1, len(indices) + 1))
        assert [self.link.ending(index) for index in indices] == [Ending.SUCCEEDED] * len(indices)


@pytest.fixture
async def farm(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Loop]:
    made = Loop(monkeypatch)
    yield made
    await made.close()


async def test_one_that_began_alone_is_to_blame_and_what_had_not_begun_waits_again(farm: Loop) -> None:
    child = await farm.fed()
    child.started_last = 1
    child.dies(-11)
    assert farm.failure(1) == (FailureClass.CRASH, "signal SIGSEGV")
    assert farm.where(child) == ([], [2])
    await farm.another_runs(2)


async def test_who_had_not_begun_when_one_that_blocks_was_killed_is_not_blamed_for_it(farm: Loop) -> None:
    child = await farm.fed()
    farm.driver.on_revoke([("aio", 1, 1, 1)], "cancelled")
    farm.driver._board.lanes[child.number].doomed = True
    child.started_last = 1
    child.dies(-9)
    assert farm.link.ending(1) == Ending.REVOKED
    await farm.another_runs(2)


async def test_nobody_is_blamed_when_all_that_had_begun_had_ended(farm: Loop) -> None:
    child = await farm.fed()
    child.says([OUT_DONE, 1, 1_000, b"1"])
    child.started_last = 1
    child.dies(-11)
    assert sorted(farm.link.outcomes) == [1]
    await farm.another_runs(2)


async def test_one_that_had_not_begun_and_was_revoked_ends_so(farm: Loop) -> None:
    child = await farm.fed()
    farm.driver.on_revoke([("aio", 2, 1, 1)], "cancelled")
    child.started_last = 1
    child.dies(-11)
    assert farm.failure(1) == (FailureClass.CRASH, "signal SIGSEGV")
    assert farm.link.ending(2) == Ending.REVOKED


async def test_of_several_that_had_begun_nobody_knows(farm: Loop) -> None:
    child = await farm.fed()
    child.started_last = 2
    child.dies(-11)
    assert [farm.failure(index) for index in (1, 2)] == [(FailureClass.INFRA, PROCESS_LOST_KIND)] * 2


async def test_whom_we_killed_for_the_sake_of_another_goes_back_as_begun(farm: Loop) -> None:
    """Though the other one has ended meanwhile, or had not begun itself."""
    child = await farm.fed()
    farm.now_ns += SECOND_NS
    farm.driver.on_revoke([("aio", 2, 1, 1)], "cancelled")
    farm.driver._board.lanes[child.number].doomed = True
    child.started_last = 1
    child.dies(-9)
    assert (farm.link.ending(1), farm.link.outcomes[1]["never_started"]) == (Ending.RELEASED, False)
    assert farm.link.ending(2) == Ending.REVOKED
