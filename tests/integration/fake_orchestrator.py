"""A scripted orchestrator over real grpc.aio: gives what the test says, within the window, and keeps all that it hears."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import columns
import grpc
from google.protobuf import duration_pb2

from antfarm import net, wire
from antfarm.errors import AntFarmError, SessionNotFound
from antfarm.interceptor import ErrorInterceptor
from antfarm.model import PROTOCOL_MINOR
from antfarm.v1 import (
    common_pb2,
    job_pb2,
    job_pb2_grpc,
    report_queue_pb2,
    report_queue_pb2_grpc,
    work_queue_pb2,
    work_queue_pb2_grpc,
)

Token = tuple[str, int, int, int]


async def until(condition: Callable[[], Any], timeout_s: float = 20.0, what: str = "") -> Any:
    """Poll until the condition holds; its last value. Fails with `what` after the time."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what or condition}")
        await asyncio.sleep(0.005)


@dataclass
class Connection:
    """One attached worker."""

    session_id: str
    hello: work_queue_pb2.Hello
    frames: asyncio.Queue[work_queue_pb2.PullTasksResponse | None] = field(default_factory=asyncio.Queue)
    window: int = 0
    outstanding: set[Token] = field(default_factory=set)
    heartbeats: list[work_queue_pb2.Heartbeat] = field(default_factory=list)
    credits: list[int] = field(default_factory=list)
    goodbye: str | None = None
    ended: bool = False


