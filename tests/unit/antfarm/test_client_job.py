"""The handles of jobs and tasks: whatever becomes of the stream of outcomes, whoever waits is told."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from antfarm.client.connection import Connection
from antfarm.client.job import AsyncJob, Making
from antfarm.errors import InvalidArgument, Unavailable


class Silent:
    """A connection that brings nothing."""

    async def results(self, job_id: str, **_: Any) -> Any:
        await asyncio.Event().wait()
        yield []

    watch = results


def job(connection: Any = None, **fields: Any) -> AsyncJob[Any]:
    return AsyncJob(cast(Connection, connection or Silent()), "j", **fields)


async def test_who_begins_to_wait_as_the_submission_fails_is_told_why() -> None:
    submitted = job(task_count=1, making=Making())
    asyncio.get_running_loop().call_soon(submitted.made, Unavailable("refused"))
    async with asyncio.timeout(5):
        with pytest.raises(Unavailable, match=r"^refused$"):
            await submitted.future(0).result()


async def test_who_begins_to_wait_as_the_farm_is_closed_is_told_so() -> None:
    known = job(task_count=2)
    asyncio.get_running_loop().call_soon(known.forget)
    async with asyncio.timeout(5):
        with pytest.raises(Unavailable, match=r"^the farm was closed; connect again$"):
            await known.future(0).result()


async def test_a_wait_that_is_over_tells_its_length() -> None:
    for timeout, said in (("10ms", "0.01"), (0.01, "0.01"), (0, "0")):
        with pytest.raises(TimeoutError, match=rf"^task j/0 has not ended within {said} s$"):
            await job(task_count=1).future(0).result(timeout)
        with pytest.raises(TimeoutError, match=rf"^job j has not ended within {said} s$"):
            await job(task_count=1).wait(timeout)


async def test_a_wait_of_no_length_leaves_no_waiter() -> None:
    known = job(task_count=1)
    with pytest.raises(InvalidArgument, match="is not a length of time"):
        await known.future(0).result("soon")
    assert not known._waiters


async def test_a_job_that_is_forgotten_may_be_listened_to_again() -> None:
    known = job(task_count=1)
    async with asyncio.timeout(5):
        for _ in range(2):
            waiter = known.waiter(0)
            known.forget()
            with pytest.raises(Unavailable, match=r"^the farm was closed; connect again$"):
                await waiter
