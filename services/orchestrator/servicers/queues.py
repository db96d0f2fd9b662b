"""The Work Queue and the Report Queue as workers see them: two streams of one session."""

from __future__ import annotations

import asyncio
import re
from typing import Any, cast

import grpc
import grpc.aio

from antfarm import net, wire
from antfarm.errors import InvalidArgument, PermissionDenied, SessionNotFound, Unavailable, WrongState
from antfarm.failpoint import failpoint
from antfarm.interceptor import Context
from antfarm.model import COLUMNS_MINOR, PAYLOAD_BYTES_MAX, Ending, Failure, FailureClass, SessionId, WorkerId
from antfarm.v1 import (
    report_queue_pb2,
    report_queue_pb2_grpc,
    work_queue_pb2,
    work_queue_pb2_grpc,
)
from services.orchestrator.core import events
from services.orchestrator.core.events import Outcome
from services.orchestrator.core.reports import attempt_of
from services.orchestrator.runtime.driver import Driver
from services.orchestrator.runtime.logbook import Logbook
from services.orchestrator.runtime.sessions import Session, Sessions
from services.orchestrator.servicers.streams import until_one_ends

HELLO_TIMEOUT_S = 10.0
_WORKER_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_ENDINGS = {int(ending): ending for ending in Ending}


async def _read(context: Context) -> Any:
    """The next frame, or None at the end of the stream. The one place that reads."""
    frame = await context.read()
    return None if frame is grpc.aio.EOF else frame


async def _first(context: Context, what: str) -> Any:
    """The hello that begins a stream; the stream is then open for both sides to write at any time."""
    try:
        frame = await asyncio.wait_for(_read(context), HELLO_TIMEOUT_S)
    except TimeoutError:
        raise InvalidArgument(f"no {what} within {HELLO_TIMEOUT_S:g} s") from None
    if frame is None or frame.WhichOneof("frame") != "hello":
        raise InvalidArgument(f"the first frame must be {what}")
    # Not left to the first write: where that is cancelled, because the stream ends, gRPC sends the metadata again and logs a defect.
    await context.send_initial_metadata(())
    return frame.hello


class WorkQueueServicer(work_queue_pb2_grpc.WorkQueueServiceServicer):
    """PullTasks: one stream per worker process."""

    def __init__(self, driver: Driver, sessions: Sessions) -> None:
        self._driver = driver
        self._sessions = sessions

    async def PullTasks(self, request_iterator: Any, context: Context) -> None:  # type: ignore[override]
        """Attach the worker, then carry frames both ways until one side leaves."""
        hello: work_queue_pb2.Hello = await _first(context, "Hello")
        event, session = self._attach(hello, context)
        self._driver.post(event)
        try:
            await until_one_ends(self._write_frames(session, context), self._read_frames(session, context))
        finally:
            self._driver.post(events.Detach(session=session.id))
            self._sessions.close(session, Unavailable("the Work Queue of this session has ended: attach again"))

    def _attach(self, hello: work_queue_pb2.Hello, context: Context) -> tuple[events.Attach, Session]:
        if not _WORKER_ID.fullmatch(hello.worker_id) or not hello.incarnation:
            raise InvalidArgument(
                f"worker id {hello.worker_id[:80]!r}: Hello needs one of at most 128 letters, digits and . _ - beside an incarnation"
            )
        identity = net.peer_identity(cast(Any, context.auth_context()))
        if identity is not None and identity[0] == "worker" and identity[1] != hello.worker_id:
            raise PermissionDenied(f"the certificate is of worker {identity[1]}, not of {hello.worker_id}")
        session = self._sessions.open()
        session.worker_id = hello.worker_id
        session.columns = hello.protocol_minor >= COLUMNS_MINOR
        event = events.Attach(
            session=session.id,
            worker_id=WorkerId(hello.worker_id),
            incarnation=hello.incarnation,
            protocol_major=hello.protocol_major,
            slots=hello.slots,
            window=hello.window,
            task_types=frozenset(hello.task_types),
            labels=dict(hello.labels),
            resources=dict(hello.resources),
            max_epoch_seen=hello.max_epoch_seen,
            dial=hello.dial,
            held=wire.tokens_from_wire(hello.held),
            unacked=wire.tokens_from_wire(hello.unacked),
            descendants=tuple(hello.descendants),
            orchestrator=hello.orchestrator,
            host=hello.host,
            software=hello.software,
            queue=hello.orchestrator_id,
        )
        return event, session

    async def _read_frames(self, session: Session, context: Context) -> None:
        while (frame := await _read(context)) is not None:
            match frame.WhichOneof("frame"):
                case "heartbeat":
                    beat = frame.heartbeat
                    self._driver.post(
                        events.Heartbeat(
                            session=session.id,
                            number=beat.number,
                            frames_received=beat.tasks_frames_received,
                            held=wire.tokens_from_wire(beat.held),
                        )
                    )
                case "credit":
                    self._driver.post(events.Credit(session=session.id, window=frame.credit.window))
                case "goodbye":
                    self._driver.post(events.Goodbye(session=session.id, cause=frame.goodbye.cause))
                    return
                case _:
                    pass  # a frame of a later version

    async def _write_frames(self, session: Session, context: Context) -> None:
        while True:
            for frame in await session.frames():
                await context.write(frame)
                failpoint("work_queue.after_write")