class FakeOrchestrator(
    work_queue_pb2_grpc.WorkQueueServiceServicer,
    report_queue_pb2_grpc.ReportQueueServiceServicer,
    job_pb2_grpc.JobServiceServicer,
):
    """See the module. Change its public fields between steps of a test."""

    def __init__(self, *, heartbeat_s: float = 0.2, lease_s: float = 2.0) -> None:
        self.port = 0
        self.epoch = 1
        self.heartbeat_s, self.lease_s = heartbeat_s, lease_s
        self.storage_address = ""
        self.orchestrator_id = "fake"
        self.protocol_minor = PROTOCOL_MINOR
        self.connections: list[Connection] = []
        self.waiting: deque[tuple[work_queue_pb2.TaskGroup, work_queue_pb2.Assignment]] = deque()
        self.outcomes: dict[Token, list[report_queue_pb2.Outcome]] = {}
        self.words: list[report_queue_pb2.Running] = []
        self.report_frames = 0
        self.revoke_at_welcome: list[Token] = []
        self.revoke_at_beat: list[Token] = []
        self.refuse_with: AntFarmError | None = None
        self.verdict: Callable[[Token, report_queue_pb2.Outcome], Any] = lambda token, outcome: (
            report_queue_pb2.VERDICT_CODE_ACCEPTED
        )
        self.ack_beats = True
        self.welcome_after_s = 0.0
        self.batch = 512
        self.results: dict[str, list[common_pb2.TaskResult]] = {}
        self._server: grpc.aio.Server | None = None

    # ---- control ----------------------------------------------------------------------------------------------------

    async def start(self) -> FakeOrchestrator:
        """Serve on a free port, or on the same one as before."""
        server = net.make_server([ErrorInterceptor()])
        work_queue_pb2_grpc.add_WorkQueueServiceServicer_to_server(self, server)
        report_queue_pb2_grpc.add_ReportQueueServiceServicer_to_server(self, server)
        job_pb2_grpc.add_JobServiceServicer_to_server(self, server)
        self.port = net.bind(server, "127.0.0.1", self.port, None, insecure=False)
        await server.start()
        self._server = server
        return self

    async def stop(self) -> None:
        """Vanish as a killed process does; the port stays free for the next start."""
        assert self._server is not None
        self.hang_up()
        await self._server.stop(None)
        self._server = None

    async def __aenter__(self) -> FakeOrchestrator:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            await self.stop()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def now(self) -> Connection:
        """The last connection."""
        return self.connections[-1]

    async def attached(self, count: int = 1, timeout_s: float = 20.0) -> Connection:
        """Wait for the count-th connection in all."""
        await until(lambda: len(self.connections) >= count, timeout_s, f"connection {count}")
        return self.connections[count - 1]

    def hang_up(self) -> None:
        """End all streams without a word."""
        for connection in self.connections:
            connection.frames.put_nowait(None)

    def give(
        self,
        type_: str,
        payloads: Iterable[bytes],
        *,
        job_id: str = "job",
        first: int = 0,
        attempt: int = 1,
        epoch: int | None = None,
        inputs: Iterable[common_pb2.Dependency] = (),
        remaining: duration_pb2.Duration | None = None,
        **template: Any,
    ) -> list[Token]:
        """Queue tasks; they go out as the window allows. `remaining`: what is left of their total time."""
        group = work_queue_pb2.TaskGroup(
            job_id=job_id,
            epoch=self.epoch if epoch is None else epoch,
            template=common_pb2.TaskTemplate(type=type_, **template),
            inputs=inputs,
        )
        tokens = []
        for index, payload in enumerate(payloads, first):
            assignment = work_queue_pb2.Assignment(index=index, attempt=attempt, payload=payload, remaining=remaining)
            self.waiting.append((group, assignment))
            tokens.append((job_id, index, group.epoch, attempt))
        self.pump()
        return tokens

    def pump(self) -> None:
        """Send what waits to the attached worker, within its window."""
        alive = [c for c in self.connections if not c.ended]
        if not alive:
            return
        connection = alive[-1]
        while self.waiting and len(connection.outstanding) < connection.window:
            room = min(connection.window - len(connection.outstanding), self.batch)
            head = self.waiting[0][0]
            group = work_queue_pb2.TaskGroup()
            group.CopyFrom(head)
            while self.waiting and room and self.waiting[0][0] is head:
                assignment = self.waiting.popleft()[1]
                if assignment.HasField("remaining"):
                    group.assignments.append(assignment)
                else:
                    group.columns.indices.append(assignment.index)
                    group.columns.attempts.append(assignment.attempt)
                    group.columns.payloads.append(assignment.payload)
                connection.outstanding.add((head.job_id, assignment.index, head.epoch, assignment.attempt))
                room -= 1
            self.send(tasks=work_queue_pb2.Tasks(groups=[group]))

    def send(self, **frame: Any) -> None:
        """Send one frame to the last connection, whatever it is."""
        self.now.frames.put_nowait(work_queue_pb2.PullTasksResponse(**frame))

    def revoke(self, tokens: list[Token], cause: str = "cancelled") -> None:
        self.send(revoke=work_queue_pb2.Revoke(attempts=wire.tokens_to_wire(tokens), cause=cause))

    def drain(self, limit_s: float) -> None:
        self.send(drain=work_queue_pb2.Drain(limit=wire.seconds_to_wire(limit_s)))

    async def outcome(self, token: Token, timeout_s: float = 20.0) -> report_queue_pb2.Outcome:
        """The first outcome of a token."""
        await until(lambda: token in self.outcomes, timeout_s, f"outcome of {token}; have {list(self.outcomes)[:10]}")
        return self.outcomes[token][0]

    # ---- service ----------------------------------------------------------------------------------------------------

    async def PullTasks(self, requests: AsyncIterator[work_queue_pb2.PullTasksRequest], context: Any) -> Any:
        if self.refuse_with is not None:
            raise self.refuse_with
        first = await anext(requests)
        connection = Connection(session_id=f"session-{len(self.connections)}", hello=first.hello)
        connection.window = first.hello.window
        held = wire.tokens_from_wire(first.hello.held)
        connection.outstanding = {token for token in held if token not in self.outcomes}
        await asyncio.sleep(self.welcome_after_s)
        self.connections.append(connection)
        yield work_queue_pb2.PullTasksResponse(
            welcome=work_queue_pb2.Welcome(
                epoch=self.epoch,
                owner=b"o" * 16,
                session_id=connection.session_id,
                heartbeat=wire.seconds_to_wire(self.heartbeat_s),
                lease=wire.seconds_to_wire(self.lease_s),
                revoked=wire.tokens_to_wire(self.revoke_at_welcome),
                storage_address=self.storage_address,
                orchestrator_id=self.orchestrator_id,
                protocol_minor=self.protocol_minor,
            )
        )
        reader = asyncio.create_task(self._read(requests, connection))
        self.pump()
        try:
            while (frame := await connection.frames.get()) is not None:
                yield frame
        finally:
            connection.ended = True
            reader.cancel()

    async def _read(self, requests: AsyncIterator[work_queue_pb2.PullTasksRequest], connection: Connection) -> None:
        async for request in requests:
            kind = request.WhichOneof("frame")
            if kind == "credit":
                connection.window = request.credit.window
                connection.credits.append(request.credit.window)
                self.pump()
            elif kind == "heartbeat":
                connection.heartbeats.append(request.heartbeat)
                if self.ack_beats:
                    ack = work_queue_pb2.HeartbeatAck(
                        number=request.heartbeat.number, revoked=wire.tokens_to_wire(self.revoke_at_beat)
                    )
                    connection.frames.put_nowait(work_queue_pb2.PullTasksResponse(heartbeat_ack=ack))
            elif kind == "goodbye":
                connection.goodbye = request.goodbye.cause
                break
        connection.ended = True
        connection.frames.put_nowait(None)

    async def PushReports(self, requests: AsyncIterator[report_queue_pb2.PushReportsRequest], context: Any) -> Any:
        hello = await anext(requests)
        found = [c for c in self.connections if c.session_id == hello.hello.session_id and not c.ended]
        if not found:
            raise SessionNotFound("attach again")
        connection = found[0]
        async for request in requests:
            self.report_frames += 1
            self.words.extend(request.reports.running)
            by_code: dict[Any, report_queue_pb2.Verdict] = {}
            for group in request.reports.outcomes:
                for outcome in columns.outcomes_in(group):
                    token = (group.job_id, outcome.index, group.epoch, outcome.attempt)
                    self.outcomes.setdefault(token, []).append(outcome)
                    connection.outstanding.discard(token)
                    code = self.verdict(token, outcome)
                    if code is None:
                        continue
                    verdict = by_code.setdefault(code, report_queue_pb2.Verdict(code=code))
                    verdict.report_nos.append(outcome.report_no)
                    if code == report_queue_pb2.VERDICT_CODE_RETRY:
                        verdict.retry_after.CopyFrom(wire.seconds_to_wire(0.1))
            if by_code:
                yield report_queue_pb2.PushReportsResponse(verdicts=list(by_code.values()))
            self.pump()

    async def StreamResults(self, request: job_pb2.StreamResultsRequest, context: Any) -> Any:
        wanted = set(request.indices)
        rows = [r for r in self.results[request.job_id] if not wanted or r.index in wanted]
        for start in range(0, len(rows), 2):
            yield job_pb2.StreamResultsResponse(results=rows[start : start + 2], cursor=start + 2)
