"""Sessions: what the core wants told to a worker, waiting for the writers of its two streams.

Frames leave in the order of the core's effects, but nothing before the welcome, which may wait for the journal. Verdicts that gather while a frame is
being written go into the next one together.
"""

from __future__ import annotations

import asyncio
import copy
import secrets
from collections.abc import Callable

from antfarm import wire
from antfarm.errors import AntFarmError, Unavailable
from antfarm.failpoint import failpoint
from antfarm.model import PROTOCOL_MINOR, SessionId
from antfarm.v1 import common_pb2, report_queue_pb2, work_queue_pb2
from services.orchestrator.core import effects
from services.orchestrator.core.state import State

FRAMES_WAITING_MAX = 2_000
"""Frames that may wait for a worker that does not read; more end its session, and its next hello repairs everything."""
VERDICTS_WAITING_MAX = 10_000
"""Reports whose verdicts may wait before no further report of the worker is read. Its session goes on: a frame may hold more reports than that, all
judged in one turn, and a worker whose session ended would send them all again, for ever."""


class Session:
    """One attached worker: frames for the Work Queue, verdicts for the Report Queue. Both ends with `error` when it is set."""

    def __init__(self, session_id: SessionId) -> None:
        self.id = session_id
        self.error: AntFarmError | None = None
        self.worker_id = ""
        self.columns = False
        """Whether it reads assignments in columns."""
        self.storage_address: str | None = None
        """Where its welcome says that Storage is; None before that."""
        self.reporting = False
        """True while it has a Report Queue; it can have one only, because each verdict is told once."""
        self._frames: list[work_queue_pb2.PullTasksResponse] = []
        self._early: list[work_queue_pb2.PullTasksResponse] | None = []
        """Frames that came before the welcome; None once it is out."""
        self._verdicts: list[effects.SendVerdicts] = []
        self._verdict_count = 0
        """Reports that they are on."""
        self._room = asyncio.Event()
        self._room.set()
        self._frames_wanted: asyncio.Future[None] | None = None
        """What the writer of the Work Queue waits with. No Event, whose further steps are felt at every heartbeat of an idle farm."""
        self._verdicts_ready = asyncio.Event()

    def welcome(self, frame: work_queue_pb2.PullTasksResponse) -> None:
        """Put the first frame in front of all that waited for it."""
        early, self._early = self._early or [], None
        self._frames.extend((frame, *early))
        self._wake_writer()

    def send(self, frame: work_queue_pb2.PullTasksResponse) -> None:
        """Queue a frame; one for a session that has ended goes nowhere."""
        if self.error is not None:
            return
        waiting = self._frames if self._early is None else self._early
        waiting.append(frame)
        if self._early is None:
            self._wake_writer()
        if len(waiting) > FRAMES_WAITING_MAX:
            waiting.clear()
            self._verdicts.clear()
            self.end(Unavailable("it does not read what it is sent: attach again"))

    def send_verdicts(self, verdicts: effects.SendVerdicts) -> None:
        """Queue verdicts, likewise."""
        if self.error is not None:
            return
        self._verdicts.append(verdicts)
        self._verdict_count += len(verdicts.report_nos)
        if self._verdict_count > VERDICTS_WAITING_MAX:
            self._room.clear()
        self._verdicts_ready.set()

    async def room(self) -> None:
        """Wait while so many verdicts wait that no more reports may be read."""
        await self._room.wait()

    def end(self, error: AntFarmError) -> None:
        """End both streams with an error, after what is queued."""
        self.error = self.error or error
        self._wake_writer()
        self._verdicts_ready.set()

    def _wake_writer(self) -> None:
        wanted, self._frames_wanted = self._frames_wanted, None
        if wanted is not None and not wanted.done():
            wanted.set_result(None)

    def _demand_open(self) -> None:
        if self.error is not None:
            raise copy.copy(self.error)  # each stream its own: a raised exception gathers where it has been

    async def frames(self) -> list[work_queue_pb2.PullTasksResponse]:
        """All frames that wait; waits for one. Raises `error` when the session has ended and nothing is left."""
        while not self._frames:
            self._demand_open()
            self._frames_wanted = asyncio.get_running_loop().create_future()
            await self._frames_wanted
        frames, self._frames = self._frames, []
        return frames

    async def verdicts(self) -> report_queue_pb2.PushReportsResponse:
        """All verdicts that wait, merged by code; waits for one. Raises `error` as `frames` does."""
        while not self._verdicts:
            self._demand_open()
            self._verdicts_ready.clear()
            await self._verdicts_ready.wait()
        waiting, self._verdicts = self._verdicts, []
        self._verdict_count = 0
        self._room.set()
        response = report_queue_pb2.PushReportsResponse()
        by_code: dict[int, report_queue_pb2.Verdict] = {}
        for verdicts in waiting:
            verdict = by_code.get(verdicts.code)
            if verdict is None:
                verdict = response.verdicts.add(detail=verdicts.detail)
                verdict.code = int(verdicts.code)  # type: ignore[assignment]
                by_code[verdicts.code] = verdict
            verdict.report_nos.extend(verdicts.report_nos)
        return response


