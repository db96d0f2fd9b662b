"""An orchestrator of a few lines that says exactly what a test tells it to say, and keeps what the worker says."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
from google.protobuf.duration_pb2 import Duration

from antfarm import net
from antfarm.errors import AntFarmError
from antfarm.interceptor import ErrorInterceptor
from antfarm.v1 import (
    common_pb2,
    report_queue_pb2,
    report_queue_pb2_grpc,
    work_queue_pb2,
    work_queue_pb2_grpc,
)


class FakeOrchestrator(work_queue_pb2_grpc.WorkQueueServiceServicer, report_queue_pb2_grpc.ReportQueueServiceServicer):
    """One worker at a time. `heard` gets each frame of it; `tell` and `judge` speak to it; `hang_up` breaks both streams."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[Any] = asyncio.Queue()
        self.heartbeat_s = 0.1
        self.lease_s = 0.4
        self.epoch = 9
        self.refusal: AntFarmError | None = None
        self.address = ""
        self._pull: Any = None
        self._push: Any = None
        self._broken = asyncio.Event()
        self._server = net.make_server([ErrorInterceptor()])

    async def __aenter__(self) -> FakeOrchestrator:
        work_queue_pb2_grpc.add_WorkQueueServiceServicer_to_server(self, self._server)
        report_queue_pb2_grpc.add_ReportQueueServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{net.bind(self._server, '127.0.0.1', 0, None, insecure=False)}"
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)

    async def PullTasks(self, request_iterator: Any, context: Any) -> None:
        """Welcomes, then listens."""
        hello = (await context.read()).hello
        self.heard.put_nowait(hello)
        if self.refusal is not None:
            raise self.refusal
        self._pull = context
        welcome = work_queue_pb2.Welcome(
            epoch=self.epoch,
            owner=bytes(16),
            session_id="s",
            heartbeat=Duration(nanos=int(self.heartbeat_s * 1e9)),
            lease=Duration(nanos=int(self.lease_s * 1e9)),
        )
        await context.write(work_queue_pb2.PullTasksResponse(welcome=welcome))
        await self._listen(context)

    async def PushReports(self, request_iterator: Any, context: Any) -> None:
        """Listens."""
        assert (await context.read()).hello.session_id == "s"
        self._push = context
        self.heard.put_nowait("report queue")
        await self._listen(context)

    async def _listen(self, context: Any) -> None:
        reading = asyncio.ensure_future(self._read(context))
        broken = asyncio.ensure_future(self._broken.wait())
        await asyncio.wait([reading, broken], return_when=asyncio.FIRST_COMPLETED)
        reading.cancel()
        broken.cancel()
        await asyncio.gather(reading, broken, return_exceptions=True)

    async def _read(self, context: Any) -> None:
        while (message := await context.read()) is not grpc.aio.EOF:
            self.heard.put_nowait(getattr(message, message.WhichOneof("frame")))

    async def hear(self, kind: Any, timeout_s: float = 10.0) -> Any:
        """The next frame of this message class (or the word "report queue"); others before it are passed over."""
        async with asyncio.timeout(timeout_s):
            while True:
                frame = await self.heard.get()
                if frame == kind or (isinstance(kind, type) and isinstance(frame, kind)):
                    return frame

    async def outcomes(self) -> list[report_queue_pb2.Outcome]:
        """The outcomes of the next frame of reports."""
        reports = await self.hear(report_queue_pb2.Reports)
        return [outcome for group in reports.outcomes for outcome in group.outcomes]

    async def attached(self) -> work_queue_pb2.Hello:
        """Wait until both streams of a session stand; its Hello."""
        hello: work_queue_pb2.Hello = await self.hear(work_queue_pb2.Hello)
        await self.hear("report queue")
        return hello

    async def tell(self, **frame: Any) -> None:
        """Send a frame of the Work Queue."""
        await self._pull.write(work_queue_pb2.PullTasksResponse(**frame))

    async def judge(self, code: int, *outcomes: report_queue_pb2.Outcome, retry_after: Duration | None = None) -> None:
        """Send a verdict on some reports."""
        verdict = report_queue_pb2.Verdict(
            code=code, report_nos=[o.report_no for o in outcomes], retry_after=retry_after
        )  # type: ignore[arg-type]
        await self._push.write(report_queue_pb2.PushReportsResponse(verdicts=[verdict]))

    def hang_up(self) -> None:
        """End both streams without a word."""
        self._broken.set()
        self._broken = asyncio.Event()


def tasks(
    kind: str, *payloads: bytes, epoch: int = 9, attempt: int = 1, first: int = 0, **template: Any
) -> work_queue_pb2.Tasks:
    """Assignments of one job, with indices from `first`."""
    group = work_queue_pb2.TaskGroup(
        job_id="job",
        epoch=epoch,
        template=common_pb2.TaskTemplate(type=kind, **template),
        assignments=[
            work_queue_pb2.Assignment(index=first + i, attempt=attempt, payload=p) for i, p in enumerate(payloads)
        ],
    )
    return work_queue_pb2.Tasks(groups=[group])


def held(*indices: int, epoch: int = 9, attempt: int = 1) -> work_queue_pb2.HeldGroup:
    """Tokens of one job."""
    return work_queue_pb2.HeldGroup(job_id="job", epoch=epoch, indices=indices, attempts=[attempt] * len(indices))
