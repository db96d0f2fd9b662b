"""Waiting for several futures and jobs: what is handed out is done, and what went wrong is raised."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from antfarm.client.arrival import completed
from antfarm.client.connection import Connection
from antfarm.client.job import AsyncFuture, AsyncJob
from antfarm.errors import Unavailable
from antfarm.model import TaskState
from antfarm.v1.common_pb2 import TaskResult


class Scripted:
    """A connection whose result streams do what the test says, one after the other; the last one says nothing more."""

    allow_pickle = False

    def __init__(self, *streams: list[TaskResult | Exception]) -> None:
        self.streams = list(streams)

    async def results(self, job_id: str, **_: Any) -> Any:
        for step in self.streams.pop(0):
            if isinstance(step, Exception):
                raise step
            yield [step]
        await asyncio.Event().wait()


def outcome(index: int) -> TaskResult:
    return TaskResult(index=index, state=TaskState.SUCCEEDED.value)


def job(*streams: list[TaskResult | Exception]) -> AsyncJob[Any]:
    return AsyncJob(cast(Connection, Scripted(*streams)), "j", task_count=2)


async def taken(found: list[AsyncFuture[Any]], *things: Any) -> None:
    """Put all that is completed into `found`; each must be done by then."""
    async with asyncio.timeout(5):
        async for batch in completed(*things):
            assert [future.done() for future in batch] == [True] * len(batch)
            found += batch


async def test_futures_that_cannot_be_waited_for_are_not_handed_out_though_another_try_would_bring_some() -> None:
    some = job([Unavailable("patience is over")], [outcome(0)])
    found: list[AsyncFuture[Any]] = []
    with pytest.raises(Unavailable, match=r"^patience is over$"):
        await taken(found, some.future(0), some.future(1))
    assert found == []


async def test_futures_that_came_before_the_trouble_are_handed_out_first() -> None:
    some = job([outcome(1), Unavailable("patience is over")])
    found: list[AsyncFuture[Any]] = []
    with pytest.raises(Unavailable, match=r"^patience is over$"):
        await taken(found, some.future(0), some.future(1))
    assert [future.index for future in found] == [1]


async def test_an_error_of_whatever_kind_in_one_of_several_is_raised() -> None:
    found: list[AsyncFuture[Any]] = []
    with pytest.raises(ZeroDivisionError):
        await taken(found, job([outcome(0), ZeroDivisionError()]), job([]))
    assert [future.index for future in found] == [0]
