"""A JobService over real gRPC that keeps jobs in memory, "runs" each task by returning its payload, and breaks calls by a seeded dice.

It follows the protocol's comments to the letter: batches whole or not at all, in order; repetitions recognised by index and content;
outcomes once each from a cursor on. Whatever is broken is broken before or after it took effect.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

from antfarm import errors, net
from antfarm.interceptor import ErrorInterceptor
from antfarm.model import PROTOCOL_MINOR
from antfarm.v1 import (
    common_pb2,
    job_pb2,
    job_pb2_grpc,
    system_pb2,
    system_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)
from services.orchestrator.servicers.conversation import Conversation

RECORDED_TOGETHER = 300


class _Breaking(Conversation):
    """Breaks the whole stream by the same dice."""

    async def _take(self, request: job_pb2.ConverseRequest) -> None:
        self._calls.maybe_break()
        await super()._take(request)


class FakeJobs(
    job_pb2_grpc.JobServiceServicer, system_pb2_grpc.SystemServiceServicer, worker_pb2_grpc.WorkerServiceServicer
):
    """Jobs in memory. `trouble` is the chance of each call or frame to break."""

    def __init__(self, seed: int = 0, trouble: float = 0.0) -> None:
        self.dice = random.Random(seed)
        self.trouble = trouble
        self.jobs: dict[str, list[bytes]] = {}
        self.specs: dict[str, bytes] = {}
        self.there: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.closed: set[str] = set()
        self.cancelled: set[str] = set()
        self.broken = 0
        self.conversations = 0
        self.protocol_minor = PROTOCOL_MINOR
        self.server = net.make_server([ErrorInterceptor()])
        self.address = ""

    async def __aenter__(self) -> FakeJobs:
        job_pb2_grpc.add_JobServiceServicer_to_server(self, self.server)
        system_pb2_grpc.add_SystemServiceServicer_to_server(self, self.server)
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(self, self.server)
        self.address = f"127.0.0.1:{net.bind(self.server, '127.0.0.1', 0, None, insecure=False)}"
        await self.server.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.server.stop(0)

    def maybe_break(self) -> None:
        """Break here, by the dice."""
        if self.dice.random() < self.trouble:
            self.broken += 1
            if self.dice.random() < 0.3:
                raise errors.Overloaded("the fake is overloaded", 0.01)
            raise errors.Unavailable("the fake broke the call")

    def job(self, job_id: str) -> job_pb2.Job:
        if job_id not in self.jobs:
            raise errors.JobNotFound(f"no job {job_id}")
        state = job_pb2.JOB_STATE_SUCCEEDED if job_id in self.closed else job_pb2.JOB_STATE_OPEN
        if job_id in self.cancelled:
            state = job_pb2.JOB_STATE_CANCELLED
        return job_pb2.Job(job_id=job_id, state=state, task_count=len(self.jobs[job_id]))

    def append(self, job_id: str, first: int, payloads: Any, *, close: bool) -> None:
        have = self.jobs[job_id]
        if first > len(have):
            raise errors.Gap(f"batch at {first}, the job has {len(have)}")
        known = have[first : first + len(payloads)]
        if known != list(payloads)[: len(known)]:
            raise errors.Conflict("other content")
        fresh = list(payloads)[len(known) :]
        if fresh and (job_id in self.closed or job_id in self.cancelled):
            raise errors.JobClosed("closed")
        have.extend(fresh)
        if close:
            self.closed.add(job_id)

    async def GetServerInfo(self, request: Any, context: Any) -> Any:
        return system_pb2.GetServerInfoResponse(
            program="orchestrator", protocol_major=1, protocol_minor=self.protocol_minor
        )

    async def ListWorkers(self, request: Any, context: Any) -> Any:
        return worker_pb2.ListWorkersResponse()

    async def CreateJob(self, request: job_pb2.CreateJobRequest, context: Any) -> Any:
        self.maybe_break()
        existed = request.job_id in self.jobs
        spec = request.spec.SerializeToString(deterministic=True)
        if self.specs.setdefault(request.job_id, spec) != spec:
            raise errors.Conflict("another spec")
        self.jobs.setdefault(request.job_id, [])
        self.there[request.job_id].set()
        self.append(request.job_id, 0, request.payloads, close=request.close)
        self.maybe_break()
        return job_pb2.CreateJobResponse(job=self.job(request.job_id), existed=existed)

    async def Converse(self, request_iterator: Any, context: Any) -> None:
        self.conversations += 1
        conversation = _Breaking(self, context)
        writing = asyncio.create_task(conversation.write())
        try:
            await conversation.read()
        finally:
            conversation.give_up()
            writing.cancel()

    async def AppendTasks(self, request_iterator: Any, context: Any) -> Any:
        count = 0
        async for request in request_iterator:
            self.maybe_break()
            self.append(request.job_id, request.first_index, request.payloads, close=request.close)
            count = len(self.jobs[request.job_id])
            self.maybe_break()
        return job_pb2.AppendTasksResponse(task_count=count)

    async def GetJob(self, request: job_pb2.GetJobRequest, context: Any) -> Any:
        self.maybe_break()
        return job_pb2.GetJobResponse(job=self.job(request.job_id))

    async def WatchJob(self, request: job_pb2.WatchJobRequest, context: Any) -> AsyncIterator[Any]:
        self.maybe_break()
        yield job_pb2.WatchJobResponse(job=self.job(request.job_id))

    async def StreamResults(self, request: job_pb2.StreamResultsRequest, context: Any) -> AsyncIterator[Any]:
        if request.expected:
            await self.there[request.job_id].wait()
        self.job(request.job_id)
        payloads = self.jobs[request.job_id]
        order = random.Random(request.job_id).sample(range(len(payloads)), len(payloads))
        sent = request.cursor
        while sent < len(order):
            self.maybe_break()
            step = self.dice.randint(1, 500)
            results = [
                common_pb2.TaskResult(
                    index=index, state=common_pb2.TASK_STATE_SUCCEEDED, attempt=1, result=payloads[index]
                )
                for index in order[sent : sent + step]
            ]
            sent += len(results)
            # A message may end amid what was recorded together; the cursor is what was whole before it.
            whole = sent if sent == len(order) else sent - sent % RECORDED_TOGETHER
            yield job_pb2.StreamResultsResponse(results=results, cursor=whole)
        self.maybe_break()
