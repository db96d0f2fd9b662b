"""Target `protocol`: bytes of every message that an orchestrator takes, through the parsing, the checks and the translation that its servers use.

From workers, clients and operators they go to the real servicers, from the orchestrator above to the real link and `Upstream`; the driver between
them and the core is a stand-in that handles an event at once. What leaves for workers is built and serialised.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from fuzz_bytes import mutate, twist
from fuzz_core import Maker
from fuzz_world import Broken, World, dump
from google.protobuf.message import DecodeError, Message
from orchestrator_harness import WALL_NS

from antfarm import wire
from antfarm.errors import AntFarmError, Internal
from antfarm.model import SECOND_NS
from antfarm.v1 import (
    common_pb2,
    job_pb2,
    report_queue_pb2,
    system_pb2,
    task_pb2,
    work_queue_pb2,
    worker_pb2,
)
from services.orchestrator.core import effects, events
from services.orchestrator.runtime.above import Above
from services.orchestrator.runtime.driver import Answer
from services.orchestrator.runtime.logbook import Logbook
from services.orchestrator.runtime.sessions import Session, Sessions
from services.orchestrator.servicers.conversation import Conversation
from services.orchestrator.servicers.jobs import JobServicer
from services.orchestrator.servicers.operators import SystemServicer, TaskServicer, WorkerServicer
from services.orchestrator.servicers.queues import ReportQueueServicer, WorkQueueServicer
from services.orchestrator.upstream import Upstream, parse_expansion

SESSIONS_MAX = 8


class Peer:
    """The servicer's side of a call whose messages have all come."""

    def __init__(self, *frames: Message) -> None:
        self._frames = list(frames)
        self.written: list[Any] = []

    async def read(self) -> Any:
        """The next frame."""
        return self._frames.pop(0) if self._frames else grpc.aio.EOF

    async def write(self, frame: Message) -> None:
        """What is sent must be serialisable."""
        frame.SerializeToString()
        self.written.append(frame)

    async def send_initial_metadata(self, metadata: Any) -> None:
        """Nobody waits for it."""

    async def code(self) -> grpc.StatusCode:
        """The call ended in good order."""
        return grpc.StatusCode.OK

    def auth_context(self) -> dict[str, Any]:
        """No TLS."""
        return {}


class Driver:
    """Stands where the driver stands: an event is handled, durable and answered before the call returns."""

    dismissed = True
    """Whoever follows is told so at the end of what is there."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.clock = self
        self.deliver: list[Callable[[effects.Effect], Any]] = []
        self._requests = 0

    @property
    def core(self) -> Any:
        """The world's core."""
        return self.world.core

    @property
    def durable_seq(self) -> int:
        """Everything is durable."""
        return self.world.state.seq

    async def settled(self, seq: int) -> bool:
        """There is room, and all of it is used at once."""
        return seq <= self.durable_seq

    def monotonic_ns(self) -> int:
        """The world's clock."""
        return self.world.now

    def wall_ns(self) -> int:
        """And its other."""
        return self.world.wall_ns

    def post(self, event: Any) -> list[effects.Effect]:
        """As Driver.post; the effects leave at once."""
        found = self.world.give(event)
        for effect in found:
            for deliver in self.deliver:
                deliver(effect)
        return found

    async def ask(self, make_event: Callable[[int], Any]) -> Answer:
        """As Driver.ask."""
        self._requests += 1
        replies = [e for e in self.post(make_event(self._requests)) if isinstance(e, effects.Reply)]
        if len(replies) != 1 or replies[0].request != self._requests:
            raise Broken(f"a request has the answers {replies}")
        if replies[0].error is not None:
            raise replies[0].error
        return Answer(replies[0].existed)

    async def read_records(self, seqs: list[int]) -> list[tuple[int, Any]]:
        """As Driver.read_records."""
        wanted = set(seqs)
        return [entry for entry in self.world.records if entry[0] in wanted]

    def watch(self, job: int) -> asyncio.Event:
        """Nothing is ever waited for."""
        return asyncio.Event()

    def unwatch(self, job: int, event: asyncio.Event) -> None:
        """See `watch`."""