class ReportQueueServicer(report_queue_pb2_grpc.ReportQueueServiceServicer):
    """PushReports: the other stream of a session."""

    def __init__(self, driver: Driver, sessions: Sessions, logbook: Logbook) -> None:
        self._driver = driver
        self._sessions = sessions
        self._logbook = logbook

    async def PushReports(self, request_iterator: Any, context: Context) -> None:  # type: ignore[override]
        """Hand reports in, carry verdicts back."""
        hello: report_queue_pb2.ReportHello = await _first(context, "ReportHello")
        session = self._sessions.get(hello.session_id)
        if session is None:
            raise SessionNotFound("the session has ended: attach again")
        if session.reporting:
            raise WrongState(
                "the session has its Report Queue already: one is all that it may have; attach again for another"
            )
        session.reporting = True
        try:
            await until_one_ends(self._write_verdicts(session, context), self._read_reports(session, context))
        finally:
            session.reporting = False

    async def _read_reports(self, session: Session, context: Context) -> None:
        while (frame := await _read(context)) is not None:
            reports = frame.reports
            for running in reports.running:  # first: an attempt that ends in this frame may have a last word in it
                self._running(session.id, running)
            for group in reports.outcomes:
                self._driver.post(
                    events.Outcomes(
                        session=session.id,
                        job_id=group.job_id,
                        epoch=group.epoch,
                        outcomes=[*_successes(group.successes), *map(_outcome, group.outcomes)],
                    )
                )
            await session.room()

    def _running(self, session: SessionId, message: report_queue_pb2.Running) -> None:
        event = events.Running(
            session=session,
            job_id=message.job_id,
            epoch=message.epoch,
            index=message.index,
            attempt=message.attempt,
            running_for_ns=wire.duration_from_wire(message.running_for),
            progress=message.progress if message.HasField("progress") else None,
            progress_text=message.progress_text[:256],
        )
        if message.log and attempt_of(self._driver.core.state, event) is not None:
            self._logbook.add((message.job_id, message.index), message.log)
        self._driver.post(event)

    async def _write_verdicts(self, session: Session, context: Context) -> None:
        while True:
            verdicts = await session.verdicts()
            failpoint("report_queue.before_write")
            await context.write(verdicts)
            failpoint("report_queue.after_write")


def _outcome(message: report_queue_pb2.Outcome) -> Outcome:
    ending = _ENDINGS.get(message.ending)
    if ending is None:
        return _of_a_later_version(message)
    outcome = Outcome(
        report_no=message.report_no,
        index=message.index,
        attempt=message.attempt,
        ending=ending,
        result=message.result,
        run_us=message.run_us,
    )
    if ending is Ending.SUCCEEDED:
        if message.outputs:
            outcome.outputs = tuple(wire.blob_from_wire(blob) for blob in message.outputs)
        _demand_small(outcome)
    else:
        outcome.never_started, outcome.app_failures = message.never_started, message.app_failures
        if message.HasField("failure"):
            outcome.failure = wire.failure_from_wire(message.failure)
    return outcome


def _successes(columns: report_queue_pb2.Successes) -> list[Outcome]:
    """Those that came as columns. InvalidArgument when the columns are not of one length."""
    numbers, results = columns.report_nos, columns.results
    lengths = {len(numbers), len(columns.indices), len(columns.attempts), len(columns.run_us), len(results)}
    if len(lengths) > 1:
        raise InvalidArgument(f"Successes whose lists are of {sorted(lengths)} entries: each attempt needs one in each")
    succeeded = Ending.SUCCEEDED
    outcomes = [
        Outcome(report_no=number, index=index, attempt=attempt, ending=succeeded, result=result, run_us=run_us)
        for number, index, attempt, run_us, result in zip(
            numbers, columns.indices, columns.attempts, columns.run_us, results, strict=True
        )
    ]
    if max(map(len, results), default=0) > PAYLOAD_BYTES_MAX:
        for outcome in outcomes:
            _demand_small(outcome)
    return outcomes


def _demand_small(outcome: Outcome) -> None:
    """Make a failure of a success whose result is too large."""
    size = len(outcome.result)
    if size > PAYLOAD_BYTES_MAX:
        text = f"the result is {size} bytes, the limit is {PAYLOAD_BYTES_MAX}: keep large values in Storage"
        outcome.ending, outcome.result, outcome.outputs = Ending.FAILED, b"", ()
        outcome.failure = Failure(failure_class=FailureClass.PERMANENT, kind="PayloadTooLarge", message=text)


def _of_a_later_version(message: report_queue_pb2.Outcome) -> Outcome:
    """A failure in the place of an ending that nobody here knows: refused, it would be sent again for ever, and ignored, its task would run for ever."""
    text = (
        f"the worker says that it ended in a way ({message.ending}) that this orchestrator does not know: upgrade the orchestrator to the worker's "
        "version, or let the worker use the orchestrator's"
    )
    return Outcome(
        report_no=message.report_no,
        index=message.index,
        attempt=message.attempt,
        ending=Ending.FAILED,
        run_us=message.run_us,
        failure=Failure(failure_class=FailureClass.APP, kind="UnsupportedEnding", message=text),
    )
