"""Jobs as clients see them."""

from __future__ import annotations

import asyncio
import re
import secrets
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from antfarm import wire
from antfarm.errors import InvalidArgument, JobNotFound, Unavailable
from antfarm.interceptor import Context
from antfarm.model import JobId, JobStatus
from antfarm.v1 import job_pb2, job_pb2_grpc
from services.orchestrator.core import events
from services.orchestrator.core.health import probation_text
from services.orchestrator.core.records import Record
from services.orchestrator.core.state import Job
from services.orchestrator.runtime.driver import Answer, Driver
from services.orchestrator.runtime.explainer import Explainer
from services.orchestrator.runtime.results import first_part
from services.orchestrator.runtime.views import all_durable, job_status, result_seqs
from services.orchestrator.servicers.conversation import Conversation
from services.orchestrator.servicers.outcomes import messages
from services.orchestrator.servicers.streams import until_one_ends

PAGE_SIZE = 100
PAGE_SIZE_MAX = 1_000
BATCHES_IN_FLIGHT_MAX = 8
"""Batches of one AppendTasks call that may wait for the journal: enough to keep it busy, few enough to push back."""
RECORDS_AT_ONCE = 32
INDICES_MAX = 100_000
_PAGE_NUMBER = re.compile(r"[0-9]{1,19}")
EXPECTED_S = 30.0
"""How long a job that is expected is waited for."""
WATCH_PAUSE_S = 0.05
"""Changes of a job within this time are one message of WatchJob."""