class Farm:
    """The servers of one orchestrator around a world, and the messages that a well-behaved peer would send there."""

    def __init__(self, seed: str, check_every: int) -> None:
        self.dice = random.Random(seed)
        self.world = World(self.dice, check_every=check_every)
        self.maker = Maker(self.world, self.dice)
        self.driver: Any = Driver(self.world)
        self.sessions = Sessions(self.world.state, owner=b"o", orchestrator_id="me", storage_address="")
        self.open: list[Session] = []
        self.driver.deliver.append(self.sessions.deliver)
        logbook = Logbook(self.driver.core.state.by_id, tasks_max=50)
        self.work = WorkQueueServicer(self.driver, self.sessions)
        self.reports = ReportQueueServicer(self.driver, self.sessions, logbook)
        self.jobs = JobServicer(self.driver)
        self.tasks = TaskServicer(self.driver, logbook)
        self.workers = WorkerServicer(self.driver)
        self.system = SystemServicer(self.driver, self.sessions, orchestrator_id="me", warnings=())
        self.upstream = Upstream(
            self.driver, self.sessions, address="127.0.0.1:1", task_types=("t", "s"), slots=2, orchestrator_id="me", storage_address="",
            above=Above(Path("/nowhere")), tls=None,
        )  # fmt: skip
        self.driver.deliver.append(self.upstream.deliver)
        self.last = b""
        self._kinds: list[tuple[Callable[[], Message], Callable[[Any], Awaitable[None]]]] = [
            *[(self._pull, self._on_pull)] * 8,
            *[(self._push, self._on_push)] * 8,
            *[(self._from_above, self._on_from_above)] * 4,
            (self._verdicts_from_above, self._on_verdicts_from_above),
            (self._plan, self._on_plan),
            *[(self._create_job, self._unary(self.jobs.CreateJob))] * 4,
            *[(self._append, self._on_append)] * 2,
            *[self._by_job(cls, method) for cls, method in self._job_methods()],
            (self._list_jobs, self._unary(self.jobs.ListJobs)),
            (self._stream_results, self._stream(self.jobs.StreamResults)),
            *[(self._converse, self._on_converse)] * 2,
            (self._one_task(task_pb2.GetTaskRequest), self._unary(self.tasks.GetTask)),
            (self._one_task(task_pb2.CancelTaskRequest), self._unary(self.tasks.CancelTask)),
            (self._one_task(task_pb2.StreamTaskLogsRequest), self._stream(self.tasks.StreamTaskLogs)),
            (self._list_tasks, self._unary(self.tasks.ListTasks)),
            (lambda: worker_pb2.ListWorkersRequest(page_size=2, page_token="w1"), self._unary(self.workers.ListWorkers)),
            (lambda: worker_pb2.GetWorkerRequest(worker_id="w1"), self._unary(self.workers.GetWorker)),
            (self._drain, self._unary(self.workers.DrainWorker)),
            (lambda: worker_pb2.UndrainWorkerRequest(worker_id="w1"), self._unary(self.workers.UndrainWorker)),
            (system_pb2.GetServerInfoRequest, self._unary(self.system.GetServerInfo)),
        ]  # fmt: skip

    async def one(self) -> bool:
        """One message, as it should be or not. False when it was refused."""
        make, handle = self.maker.pick(self._kinds)
        message = make()
        choice = self.dice.random()
        if choice > 0.7:
            for _ in range(1 + int(self.dice.random() * 3)):
                twist(message, self.dice)
        data = message.SerializeToString()
        if choice < 0.4:
            self.last, data = data, mutate(data, self.dice, self.last)
        try:
            parsed = type(message).FromString(data)
        except DecodeError:
            return False  # gRPC refuses it
        # Where it comes to an event, the world compares; what a servicer refuses by itself is looked at now and then.
        given, before = self.world.given, dump(self.world.state) if self.maker.chance(0.1) else b""
        try:
            await handle(parsed)
        except AntFarmError as error:
            wire.error_to_status(error)
            if before and self.world.given == given and dump(self.world.state) != before:
                raise Broken(f"a refused message changed the state: {error!r}") from None
            return False
        finally:
            await self._drain_sessions()
        return True

    async def _drain_sessions(self) -> None:
        for session in list(self.open):
            for frame in session._frames:
                frame.SerializeToString()
            session._frames.clear()
            if session._verdicts:
                (await session.verdicts()).SerializeToString()
            if session.error is not None or len(self.open) > SESSIONS_MAX:
                self.open.remove(session)
                self.driver.post(events.Detach(session=session.id))
                self.sessions.close(session, AntFarmError("over"))

    def _unary(self, method: Callable[..., Any]) -> Callable[[Any], Awaitable[None]]:
        async def call(request: Any) -> None:
            response = await method(request, Peer())
            response.SerializeToString()

        return call

    def _stream(self, method: Callable[..., AsyncIterator[Any]]) -> Callable[[Any], Awaitable[None]]:
        async def call(request: Any) -> None:
            if isinstance(request, task_pb2.StreamTaskLogsRequest):
                request.follow = False  # it would wait for what a running task says
            async for response in method(request, Peer()):
                response.SerializeToString()

        return call

    def _converse(self) -> Message:
        number = self.dice.randrange(3)
        if self.maker.chance(0.5):
            return job_pb2.ConverseRequest(number=number, create=self._create_job())
        return job_pb2.ConverseRequest(number=number, results=self._stream_results())

    async def _on_converse(self, request: job_pb2.ConverseRequest) -> None:
        peer = Peer(request)
        conversation = Conversation(self.jobs, peer)  # type: ignore[arg-type]
        writing = asyncio.create_task(conversation.write())
        await conversation.read()
        await conversation.end()
        writing.cancel()
        for answer in peer.written:
            if answer.HasField("refused"):
                error = wire.error_from_rpc(wire.rpc_error_of(answer.refused))
                raise Broken(f"a defect: {error}") if isinstance(error, Internal) else error

    # ---- workers ----------------------------------------------------------------------------------------------------

    def _pull(self) -> Message:
        if self.maker.chance(0.2) or not self.open:
            hello: events.Attach = self.maker.attach()
            return work_queue_pb2.PullTasksRequest(
                hello=work_queue_pb2.Hello(
                    protocol_major=1, worker_id=hello.worker_id, incarnation=hello.incarnation, slots=2, window=self.dice.randrange(1, 5), task_types=hello.task_types, labels=dict(hello.labels), resources=dict(hello.resources),
                    max_epoch_seen=max(hello.max_epoch_seen, 0), held=self._held(hello.held), descendants=hello.descendants,
                    orchestrator=hello.orchestrator,
                )
            )  # fmt: skip
        choice = self.dice.random()
        if choice < 0.1:
            return work_queue_pb2.PullTasksRequest(credit=work_queue_pb2.Credit(window=self.dice.randrange(5)))
        if choice < 0.15:
            return work_queue_pb2.PullTasksRequest(goodbye=work_queue_pb2.Goodbye(cause="enough"))
        beat = work_queue_pb2.Heartbeat(
            number=1,
            tasks_frames_received=self.dice.randrange(4),
            held=self._held(self.maker.held(self._open_session().id)),
        )
        return work_queue_pb2.PullTasksRequest(heartbeat=beat)

    def _held(self, tokens: Any) -> list[work_queue_pb2.HeldGroup]:
        right = [t for t in tokens if min(t[1:]) >= 0 and t[1] < 1 << 64 and t[2] < 1 << 64 and t[3] < 1 << 32]
        return wire.tokens_to_wire([(_text(t[0]), *t[1:]) for t in right])

    def _open_session(self) -> Session:
        return self.maker.pick(self.open)

    async def _on_pull(self, frame: Any) -> None:
        if frame.WhichOneof("frame") != "hello" and self.open:
            await self.work._read_frames(self._open_session(), Peer(frame))
            return
        if self.maker.chance(0.05):
            await self.work.PullTasks(None, Peer(frame))
            return
        if frame.WhichOneof("frame") == "hello":
            event, session = self.work._attach(frame.hello, Peer())
            self.open.append(session)
            self.driver.post(event)

    def _push(self) -> Message:
        if self.maker.chance(0.1) or not self.open:
            session_id = self._open_session().id if self.open else "none"
            return report_queue_pb2.PushReportsRequest(hello=report_queue_pb2.ReportHello(session_id=session_id))
        session = self._open_session().id
        reports = report_queue_pb2.Reports()
        for _ in range(1 + self.dice.randrange(2)):
            job_id, index, epoch, attempt = self._right(self.maker.token(session))
            if self.maker.chance(0.15):
                reports.running.add(job_id=job_id, index=index, epoch=epoch, attempt=attempt, log="line", progress=0.5)
                continue
            group = reports.outcomes.add(job_id=job_id, epoch=epoch)
            outcome = self.maker.outcome(index, attempt)
            if self.maker.chance(0.3):
                columns = group.successes
                columns.report_nos.append(abs(outcome.report_no) % (1 << 64))
                columns.indices.append(index)
                columns.attempts.append(attempt)
                columns.results.append(outcome.result)
                if self.maker.chance(0.9):  # else a column is short
                    columns.run_us.append(7)
                continue
            message = group.outcomes.add(
                report_no=abs(outcome.report_no) % (1 << 64),
                index=index,
                attempt=attempt,
                result=outcome.result,
                run_us=7,
            )
            message.ending = int(outcome.ending)  # type: ignore[assignment]
            if outcome.failure is not None:
                message.failure.CopyFrom(wire.failure_to_wire(outcome.failure))
        return report_queue_pb2.PushReportsRequest(reports=reports)

    def _right(self, token: tuple[str, int, int, int]) -> tuple[str, int, int, int]:
        return _text(token[0]), abs(token[1]) % (1 << 64), abs(token[2]) % (1 << 64), abs(token[3]) % (1 << 32)

    async def _on_push(self, frame: Any) -> None:
        if frame.WhichOneof("frame") == "hello" or not self.open:
            if not frame.hello.session_id or self.sessions.get(frame.hello.session_id) is None:
                await self.reports.PushReports(None, Peer(frame))
            return
        await self.reports._read_reports(self._open_session(), Peer(frame))

    # ---- clients ----------------------------------------------------------------------------------------------------

    def _create_job(self) -> Message:
        event = self.maker.create()
        if not isinstance(event, events.CreateJob):  # room is made
            self.driver.post(event)
            event = self.maker.create()
        if not isinstance(event, events.CreateJob):
            return job_pb2.CreateJobRequest()
        request = job_pb2.CreateJobRequest(job_id=_text(event.job_id), payloads=event.payloads, close=event.close)
        request.spec.template.type = self.maker.pick(("t", "s"))
        if self.maker.chance(0.5):
            return request
        template = dataclasses.replace(event.spec.template, retry=wire.model.RetryPolicy(), limit=None)
        if min((ns for ns in dataclasses.astuple(template.timeouts) if ns is not None), default=0) >= 0:
            request.spec.template.CopyFrom(wire.template_to_wire(template))
        if self.maker.chance(0.3):
            request.spec.dependencies.add(
                job_id=self.maker.job_id(), kind=self.dice.randrange(4), offset=self.dice.randrange(-2, 3)
            )  # type: ignore[arg-type]
        return request

    def _append(self) -> Message:
        event = self.maker.append()
        return job_pb2.AppendTasksRequest(
            job_id=_text(event.job_id),
            first_index=abs(event.first_index) % (1 << 64),
            payloads=event.payloads,
            close=event.close,
        )

    async def _on_append(self, request: Any) -> None:

        async def requests() -> AsyncIterator[Any]:
            yield request

        response = await self.jobs.AppendTasks(requests(), Peer())  # type: ignore[arg-type]
        response.SerializeToString()

    def _job_methods(self) -> list[tuple[type[Message], Callable[..., Any]]]:
        return [
            (job_pb2.CloseJobRequest, self.jobs.CloseJob),
            (job_pb2.GetJobRequest, self.jobs.GetJob),
            (job_pb2.WatchJobRequest, self.jobs.WatchJob),
            (job_pb2.CancelJobRequest, self.jobs.CancelJob),
            (job_pb2.PauseJobRequest, self.jobs.PauseJob),
            (job_pb2.ResumeJobRequest, self.jobs.ResumeJob),
            (job_pb2.RetryJobRequest, self.jobs.RetryJob),
            (job_pb2.PurgeJobRequest, self.jobs.PurgeJob),
        ]

    def _by_job(self, cls: Any, method: Callable[..., Any]) -> Any:
        handle = self._stream(method) if cls is job_pb2.WatchJobRequest else self._unary(method)
        return lambda: cls(job_id=_text(self.maker.job_id())), handle

    def _list_jobs(self) -> Message:
        return job_pb2.ListJobsRequest(page_size=self.dice.randrange(4), page_token=str(self.dice.randrange(9)))

    def _stream_results(self) -> Message:
        return job_pb2.StreamResultsRequest(
            job_id=_text(self.maker.job_id()),
            cursor=self.dice.randrange(50),
            follow=self.maker.chance(0.5),
            indices=[0, 1],
        )

    def _one_task(self, cls: Any) -> Callable[[], Message]:
        return lambda: cls(job_id=_text(self.maker.job_id()), index=self.dice.randrange(4))

    def _list_tasks(self) -> Message:
        return task_pb2.ListTasksRequest(job_id=_text(self.maker.job_id()), page_token="1", states=[1, 3])

    def _drain(self) -> Message:
        request = worker_pb2.DrainWorkerRequest(worker_id="w2")
        request.limit.seconds = 3
        return request

    # ---- from above -------------------------------------------------------------------------------------------------

    def _from_above(self) -> Message:
        choice = self.dice.random()
        if choice < 0.1:
            return work_queue_pb2.PullTasksResponse(welcome=work_queue_pb2.Welcome(epoch=1, session_id="s"))
        tokens = [self._right((t[0][0], t[0][1], t[1], t[2])) for t in self._parents()]
        if choice < 0.3:
            revoke = work_queue_pb2.Revoke(attempts=wire.tokens_to_wire(tokens), cause="why")
            return work_queue_pb2.PullTasksResponse(revoke=revoke)
        if choice < 0.35:
            ack = work_queue_pb2.HeartbeatAck(number=1, revoked=wire.tokens_to_wire(tokens))
            return work_queue_pb2.PullTasksResponse(heartbeat_ack=ack)
        if choice < 0.38:
            return work_queue_pb2.PullTasksResponse(drain=work_queue_pb2.Drain())
        frame = work_queue_pb2.PullTasksResponse()
        group = frame.tasks.groups.add(job_id=self.maker.pick(("top", "a", "x/y")), epoch=1 + self.dice.randrange(3))
        group.template.type = self.maker.pick(("t", "s", "none"))
        for _ in range(self.dice.randrange(3)):
            group.assignments.add(index=self.dice.randrange(3), attempt=1 + self.dice.randrange(3), payload=b"[]")
        if self.maker.chance(0.1):
            group.inputs.add(job_id="a")
        return frame

    def _parents(self) -> list[tuple[tuple[str, int], int, int]]:
        return [(p.key, p.epoch, p.attempt) for p in self.world.state.parents.values()][:2]

    async def _on_from_above(self, frame: Any) -> None:
        link = self.upstream._link
        if frame.WhichOneof("frame") == "welcome":
            link._begin(frame.welcome, None)  # type: ignore[arg-type]
        else:
            await link._read_work(Peer(frame))  # type: ignore[arg-type]
        await self._settle()

    def _verdicts_from_above(self) -> Message:
        link = self.upstream._link
        numbers = [number for number, _ in link._session.unacked()][:3]
        response = report_queue_pb2.PushReportsResponse()
        response.verdicts.add(report_nos=numbers, code=1 + self.dice.randrange(7))  # type: ignore[arg-type]
        return response

    async def _on_verdicts_from_above(self, frame: Any) -> None:
        await self.upstream._link._read_reports(Peer(frame))  # type: ignore[arg-type]
        await self._settle()

    def _plan(self) -> Message:
        template = base64.b64encode(common_pb2.TaskTemplate(type="t").SerializeToString()).decode()
        text = json.dumps({"$expansion": {"template": template, "payloads": ["MA==", "MQ=="]}})
        return common_pb2.TaskResult(result=text.encode() if self.maker.chance(0.9) else b"[" * 65_000)

    async def _on_plan(self, message: Any) -> None:
        """What a worker's plan made, which is no message: found as the result of a task."""
        parents = tuple(self.world.state.parents)
        data = mutate(message.result, self.dice) if self.maker.chance(0.5) else message.result
        try:
            template, payloads = parse_expansion(data)
        except ValueError:
            return
        parent = self.maker.pick(parents) if parents else ("top", 0)
        plan = self.world.state.by_id.get("up/{}/{}/plan".format(*parent))
        number = plan.number if plan is not None else 0
        self.driver.post(
            events.ParentExpanded(parent=parent, plan=number, template=template, payloads=payloads, failure=None)
        )

    async def _settle(self) -> None:
        """Let the tasks that the up-link has begun come to their end, as far as they can."""
        for _ in range(3):
            await asyncio.sleep(0)
        self.upstream._tell_acked()
        if len(self.world.state.parents) > 6:
            parent = next(iter(self.world.state.parents.values()))
            self.driver.post(events.ParentsRevoked(tokens=[parent.token], cause="room"))

    async def close(self) -> None:
        """The end of this world."""
        for task in list(self.upstream._tasks):
            task.cancel()
        await asyncio.gather(*self.upstream._tasks, return_exceptions=True)
        self.world.check()


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def run(seed: str, inputs: int, *, check_every: int = 16) -> int:
    """That many messages at one orchestrator. Returns how many were refused."""
    return asyncio.run(_run(seed, inputs, check_every))


async def _run(seed: str, inputs: int, check_every: int) -> int:
    defects: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: defects.append(repr(context)))
    log = _Defects(defects)
    logging.getLogger("antfarm.upstream").addHandler(log)
    try:
        farm = Farm(seed, check_every)
        refused = 0
        for _ in range(inputs):
            if farm.dice.random() < 0.1:
                farm.world.now += farm.maker.pick((SECOND_NS // 4, SECOND_NS, 4 * SECOND_NS, 13 * SECOND_NS))
                farm.driver.post(events.Tick(wall_ns=WALL_NS + farm.world.now))
            refused += not await farm.one()
            if defects:
                raise Broken(f"a task of the server ended with {defects[0]}")
        await farm.close()
    finally:
        logging.getLogger("antfarm.upstream").removeHandler(log)
    return refused


class _Defects(logging.Handler):
    """Errors that a server would only log are defects here."""

    def __init__(self, defects: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._defects = defects

    def emit(self, record: logging.LogRecord) -> None:
        self._defects.append(record.getMessage())
