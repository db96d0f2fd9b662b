"""The worker's side of the two queues: the real `Session`, with the coat of `antfarm.link.client` modelled on simulated wires.

Reports go to the outbox before they are sent, everything unacked goes out again on each new connection, heartbeats carry the whole held set.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from antfarm.errors import AntFarmError, IncarnationLost
from antfarm.link.session import Session, Token
from services.orchestrator.core.events import Outcome
from tests.simulation.checks import demand
from tests.simulation.kernel import SECOND, Process
from tests.simulation.network import REPORT, WORK, Wire

if TYPE_CHECKING:
    from tests.simulation.world import World

ATTACH_TIMEOUT_NS = 10 * SECOND
Group = tuple[str, Any, list[tuple[int, int, bytes, int | None, int]], int]
"""(job_id, template, assignments as (index, attempt, payload, remaining_ns, app_failures), epoch in which the job came)"""
Kept = tuple[Token, Outcome]


class Handler(Protocol):
    """Whom a link tells; as `antfarm.link.owner.Handler`."""

    def on_tasks(self, epoch: int, groups: list[Group]) -> None:
        """Start these."""
        ...

    def on_revoke(self, tokens: list[Token], *, forgotten: bool) -> None:
        """Stop these; the link holds them still unless they are forgotten."""
        ...

    def on_welcome(self) -> None:
        """Attached."""
        ...

    def on_drain(self, limit_ns: int) -> None:
        """Finish, and leave or wait until it is over."""
        ...

    def on_judged(self, tokens: Sequence[Token]) -> None:
        """These reports have their final verdict."""
        ...


class Link:
    """One worker process's tie to its orchestrator."""

    def __init__(
        self, world: World, process: Process, upper: str, worker_id: str, handler: Handler, about: dict[str, Any]
    ) -> None:
        self.world, self.process, self.upper, self.worker_id = world, process, upper, worker_id
        self.owner = 0
        """Life of the orchestrator's process that it is, or was, attached to."""
        self.handler = handler
        self.about = about
        """What Hello says beside the session's own facts."""
        self.session = Session(incarnation=self._incarnation(), dice=world.kernel.dice, window=about["window"])
        self.outbox: list[Kept] = []
        """The outbox file: grows until nothing in it is owed."""
        self.wire: Wire | None = None
        self.attached = False
        self.leaving = False
        self.minor = min(zlib.crc32(f"{world.kernel.seed}/{worker_id}".encode()) % 3, 1)
        """The protocol's minor version that it speaks; 0 does not say which reports it owes."""
        self._heard_ns = 0
        self._frames = 0
        self._beats = self._hello_ns = 0
        self._sent_window = 0

    def _incarnation(self) -> bytes:
        return self.world.kernel.dice.randbytes(8)

    # ---- connections ------------------------------------------------------------------------------------------------

    def dial(self) -> None:
        """Connect and say hello."""
        session = self.session
        self._frames = self._beats = 0
        self._sent_window = session.window
        self._hello_ns = self.process.clock_ns
        wire = self.wire = self.world.network.dial(self, self.world.orchestrators[self.upper])
        hello = dict(
            self.about,
            worker_id=self.worker_id,
            incarnation=session.incarnation,
            window=session.window,
            max_epoch_seen=session.max_epoch_seen,
            dial=session.dial() if self.minor else 0,
            held=tuple(session.held),
            unacked=tuple(token for token, number in session.held.items() if number) if self.minor else (),
        )
        wire.send(0, WORK, ("hello", hello))
        self.process.later(ATTACH_TIMEOUT_NS, self._give_up_attaching, wire)

    def _give_up_attaching(self, wire: Wire) -> None:
        if wire is self.wire and not self.attached:
            self._drop()

    def _drop(self) -> None:
        """End the connection and dial again in a while."""
        wire, self.wire, self.attached = self.wire, None, False
        if wire is not None:
            wire.hang_up(0)
        if not self.leaving:
            self.process.later(self.session.disconnected(), self.dial)

    def hung_up(self, wire: Wire) -> None:
        """The other side ended the connection."""
        if wire is self.wire:
            self._drop()

    def heard(self, wire: Any, lane: int, message: Any) -> None:
        """A message from above."""
        if wire is not self.wire:
            return
        self._heard_ns = self.process.clock_ns
        match message:
            case ("welcome", owner, epoch, heartbeat_ns, lease_ns, revoked):
                self.owner = owner
                self._welcomed(epoch, heartbeat_ns, lease_ns, revoked)
            case ("tasks", epoch, groups):
                self._frames += 1
                self._take(epoch, groups)
            case ("ack", number, revoked):
                self.session.beat_acked(number)
                self._forget(revoked)
            case ("revoke", tokens):
                held = self.session.still_held(tokens)
                if held:
                    self.handler.on_revoke(held, forgotten=False)
            case ("verdicts", code, numbers):
                self._judged(code, numbers)
            case ("drain", limit_ns):
                self.handler.on_drain(limit_ns)
            case ("refuse", error):
                self._refused(error)

    def _refused(self, error: AntFarmError) -> None:
        if isinstance(error, IncarnationLost):
            self.session.reborn(self._incarnation())
        self.world.checks.refused(self, error)
        self._drop()

    def _welcomed(self, epoch: int, heartbeat_ns: int, lease_ns: int, revoked: Sequence[Token]) -> None:
        session = self.session
        self.world.checks.welcomed(self.upper, self.worker_id, epoch, session.max_epoch_seen)
        if not session.welcomed(
            epoch=epoch,
            heartbeat_ns=heartbeat_ns,
            lease_ns=lease_ns,
            now_ns=self.process.clock_ns,
            hello_ns=self._hello_ns,
        ):
            self._drop()
            return
        self.attached = True
        self.handler.on_welcome()
        self._forget(revoked)
        reports: Any = [report for _, report in session.unacked()]
        self._send_reports(reports)
        self.process.later(max(self._hello_ns + session.heartbeat_ns - self.process.clock_ns, 0), self._beat, self.wire)
        self.say_window()

    # ---- down -------------------------------------------------------------------------------------------------------

    def _take(self, epoch: int, groups: list[Group]) -> None:
        taken: list[Group] = []
        for job_id, template, assignments, since_epoch in groups:
            kept = self.session.assigned(job_id, epoch, [(index, attempt) for index, attempt, _, _, _ in assignments])
            if kept is not None:
                assignments = [assignments[position] for position in kept]
            if assignments:
                self.world.checks.taken(self, epoch, job_id, assignments)
                taken.append((job_id, template, assignments, since_epoch))
        if taken:
            self.handler.on_tasks(epoch, taken)

    def _forget(self, tokens: Sequence[Token]) -> None:
        forgotten = self.session.forget(tokens)
        if forgotten:
            self.world.checks.forgotten(self, forgotten)
            self.handler.on_revoke(forgotten, forgotten=True)

    def _judged(self, code: int, numbers: Sequence[int]) -> None:
        known: dict[int, Any] = dict(self.session.unacked())
        tokens = [known[number][0] for number in numbers if number in known]
        if self.session.judged(code, numbers, 0, self.process.clock_ns):
            self._drop()
            return
        self.world.checks.judged(self, code, tokens)
        self.handler.on_judged(tokens)
        self.say_window()

    # ---- up ---------------------------------------------------------------------------------------------------------

    def _beat(self, wire: Wire) -> None:
        if wire is not self.wire or self.leaving:
            return
        session, now = self.session, self.process.clock_ns
        if now - self._heard_ns > session.lease_ns:
            self._drop()
            return
        self._beats += 1
        session.beat(self._beats, now)
        wire.send(0, WORK, ("beat", self._beats, self._frames, tuple(session.held)), may_double=True)
        if not session.unacked_count:
            self.outbox.clear()
        self.process.later(session.heartbeat_ns, self._beat, wire)

    def want(self, window: int) -> None:
        """Set the wanted window."""
        self.session.want(window)
        self.say_window()

    def say_window(self) -> None:
        """Tell the window when it has changed."""
        if self.attached and self.wire is not None and self.session.window != self._sent_window:
            self._sent_window = self.session.window
            self.wire.send(0, WORK, ("credit", self._sent_window))

    def report(self, token: Token, outcome: Outcome) -> None:
        """Keep an outcome and send it."""
        number = self.session.report(token, (token, outcome), len(outcome.result) + 128)
        if number:
            outcome.report_no = number
            self.outbox.append((token, outcome))
            self.world.checks.reported(self, token, outcome)
            self._send_reports([(token, outcome)])

    def recover(self, outbox: Sequence[Kept]) -> None:
        """Take up the outbox of an earlier process. Before the first dial."""
        for token, outcome in outbox:
            known = bool(self.session.held.get(token))
            number = self.session.recovered(token, (token, outcome), len(outcome.result) + 128)
            demand(bool(number) or known, "I6", self.worker_id, "does not take up the report of", token)
            if number:
                outcome.report_no = number
                self.outbox.append((token, outcome))
                self.world.checks.reported(self, token, outcome)

    def _send_reports(self, reports: Sequence[Kept]) -> None:
        if not self.attached or self.wire is None:
            return
        groups: dict[tuple[str, int], list[Outcome]] = {}
        for token, outcome in reports:
            groups.setdefault((token[0], token[2]), []).append(outcome)
        for (job_id, epoch), outcomes in groups.items():
            self.wire.send(0, REPORT, ("reports", job_id, epoch, outcomes), may_double=True)

    def say_running(self, token: Token, running_for_ns: int) -> None:
        """A word of a running attempt."""
        if self.attached and self.wire is not None and token in self.session.held:
            job_id, index, epoch, attempt = token
            word: dict[str, Any] = {
                "job_id": job_id,
                "index": index,
                "epoch": epoch,
                "attempt": attempt,
                "running_for_ns": running_for_ns,
            }
            self.wire.send(0, REPORT, ("running", word))

    def goodbye(self) -> None:
        """Leave for good."""
        self.leaving = True
        if self.wire is not None and self.attached:
            self.wire.send(0, WORK, ("goodbye",))
        if self.wire is not None:
            self.wire.hang_up(0)
            self.wire = None
