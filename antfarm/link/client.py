"""The asyncio coat of the worker's session: dials, attaches, beats, receives work, sends reports, until told to leave.

It decides nothing that outlives a connection: `session` does. One reader and one writer task per stream; what waits to be written is
state (a window, a heartbeat that is due, numbers of reports), so every buffer is bounded by what is held. All that waits goes into one
frame; nothing waits to fill one. Callbacks run on the loop and must return at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import grpc
import grpc.aio

from antfarm import __version__, net, wire
from antfarm.address import parse_address
from antfarm.errors import (
    AntFarmError,
    Cycle,
    IncarnationLost,
    Internal,
    InvalidArgument,
    PermissionDenied,
    ProtocolUnsupported,
    Unavailable,
    WorkerIdInUse,
)
from antfarm.failpoint import failpoint
from antfarm.link.outbox import MemoryOutbox, Outbox
from antfarm.link.owner import Handler, WorkerIdentity
from antfarm.link.reports import OutcomeParts, Reports
from antfarm.link.session import Session, Token
from antfarm.link.stream import Call, now_ns, read_frame, serve_until_one_ends, wait_for
from antfarm.model import COLUMNS_MINOR, PROTOCOL_MAJOR, PROTOCOL_MINOR, SECOND_NS
from antfarm.v1 import report_queue_pb2, report_queue_pb2_grpc, work_queue_pb2, work_queue_pb2_grpc

log = logging.getLogger("antfarm.link")

ATTACH_TIMEOUT_S = 10.0
"""From dialling to Welcome."""
ID_IN_USE_PATIENCE_S = 5.0
"""How long WORKER_ID_IN_USE is dialled against: an earlier process of this worker may just have died unnoticed."""
GOODBYE_TIMEOUT_S = 2.0
LOOK_NS = SECOND_NS // 10
"""How often it is looked whether somebody listens where nobody did."""
LOOK_FIRST_NS = SECOND_NS // 100
"""The first time after a dial that was refused, then twice as long each time: a farm's programs start side by side, and the orchestrator is ready last."""
_INCURABLE = (ProtocolUnsupported, Cycle, PermissionDenied, InvalidArgument)