class JobServicer(job_pb2_grpc.JobServiceServicer):
    """Translates jobs."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._explainer = Explainer(driver)

    # ---- submission -------------------------------------------------------------------------------------------------

    async def CreateJob(self, request: job_pb2.CreateJobRequest, context: Context) -> job_pb2.CreateJobResponse:
        """A job with its first tasks."""
        job_id = JobId(request.job_id or f"job-{secrets.token_hex(6)}")
        answer = await self._driver.ask(
            lambda number: events.CreateJob(
                request=number,
                job_id=job_id,
                spec=wire.spec_from_wire(request.spec),
                payloads=list(request.payloads),
                close=request.close,
            )
        )
        return job_pb2.CreateJobResponse(job=self._status(self._find(job_id)), existed=answer.existed)

    async def AppendTasks(
        self, request_iterator: AsyncIterator[job_pb2.AppendTasksRequest], context: Context
    ) -> job_pb2.AppendTasksResponse:
        """Batches in order, a few of them on their way to the journal at a time."""
        in_flight: deque[asyncio.Task[Answer]] = deque()
        job_id = ""
        try:
            async for request in request_iterator:
                if job_id and request.job_id != job_id:
                    raise InvalidArgument("all batches of a call belong to one job")
                job_id = request.job_id
                in_flight.append(asyncio.create_task(self._driver.ask(_append_event(request))))
                if len(in_flight) >= BATCHES_IN_FLIGHT_MAX:
                    await in_flight.popleft()
            while in_flight:
                await in_flight.popleft()
        finally:
            for task in in_flight:
                task.cancel()
            await asyncio.gather(*in_flight, return_exceptions=True)
        return job_pb2.AppendTasksResponse(task_count=self._find(job_id).task_count)

    async def CloseJob(self, request: job_pb2.CloseJobRequest, context: Context) -> job_pb2.CloseJobResponse:
        """No more tasks."""
        await self._driver.ask(lambda number: events.CloseJob(request=number, job_id=JobId(request.job_id)))
        return job_pb2.CloseJobResponse(job=self._status(self._find(request.job_id)))

    # ---- looking ----------------------------------------------------------------------------------------------------

    async def GetJob(self, request: job_pb2.GetJobRequest, context: Context) -> job_pb2.GetJobResponse:
        """One job."""
        return job_pb2.GetJobResponse(job=self._status(self._find(request.job_id)))

    async def ExplainJob(self, request: job_pb2.ExplainJobRequest, context: Context) -> job_pb2.ExplainJobResponse:
        """In words."""
        explanation = await self._explainer.job(self._find(request.job_id))
        return job_pb2.ExplainJobResponse(findings=wire.findings_to_wire(explanation))

    async def ListJobs(self, request: job_pb2.ListJobsRequest, context: Context) -> job_pb2.ListJobsResponse:
        """Newest first; the token is the number of the last job of the page before."""
        size = page_size(request.page_size)
        below = above = page_number(request.page_token, default=1 << 62)
        response = job_pb2.ListJobsResponse()
        for number in sorted(self._driver.core.state.jobs, reverse=True):
            job = self._driver.core.state.jobs[number]
            if number >= below or (request.name and job.spec.name != request.name):
                continue
            if len(response.jobs) == size:
                response.next_page_token = str(above)
                break
            response.jobs.append(self._status(job))
            above = number
        return response

    async def WatchJob(
        self, request: job_pb2.WatchJobRequest, context: Context
    ) -> AsyncIterator[job_pb2.WatchJobResponse]:
        """The status now, after each change, and at the end."""
        job = self._find(request.job_id)
        changed = self._driver.watch(job.number)
        try:
            while True:
                changed.clear()
                status = self._stands(job)
                yield job_pb2.WatchJobResponse(job=wire.status_to_wire(status))
                if status.state.terminal:
                    return
                await self._wait(changed, job)
                if not job.ended:  # the end is told at once
                    await asyncio.sleep(WATCH_PAUSE_S)
        finally:
            self._driver.unwatch(job.number, changed)

    async def StreamResults(
        self, request: job_pb2.StreamResultsRequest, context: Context
    ) -> AsyncIterator[job_pb2.StreamResultsResponse]:
        """Durable outcomes after the cursor, in the order of their records."""
        if request.expected:
            await self._expect(request.job_id)
        job = self._find(request.job_id)
        if len(request.indices) > INDICES_MAX:
            raise InvalidArgument(
                f"{len(request.indices)} indices, at most {INDICES_MAX} are possible: ask in several calls"
            )
        wanted = frozenset(request.indices) if request.indices else None
        cursor = request.cursor
        changed = self._driver.watch(job.number)
        try:
            while True:
                changed.clear()
                durable = self._driver.durable_seq
                ended = job.ended and job.ended_seq <= durable
                complete = wanted is not None and all_durable(job, wanted, durable)
                seqs = result_seqs(job, cursor, durable, wanted)
                at, count = 0, RECORDS_AT_ONCE
                while at < len(seqs):
                    found = await self._records(job, seqs[at : at + count])
                    part = first_part(found)
                    if len(part) < len(found):  # large ones: what is too much is read again, so fewer the next time
                        at, count = bisect_right(seqs, part[-1][0]), min(2 * len(part), RECORDS_AT_ONCE)
                    else:
                        at, count = at + count, RECORDS_AT_ONCE
                    del found  # a reader that takes no more keeps the part only
                    last = at >= len(seqs) and (ended or complete or not request.follow)
                    for message in messages(part, job, wanted, cursor, columns=request.columns, last=last):
                        cursor = message.cursor
                        yield message
                if not request.follow or ended or complete:
                    return
                await self._wait(changed, job)
        finally:
            self._driver.unwatch(job.number, changed)

    async def Converse(self, request_iterator: Any, context: Context) -> None:  # type: ignore[override]
        """CreateJob and StreamResults by number, until the client has no more or the server stops."""
        conversation = Conversation(self, context)
        try:
            await until_one_ends(conversation.write(), conversation.read(), self._say_farewell(conversation))
        finally:
            conversation.give_up()

    async def _say_farewell(self, conversation: Conversation) -> None:
        """When the server stops, see that each ask is told, and end the stream."""
        await self._driver.dismissal.wait()
        await conversation.end()
        self._demand_service()

    async def _expect(self, job_id: str) -> None:
        """Wait for a job that may be on its way."""
        with suppress(TimeoutError):
            async with asyncio.timeout(EXPECTED_S):
                while job_id not in self._driver.core.state.by_id:
                    self._demand_service()
                    await self._driver.next_commit()

    async def _wait(self, changed: asyncio.Event, job: Job) -> None:
        """Wait for a change. Unavailable when the server stops, JobNotFound when the job is purged meanwhile."""
        if not self._driver.dismissed:
            await changed.wait()
        self._demand_service()
        if self._driver.core.state.jobs.get(job.number) is not job:
            raise _purged(job)

    async def _records(self, job: Job, seqs: list[int]) -> list[tuple[int, Record]]:
        """Records of a job, all of them: JobNotFound when it was purged meanwhile, for nothing else takes them away."""
        found = await self._driver.read_records(seqs)
        if len(found) < len(seqs):
            raise _purged(job)
        return found

    def _demand_service(self) -> None:
        if self._driver.dismissed:
            raise Unavailable("the orchestrator is stopping: call again")

    # ---- changing ---------------------------------------------------------------------------------------------------

    async def CancelJob(self, request: job_pb2.CancelJobRequest, context: Context) -> job_pb2.CancelJobResponse:
        """Cancel; durable when it answers."""
        await self._driver.ask(
            lambda number: events.CancelJob(request=number, job_id=JobId(request.job_id), cause=request.cause[:1024])
        )
        return job_pb2.CancelJobResponse(job=self._status(self._find(request.job_id)))

    async def PauseJob(self, request: job_pb2.PauseJobRequest, context: Context) -> job_pb2.PauseJobResponse:
        """Give out no more."""
        return job_pb2.PauseJobResponse(job=await self._pause(request.job_id, paused=True))

    async def ResumeJob(self, request: job_pb2.ResumeJobRequest, context: Context) -> job_pb2.ResumeJobResponse:
        """Give out again."""
        return job_pb2.ResumeJobResponse(job=await self._pause(request.job_id, paused=False))

    async def _pause(self, job_id: str, *, paused: bool) -> job_pb2.Job:
        await self._driver.ask(lambda number: events.PauseJob(request=number, job_id=JobId(job_id), paused=paused))
        return self._status(self._find(job_id))

    async def RetryJob(self, request: job_pb2.RetryJobRequest, context: Context) -> job_pb2.RetryJobResponse:
        """The failed tasks again, as a new job."""
        new_job_id = JobId(request.new_job_id or f"job-{secrets.token_hex(6)}")
        await self._driver.ask(
            lambda number: events.RetryJob(request=number, job_id=JobId(request.job_id), new_job_id=new_job_id)
        )
        return job_pb2.RetryJobResponse(job=self._status(self._find(new_job_id)))

    async def PurgeJob(self, request: job_pb2.PurgeJobRequest, context: Context) -> job_pb2.PurgeJobResponse:
        """Remove an ended job."""
        await self._driver.ask(lambda number: events.PurgeJob(request=number, job_id=JobId(request.job_id)))
        return job_pb2.PurgeJobResponse()

    # ---- shared -----------------------------------------------------------------------------------------------------

    def _find(self, job_id: str) -> Job:
        return find_job(self._driver, job_id)

    def _status(self, job: Job) -> job_pb2.Job:
        return wire.status_to_wire(self._stands(job))

    def _stands(self, job: Job) -> JobStatus:
        driver = self._driver
        paused = driver.core.state.paused_types.get(job.template.type)
        why = probation_text(paused, driver.clock.monotonic_ns()) if paused is not None else ""
        return job_status(job, durable_seq=driver.durable_seq, wall_ns=driver.clock.wall_ns(), type_paused=why)


def find_job(driver: Driver, job_id: str) -> Job:
    """The job of that id. JobNotFound otherwise."""
    job = driver.core.state.by_id.get(job_id)
    if job is None:
        raise JobNotFound(f"no job {job_id[:300]!r} here: `antfarm job list` shows those that are")
    return job


def _purged(job: Job) -> JobNotFound:
    return JobNotFound(f"job {job.job_id} was purged")


def page_size(asked: int) -> int:
    """Items in a page."""
    return min(asked or PAGE_SIZE, PAGE_SIZE_MAX)


def page_number(token: str, *, default: int) -> int:
    """Where a page begins. InvalidArgument for a token that no page gave."""
    if not token:
        return default
    if not _PAGE_NUMBER.fullmatch(token):
        raise InvalidArgument("page_token: use the next_page_token of the page before")
    return int(token)


def _append_event(request: job_pb2.AppendTasksRequest) -> Callable[[int], events.AppendTasks]:
    payloads = list(request.payloads)
    return lambda number: events.AppendTasks(
        request=number,
        job_id=JobId(request.job_id),
        first_index=request.first_index,
        payloads=payloads,
        close=request.close,
    )