class Sessions:
    """All sessions, and how effects become frames."""

    def __init__(self, state: State, *, owner: bytes, orchestrator_id: str, storage_address: str) -> None:
        self._state = state
        self._owner = owner
        self._orchestrator_id = orchestrator_id
        self._storage_address = storage_address
        self._sessions: dict[str, Session] = {}
        self._templates: dict[int, tuple[common_pb2.TaskTemplate, list[common_pb2.Dependency]]] = {}
        self._senders: dict[type[effects.Effect], Callable[[Session, effects.Effect], None]] = {
            effects.Welcome: self._welcome,  # type: ignore[dict-item]
            effects.SendTasks: self._tasks,  # type: ignore[dict-item]
            effects.SendVerdicts: Session.send_verdicts,  # type: ignore[dict-item]
            effects.SendRevoke: self._revoke,  # type: ignore[dict-item]
            effects.AckHeartbeat: self._ack,  # type: ignore[dict-item]
            effects.SendDrain: self._drain,  # type: ignore[dict-item]
            effects.Refuse: self._refuse,  # type: ignore[dict-item]
        }

    @property
    def storage_address(self) -> str:
        """Where workers are told that Storage is; empty when nobody knows."""
        return self._storage_address

    def open(self) -> Session:
        """A session under a new id."""
        session = Session(SessionId(secrets.token_hex(8)))
        self._sessions[session.id] = session
        return session

    def get(self, session_id: str) -> Session | None:
        """The session, while it is open."""
        return self._sessions.get(session_id)

    def close(self, session: Session, error: AntFarmError) -> None:
        """Its Work Queue has ended: end the Report Queue with it."""
        session.end(error)
        self._sessions.pop(session.id, None)

    def close_all(self, error: AntFarmError) -> None:
        """End every session, for the end of the program."""
        for session in list(self._sessions.values()):
            session.end(error)

    def move_storage(self, address: str) -> None:
        """Say from now on that Storage is there. Only a welcome says it: who had another one attaches anew, and keeps what it holds."""
        self._storage_address = address
        for session in list(self._sessions.values()):
            if session.storage_address not in (None, address):
                session.end(Unavailable("Storage is not where the Welcome said: attach again"))

    def deliver(self, effect: effects.Effect) -> bool:
        """Carry out an effect that concerns a session. False when it does not concern one."""
        sender = self._senders.get(type(effect))
        if sender is None:
            return False
        session = self._sessions.get(effect.session)  # type: ignore[union-attr]
        if session is not None:
            sender(session, effect)
        return True

    def _welcome(self, session: Session, effect: effects.Welcome) -> None:
        failpoint("session.before_welcome")
        session.storage_address = self._storage_address
        session.welcome(
            work_queue_pb2.PullTasksResponse(
                welcome=work_queue_pb2.Welcome(
                    epoch=effect.epoch,
                    owner=self._owner,
                    session_id=session.id,
                    heartbeat=wire.duration_to_wire(effect.heartbeat_ns),
                    lease=wire.duration_to_wire(effect.lease_ns),
                    revoked=wire.tokens_to_wire(list(effect.revoked)),
                    storage_address=self._storage_address,
                    orchestrator_id=self._orchestrator_id,
                    protocol_minor=PROTOCOL_MINOR,
                )
            )
        )

    def _tasks(self, session: Session, effect: effects.SendTasks) -> None:
        frame = work_queue_pb2.PullTasksResponse()
        for number, assigned in effect.groups:
            job = self._state.jobs.get(number)
            if job is None:
                continue  # purged since; the worker's next heartbeat shows that it holds nothing of it
            template, inputs = self._job_parts(number)
            group = frame.tasks.groups.add(
                job_id=job.job_id,
                epoch=effect.epoch,
                template=template,
                inputs=inputs,
                since_epoch=job.batches[0].epoch,
            )
            plain = [task for task in assigned if task.remaining_ns is None and not task.app_failures]
            if session.columns and len(plain) == len(assigned):
                group.columns.indices.extend([task.index for task in assigned])
                group.columns.attempts.extend([task.attempt for task in assigned])
                group.columns.payloads.extend([task.payload for task in assigned])
                continue
            for task in assigned:
                one = group.assignments.add(
                    index=task.index, attempt=task.attempt, payload=task.payload, app_failures=task.app_failures
                )
                if task.remaining_ns is not None:
                    one.remaining.CopyFrom(wire.duration_to_wire(task.remaining_ns))
        frame.tasks.SetInParent()
        session.send(frame)

    def _job_parts(self, number: int) -> tuple[common_pb2.TaskTemplate, list[common_pb2.Dependency]]:
        parts = self._templates.get(number)
        if parts is None:
            if len(self._templates) > 1_000:
                self._templates.clear()
            spec = self._state.jobs[number].spec
            inputs = [wire.dependency_to_wire(d) for d in spec.dependencies]
            parts = self._templates[number] = (wire.template_to_wire(spec.template), inputs)
        return parts

    def _revoke(self, session: Session, effect: effects.SendRevoke) -> None:
        revoke = work_queue_pb2.Revoke(attempts=wire.tokens_to_wire(list(effect.tokens)), cause=effect.cause)
        session.send(work_queue_pb2.PullTasksResponse(revoke=revoke))

    def _ack(self, session: Session, effect: effects.AckHeartbeat) -> None:
        frame = work_queue_pb2.PullTasksResponse()
        frame.heartbeat_ack.number = effect.number
        if effect.revoked:
            frame.heartbeat_ack.revoked.extend(wire.tokens_to_wire(list(effect.revoked)))
        session.send(frame)

    def _drain(self, session: Session, effect: effects.SendDrain) -> None:
        drain = work_queue_pb2.Drain(limit=wire.duration_to_wire(effect.limit_ns))
        session.send(work_queue_pb2.PullTasksResponse(drain=drain))

    def _refuse(self, session: Session, effect: effects.Refuse) -> None:
        session.end(effect.error)