class Link:
    """One worker's tie to its orchestrator, over any number of connections. Make and use it inside the running loop."""

    def __init__(
        self,
        *,
        addresses: Sequence[str],
        identity: WorkerIdentity,
        handler: Handler,
        tls: net.Tls | None = None,
        outbox: Outbox | None = None,
        queue: str = "",
        on_other_queue: Callable[[str], None] = lambda orchestrator_id: None,
        dice: random.Random | None = None,
    ) -> None:
        """Make a link; nothing is dialled before `run`.

        Args:
            addresses: `host:port` of the orchestrator and its standbys, tried in turn.
            identity: what Hello says; the window may change later by `set_window`.
            handler: whom to tell.
            tls: files of mutual TLS; None on loopback.
            outbox: where unacked reports outlive the process; None keeps them in memory.
            queue: whose queue the attempts are of that will be held before `run`, as a Welcome said it; empty: not known, and the first Welcome says it.
            on_other_queue: told who answers instead of that one; until `queue` says otherwise its Welcome is not taken.
            dice: for the pauses between dials; given by tests.
        """
        self._addresses = deque(parse_address(address) for address in addresses)
        self._identity = identity
        self._handler = handler
        self._tls = tls
        self._queue = queue
        self._on_other_queue = on_other_queue
        self._session = Session(incarnation=os.urandom(16), dice=dice or random.SystemRandom(), window=identity.window)
        self._outbox = MemoryOutbox() if outbox is None else outbox
        self._reports = Reports(self._session, self._outbox)
        self._wake = asyncio.Event()  # the writer of the Work Queue, or the pause between two dials
        self._ended = asyncio.Event()
        self._first_attached = asyncio.Event()
        self._goodbye: str | None = None
        self._channel: grpc.aio.Channel | None = None
        self._task_frames = 0
        self._sent_window = -1
        self._said_below: frozenset[str] = frozenset()
        self._said_resources = identity.resources
        self._heard_ns = 0
        self._hello_ns = 0  # when the last Hello was sent
        self._id_in_use_since_ns: int | None = None
        self._complained = False

    # ---- for the owner ----------------------------------------------------------------------------------------------

    @property
    def attached(self) -> bool:
        """True while Welcome was received on a connection that has not ended."""
        return self._channel is not None

    @property
    def address(self) -> str:
        """Where it is attached, or dials next."""
        return self._addresses[0]

    @property
    def channel(self) -> grpc.aio.Channel | None:
        """The channel of the present connection, for other calls to the same orchestrator; None while not attached."""
        return self._channel

    @property
    def queue(self) -> str:
        """Whose queue the attempts are of, by the orchestrator's id; empty while none has said it."""
        return self._queue

    @queue.setter
    def queue(self, orchestrator_id: str) -> None:
        # The one before may have answered once more meanwhile, and its epoch says nothing of the other one's.
        self.forget_all()
        self._queue = orchestrator_id

    @property
    def held_count(self) -> int:
        """Attempts that this worker answers for."""
        return len(self._session.held)

    def hold(self, token: Token) -> None:
        """Answer for an attempt that an earlier process took on and this one goes on with. Before `run`."""
        self._session.hold(token)

    def holds(self, token: Token) -> bool:
        """True until the attempt's report has a final verdict, or the orchestrator does not want it any more."""
        return token in self._session.held

    def let_go(self, tokens: Iterable[Token]) -> list[Token]:
        """Those of the attempts that it does not answer for any more."""
        held = self._session.held
        return [token for token in tokens if token not in held]

    def forget_all(self) -> list[Token]:
        """Give up every attempt with its report: they are of another queue than that of the orchestrator which answers now. Those that were held."""
        tokens = self._session.forget_all()
        self._reports.forget_all()
        return tokens

    @property
    def unacked_count(self) -> int:
        """Reports without a final verdict."""
        return self._session.unacked_count

    @property
    def self_lease_over(self) -> bool:
        """True when no heartbeat was acknowledged for 0.75 of the lease, so others may soon be given this worker's attempts."""
        ends_ns = self._session.self_lease_ends_ns
        return ends_ns is not None and now_ns() > ends_ns

    def set_descendants(self, descendants: tuple[str, ...]) -> None:
        """Who stands below, itself included, when an orchestrator is the worker. Names that no Hello has said yet lead to a new one."""
        if descendants != self._identity.descendants:
            self._identity = replace(self._identity, descendants=descendants)
            self._wake.set()

    def set_resources(self, resources: Mapping[str, float]) -> None:
        """What tasks may ask for. Only a Hello says it: others than the last one's lead to a new one, when the next heartbeat is due and no sooner."""
        if resources != self._identity.resources:
            self._identity = replace(self._identity, resources=resources)

    def set_window(self, window: int) -> None:
        """How many assignments may be outstanding from now on; 0 asks for none."""
        self._session.want(window)
        self._say_window()

    def report(self, job_id: str, epoch: int, parts: OutcomeParts) -> None:
        """Report the end of an attempt: kept, sent and repeated until its final verdict.

        An outcome of a token that is not held (revoked and forgotten) is dropped.
        """
        self._reports.add(job_id, epoch, parts)

    def running(self, word: report_queue_pb2.Running) -> None:
        """Pass on a word of a running attempt. Advisory; while the link is slow or away newer words replace older ones."""
        self._reports.say(word)

    async def first_attached(self) -> None:
        """Wait until it was attached once."""
        await self._first_attached.wait()

    async def settled(self, timeout_s: float) -> bool:
        """Wait until every report has its final verdict. False: some have not after `timeout_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._reports.settled.wait()
        return self._reports.settled.is_set()

    async def goodbye(self, cause: str) -> None:
        """Leave for good: say Goodbye when attached, then `run` returns. Report everything and wait for `settled` before."""
        self._goodbye = cause
        self._wake.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_TIMEOUT_S + 1.0):
                await self._ended.wait()

    async def run(self) -> None:
        """Dial, attach and serve until `goodbye`.

        Raises what no further dial can cure: ProtocolUnsupported, WorkerIdInUse, Cycle, PermissionDenied, InvalidArgument. All else
        is weather: it dials again, with jitter, for ever.
        """
        try:
            while self._goodbye is None:
                attached_before = self._heard_ns
                end: AntFarmError | TimeoutError | None = None
                try:
                    await self._connect()
                except grpc.aio.AioRpcError as error:
                    end = wire.error_from_rpc(error)
                except (AntFarmError, TimeoutError) as error:
                    end = error
                except net.CALL_ENDED:
                    end = Unavailable("its stream has ended")
                if end is not None:
                    self._judge_end(end, attached=self._heard_ns != attached_before)
                await self._pause(refused=str(end) == wire.CONNECTION_REFUSED)
        finally:
            self._reports.tidy()
            self._ended.set()

    async def _pause(self, *, refused: bool) -> None:
        """Until the next dial. Where nobody listens it ends as soon as somebody does: to look costs a small part of a dial.

        Who broke the connection is looked at once: a process that died listens no more. One that listens is let alone, for the pause is for its sake.
        """
        now = now_ns()
        deadline_ns, pace_ns = now + self._session.disconnected(refused=refused), LOOK_FIRST_NS if refused else LOOK_NS
        look_ns = now + pace_ns
        looks = True
        while self._goodbye is None and now < deadline_ns:
            await wait_for(self._wake, min(deadline_ns, look_ns) - now if looks else deadline_ns - now)
            if looks and now_ns() >= look_ns:
                listens = await net.listens(self.address)
                if listens and refused:
                    return
                looks = refused = not listens
                pace_ns = min(2 * pace_ns, LOOK_NS)
                look_ns = now_ns() + pace_ns
            now = now_ns()

    # ---- one connection ---------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        """Attach and serve until the connection ends; how it ended is raised."""
        channel = net.open_channel(self.address, self._tls)
        calls: list[Call] = []
        try:
            async with asyncio.timeout(ATTACH_TIMEOUT_S):
                work: Call = work_queue_pb2_grpc.WorkQueueServiceStub(channel).PullTasks()
                calls.append(work)
                welcome = await self._attach(work)
                reports: Call = report_queue_pb2_grpc.ReportQueueServiceStub(channel).PushReports()
                calls.append(reports)
                hello = report_queue_pb2.ReportHello(session_id=welcome.session_id)
                await reports.write(report_queue_pb2.PushReportsRequest(hello=hello))
            self._begin(welcome, channel)
            await serve_until_one_ends(
                self._read_work(work), self._write_work(work), self._read_reports(reports), self._write_reports(reports)
            )
        finally:
            self._channel = None
            self._reports.disconnected()
            # Dropping a call does not end it: without cancel it stays open on both sides.
            for call in calls:
                call.cancel()
            await channel.close()

    async def _attach(self, work: Call) -> work_queue_pb2.Welcome:
        session, identity = self._session, self._identity
        self._task_frames = 0
        self._sent_window = session.window
        self._said_below = frozenset(identity.descendants)
        self._said_resources = identity.resources
        hello = work_queue_pb2.Hello(
            protocol_major=PROTOCOL_MAJOR,
            protocol_minor=PROTOCOL_MINOR,
            worker_id=identity.worker_id,
            incarnation=session.incarnation,
            slots=identity.slots,
            window=self._sent_window,
            task_types=identity.task_types,
            labels=dict(identity.labels),
            resources=dict(identity.resources),
            max_epoch_seen=session.max_epoch_seen,
            dial=session.dial(),
            held=wire.tokens_to_wire(list(session.held)),
            unacked=wire.tokens_to_wire(session.unacked_tokens()),
            descendants=identity.descendants,
            orchestrator=identity.orchestrator,
            host=identity.host,
            software=f"antfarm {__version__}",
            orchestrator_id=self._queue,
        )
        self._hello_ns = now_ns()
        await work.write(work_queue_pb2.PullTasksRequest(hello=hello))
        frame = await read_frame(work)
        if frame is None:
            raise Unavailable("it hung up before Welcome")
        if frame.WhichOneof("frame") != "welcome":
            raise Internal("its first frame is not Welcome")
        welcome: work_queue_pb2.Welcome = frame.welcome
        return welcome

    def _begin(self, welcome: work_queue_pb2.Welcome, channel: grpc.aio.Channel) -> None:
        if self._queue and welcome.orchestrator_id not in ("", self._queue):
            self._on_other_queue(welcome.orchestrator_id)
            raise Unavailable("another orchestrator answers than before: what is of that one's queue is given up first")
        session = self._session
        now = now_ns()
        taken = session.welcomed(
            epoch=welcome.epoch,
            heartbeat_ns=wire.duration_from_wire(welcome.heartbeat),
            lease_ns=wire.duration_from_wire(welcome.lease),
            now_ns=now,
            hello_ns=self._hello_ns,
        )
        if not taken:
            raise Unavailable(f"its epoch {welcome.epoch} is below {session.max_epoch_seen}, which was seen before")
        self._queue = self._queue or welcome.orchestrator_id
        self._outbox.belong(self._queue)
        self._heard_ns = now
        self._channel = channel
        self._complained, self._id_in_use_since_ns = False, None
        log.info("attached to %s: epoch %d, %d attempts held", self.address, welcome.epoch, len(session.held))
        self._handler.on_welcome(welcome)
        self._give_up(welcome.revoked)
        self._reports.connected(columns=welcome.protocol_minor >= COLUMNS_MINOR)
        self._first_attached.set()
        self._wake.set()

    async def _read_work(self, work: Call) -> None:
        while (frame := await read_frame(work)) is not None:
            self._heard_ns = now_ns()
            kind = frame.WhichOneof("frame")
            if kind == "tasks":
                self._task_frames += 1
                groups = [group for group in frame.tasks.groups if self._take(group)]
                if groups:
                    self._handler.on_tasks(groups)
            elif kind == "heartbeat_ack":
                self._session.beat_acked(frame.heartbeat_ack.number)
                self._give_up(frame.heartbeat_ack.revoked)
            elif kind == "revoke":
                tokens = self._session.still_held(wire.tokens_from_wire(frame.revoke.attempts))
                if tokens:
                    self._handler.on_revoke(tokens, frame.revoke.cause)
            elif kind == "drain":
                self._handler.on_drain(wire.duration_from_wire(frame.drain.limit) / SECOND_NS)
            # Anything else comes from a newer minor version and is ignored.
        raise Unavailable("it closed the Work Queue")

    def _take(self, group: work_queue_pb2.TaskGroup) -> bool:
        """Strike what is not to be run from a group. False: nothing is left."""
        pairs = wire.assigned_pairs(group)
        kept = self._session.assigned(group.job_id, group.epoch, pairs)
        if kept is None:
            return bool(pairs)
        log.debug("job %s: %d of %d assignments taken", group.job_id, len(kept), len(pairs))
        wire.keep_assigned(group, frozenset(kept))
        return bool(kept)

    def _give_up(self, groups: Iterable[work_queue_pb2.HeldGroup]) -> None:
        """Forget attempts with their reports, and have them stopped."""
        tokens = self._session.forget(wire.tokens_from_wire(groups))
        if tokens:
            self._reports.note_verdicts()
            self._handler.on_revoke(tokens, "not wanted any more")

    async def _write_work(self, work: Call) -> None:
        """Credit, heartbeats, goodbye. The beat is sent by the loop that handles work, so a wedged agent looks dead."""
        session = self._session
        number, next_beat_ns = 0, self._hello_ns + session.heartbeat_ns  # both leases run from the Hello
        while self._goodbye is None:
            if not self._said_below.issuperset(self._identity.descendants):
                return  # dial again: two orchestrators that attach to each other at the same time find out only so
            if session.window != self._sent_window:
                self._sent_window = session.window
                credit = work_queue_pb2.Credit(window=self._sent_window)
                await work.write(work_queue_pb2.PullTasksRequest(credit=credit))
            now = now_ns()
            if now < next_beat_ns:
                await wait_for(self._wake, next_beat_ns - now)
                continue
            if self._said_resources != self._identity.resources:
                return  # dial again; not at once, because where one worker comes below more may follow
            if now - self._heard_ns > session.lease_ns:
                raise Unavailable("it has been silent for longer than the lease")
            number += 1
            next_beat_ns = now + session.heartbeat_ns
            session.beat(number, now)
            beat = work_queue_pb2.Heartbeat(
                number=number,
                tasks_frames_received=self._task_frames,
                held=wire.tokens_to_wire(list(session.held)),
            )
            await work.write(work_queue_pb2.PullTasksRequest(heartbeat=beat))
            self._reports.tidy()
        await work.write(work_queue_pb2.PullTasksRequest(goodbye=work_queue_pb2.Goodbye(cause=self._goodbye)))
        await work.done_writing()
        with suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_TIMEOUT_S):
                await work.code()

    async def _read_reports(self, reports: Call) -> None:
        session = self._session
        while (frame := await read_frame(reports)) is not None:
            self._heard_ns = now = now_ns()
            failpoint("link.before_verdict")
            for verdict in frame.verdicts:
                if verdict.code == report_queue_pb2.VERDICT_CODE_FENCED:
                    log.warning("%d reports were fenced: %s", len(verdict.report_nos), verdict.detail)
                pause_ns = wire.duration_from_wire(verdict.retry_after)
                if session.judged(verdict.code, verdict.report_nos, pause_ns, now):
                    raise Unavailable(f"it does not own the queue. {verdict.detail}".rstrip())
            self._reports.note_verdicts()
            if session.next_due_ns is not None:
                self._reports.wake.set()
            self._say_window()
        raise Unavailable("it closed the Report Queue")

    async def _write_reports(self, stream: Call) -> None:
        session, reports = self._session, self._reports
        while True:
            while (frame := reports.next_frame()) is not None:
                await stream.write(frame)
                failpoint("link.after_send")
            self._say_window()  # reports that wait may have closed it
            due_ns = session.next_due_ns
            await wait_for(reports.wake, None if due_ns is None else due_ns - now_ns())
            if due_ns is not None:
                reports.take_due(now_ns())

    def _say_window(self) -> None:
        if self._session.window != self._sent_window:
            self._wake.set()

    # ---- between connections ----------------------------------------------------------------------------------------

    def _judge_end(self, error: Exception, *, attached: bool) -> None:
        """Decide whether to dial again after a connection ended with `error`; raise it when that cannot help."""
        if self._goodbye is not None:
            return
        if isinstance(error, IncarnationLost):
            log.warning("declared lost by %s; going on as a new incarnation, %d held", self.address, self.held_count)
            self._session.reborn(os.urandom(16))
            return
        if isinstance(error, _INCURABLE) and not attached:
            raise error
        if isinstance(error, WorkerIdInUse):
            self._id_in_use_since_ns = self._id_in_use_since_ns or now_ns()
            if now_ns() - self._id_in_use_since_ns > ID_IN_USE_PATIENCE_S * SECOND_NS:
                raise error
        if not self._complained:
            self._complained = True
            text = str(error) or ("no answer" if isinstance(error, TimeoutError) else type(error).__name__)
            log.warning("no connection to %s: %s; dialling until it answers", self.address, text)
        self._addresses.rotate(-1)
