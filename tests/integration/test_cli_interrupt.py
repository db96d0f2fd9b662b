"""Who only waits for a job and is interrupted is told that the job goes on."""

from __future__ import annotations

import asyncio

import pytest
from fake_jobs import FakeJobs

from antfarm.cli.__main__ import _parser
from antfarm.v1 import job_pb2


class Endless(FakeJobs):
    """Jobs that never end; `waited_for` is set when somebody waits for one."""

    def __init__(self) -> None:
        super().__init__()
        self.waited_for = asyncio.Event()

    async def WatchJob(self, request, context):  # type: ignore[no-untyped-def, override]
        yield job_pb2.WatchJobResponse(job=self.job(request.job_id))
        self.waited_for.set()
        await asyncio.sleep(600)

    async def StreamResults(self, request, context):  # type: ignore[no-untyped-def, override]
        self.waited_for.set()
        await asyncio.sleep(600)
        yield job_pb2.StreamResultsResponse()


@pytest.mark.parametrize(
    "words",
    ["job wait there", "job watch there", "job results -f there", "submit app.task --wait --job-id there"],
)
async def test_who_waits_and_is_interrupted_is_told_that_the_job_goes_on(words: str) -> None:
    async with Endless() as fake:
        fake.jobs["there"] = []
        options = _parser().parse_args(["-c", fake.address, *words.split()])
        command = asyncio.create_task(options.run(options))
        await asyncio.wait_for(fake.waited_for.wait(), 30)
        assert not command.done()
        command.cancel()  # as Ctrl-C does
        with pytest.raises(asyncio.CancelledError):
            await command
        assert options.parting == "job there goes on: `antfarm job wait there` waits for it"
