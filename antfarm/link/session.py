"""The worker's side of the two queues, decided without a socket: what is held, what must be reported again, when to dial.

It knows tokens, numbers and durations; it must not know asyncio, gRPC, messages, clocks or dice. Time comes in as integer nanoseconds of any
monotonic clock, chance as an object with `uniform`, incarnations as bytes.

The idea: state, not commands. `held` is all that this worker answers for: waiting, running, and finished without a final verdict. It is
said whole in every Hello and Heartbeat, so a lost message is repaired by the next one. A report stays until a final verdict and is sent
again on every new stream; repeating it is always safe (semantics I6, I9). Nothing here belongs to one connection but `sent`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from antfarm.model import SECOND_NS, VerdictCode

Token = tuple[str, int, int, int]
"""(job_id, index, epoch, attempt): names one attempt."""

UNACKED_MAX = 1_000
"""Reports without a final verdict at which pulling stops."""
UNACKED_BYTES_MAX = 8 * 1024 * 1024
"""The same in bytes."""
RECONNECT_MIN_NS = SECOND_NS // 10
RECONNECT_START_NS = 4 * RECONNECT_MIN_NS
RECONNECT_REFUSED_NS = SECOND_NS
LEASE_DEFAULT_NS = 12 * SECOND_NS
HEARTBEAT_DEFAULT_NS = 3 * SECOND_NS
SELF_LEASE_SHARE = (3, 4)
"""The worker's own lease as a share of the orchestrator's, counted from when the acknowledged Hello or heartbeat was sent."""


class Dice(Protocol):
    """The one chance that is taken here."""

    def uniform(self, a: float, b: float, /) -> float:
        """A number between a and b."""
        ...


class Session:
    """What one worker process owes and may do, over all its connections.

    Changed only by the link's loop. Invariants: every unacked report's token is held, and `held[token]` is its number; `unacked_bytes` is the
    sum of their sizes; `max_epoch_seen` never falls, and no held token is of a higher epoch.
    """

    __slots__ = (
        "_beats",
        "_dials",
        "_dice",
        "_failures",
        "_full",
        "_next_report",
        "_pausing",
        "_unacked",
        "_wanted_window",
        "heartbeat_ns",
        "held",
        "incarnation",
        "lease_ns",
        "max_epoch_seen",
        "self_lease_ends_ns",
        "unacked_bytes",
    )

    def __init__(self, *, incarnation: bytes, dice: Dice, window: int) -> None:
        self.incarnation = incarnation
        self.held: dict[Token, int] = {}
        """All and only tokens that this worker answers for; value: number of the unacked report, 0 before there is one."""
        self.max_epoch_seen = 0
        self.lease_ns = LEASE_DEFAULT_NS
        self.heartbeat_ns = HEARTBEAT_DEFAULT_NS
        self.self_lease_ends_ns: int | None = None
        """When attempts that must not overlap with others have to be stopped. None before the first Welcome."""
        self.unacked_bytes = 0
        self._unacked: dict[int, tuple[Token, object, int]] = {}
        self._pausing: dict[
            int, int
        ] = {}  # report number -> when it may be sent again; all unacked, told to wait by RETRY
        self._beats: dict[int, int] = {}  # heartbeat number -> when it was sent; of this connection, unacknowledged
        self._next_report = 1
        self._wanted_window = window
        self._full = False
        self._failures = 0
        self._dials = 0
        self._dice = dice

    # ---- flow -----------------------------------------------------------------------------------------------------

    @property
    def window(self) -> int:
        """Assignments that may be outstanding: what the worker wants, or 0 while too many reports wait for their verdict."""
        return 0 if self._full else self._wanted_window

    def want(self, window: int) -> None:
        """Set the wanted window."""
        self._wanted_window = window

    @property
    def unacked_count(self) -> int:
        """Reports without a final verdict."""
        return len(self._unacked)

    def unacked(self) -> list[tuple[int, object]]:
        """(number, report) of all reports without a final verdict, oldest first."""
        return [(number, entry[1]) for number, entry in self._unacked.items()]

    def unacked_tokens(self) -> list[Token]:
        """Tokens of all reports without a final verdict; each is held."""
        return [token for token, _, _ in self._unacked.values()]

    def _measure(self) -> None:
        # Opens again at half, so that a worker at the bound does not switch with every verdict.
        count, size = len(self._unacked), self.unacked_bytes
        if count >= UNACKED_MAX or size >= UNACKED_BYTES_MAX:
            self._full = True
        elif count <= UNACKED_MAX // 2 and size <= UNACKED_BYTES_MAX // 2:
            self._full = False

    # ---- connections ------------------------------------------------------------------------------------------------

    def dial(self) -> int:
        """A Hello is about to be sent: its number, above those of all before."""
        self._dials += 1
        return self._dials

    def welcomed(
        self, *, epoch: int, heartbeat_ns: int, lease_ns: int, now_ns: int, hello_ns: int | None = None
    ) -> bool:
        """Take a Welcome. False: its epoch is below the highest seen, so it must not be obeyed; hang up and dial again.

        hello_ns: when the Hello was sent that it answers. The orchestrator counts its lease from that Hello, however long its Welcome took, so
        this side's begins no later. None: just now.

        After True all unacked reports have to be sent on the new stream (`unacked`), except those told to wait (`is_pausing`).
        """
        if epoch < self.max_epoch_seen:
            return False
        self.max_epoch_seen = epoch
        self.heartbeat_ns = heartbeat_ns or HEARTBEAT_DEFAULT_NS
        self.lease_ns = lease_ns or LEASE_DEFAULT_NS
        self.self_lease_ends_ns = (now_ns if hello_ns is None else hello_ns) + self._own_lease_ns()
        self._beats.clear()
        self._pausing.clear()  # a new stream is a new chance
        self._failures = 0
        return True

    def disconnected(self, *, refused: bool = False) -> int:
        """How long to wait before the next dial, in ns: full jitter, at first short, never below 0.1 s nor above L/3.

        refused: nobody listens there, which a dial costs nothing. Whoever is started there again is found within a second.
        """
        longest_ns = min(self.lease_ns // 3, RECONNECT_REFUSED_NS) if refused else self.lease_ns // 3
        ceiling = min(RECONNECT_START_NS << min(self._failures, 16), max(longest_ns, RECONNECT_MIN_NS))
        self._failures += 1
        return int(self._dice.uniform(RECONNECT_MIN_NS, max(ceiling, RECONNECT_MIN_NS)))

    def reborn(self, incarnation: bytes) -> None:
        """The old incarnation was declared lost: go on as another one, with all that is held and unacked."""
        self.incarnation = incarnation

    # ---- heartbeats -------------------------------------------------------------------------------------------------

    def beat(self, number: int, now_ns: int) -> None:
        """Heartbeat `number` of this connection is sent."""
        self._beats[number] = now_ns

    def beat_acked(self, number: int) -> None:
        """Heartbeat `number` was acknowledged; older ones count as well."""
        sent_ns = self._beats.get(number)
        if sent_ns is None:
            return
        for older in [n for n in self._beats if n <= number]:
            del self._beats[older]
        ends_ns = sent_ns + self._own_lease_ns()
        if self.self_lease_ends_ns is None or ends_ns > self.self_lease_ends_ns:
            self.self_lease_ends_ns = ends_ns

    def _own_lease_ns(self) -> int:
        numerator, denominator = SELF_LEASE_SHARE
        return self.lease_ns * numerator // denominator

    # ---- assignments ------------------------------------------------------------------------------------------------

    def assigned(self, job_id: str, epoch: int, pairs: Sequence[tuple[int, int]]) -> list[int] | None:
        """Take assignments (index, attempt) of one group. None: all are new. Else the positions of those to run.

        What is left out was held already, or belongs to a lower epoch than the highest seen and must not be obeyed.
        """
        if epoch < self.max_epoch_seen:
            return []
        self.max_epoch_seen = epoch
        held = self.held
        before = len(held)
        tokens = [(job_id, index, epoch, attempt) for index, attempt in pairs]
        fresh = dict.fromkeys(tokens, 0)
        if len(fresh) == len(tokens) and fresh.keys().isdisjoint(held):
            held.update(fresh)
            assert len(held) == before + len(tokens)
            return None
        kept = []
        for position, token in enumerate(tokens):
            if token not in held:
                held[token] = 0
                kept.append(position)
        return kept

    def hold(self, token: Token) -> None:
        """Answer for an attempt that an earlier process took. Its epoch was seen then: an orchestrator that knows less has lost its history."""
        self.held.setdefault(token, 0)
        self.max_epoch_seen = max(self.max_epoch_seen, token[2])

    def still_held(self, tokens: Iterable[Token]) -> list[Token]:
        """Those of `tokens` that are held; a Revoke of others is ignored."""
        return [token for token in tokens if token in self.held]

    def forget(self, tokens: Iterable[Token]) -> list[Token]:
        """Give up tokens with their reports, as a Welcome or HeartbeatAck says. Returns those that were held."""
        forgotten = []
        for token in tokens:
            number = self.held.pop(token, None)
            if number is None:
                continue
            forgotten.append(token)
            if number:
                self.unacked_bytes -= self._unacked.pop(number)[2]
                self._pausing.pop(number, None)
        self._measure()
        return forgotten

    def forget_all(self) -> list[Token]:
        """Another queue is served from now on: give up all that is held, and what was seen of the old one. What was held."""
        self.max_epoch_seen = 0
        return self.forget(list(self.held))

    # ---- reports ----------------------------------------------------------------------------------------------------

    def report(self, token: Token, report: object, size_bytes: int) -> int:
        """Keep a report until its final verdict. Its number; 0 when the token is not held or is reported already: drop it."""
        if self.held.get(token, 1):
            return 0
        number = self._next_report
        self._next_report = number + 1
        self.held[token] = number
        self._unacked[number] = (token, report, size_bytes)
        self.unacked_bytes += size_bytes
        if not self._full and (len(self._unacked) >= UNACKED_MAX or self.unacked_bytes >= UNACKED_BYTES_MAX):
            self._full = True
        return number

    def recovered(self, token: Token, report: object, size_bytes: int) -> int:
        """Keep a report that an earlier process of this worker left. Its number; 0 when it is there already."""
        self.hold(token)
        return self.report(token, report, size_bytes)

    def judged(self, code: int, numbers: Iterable[int], retry_after_ns: int, now_ns: int) -> bool:
        """Take a verdict. True: hang up and try another address, because this orchestrator does not own the queue.

        Final verdicts forget the report and its token. RETRY keeps it, see `due`. A code that this side does not know keeps it for the next session.
        """
        if VerdictCode.ACCEPTED <= code <= VerdictCode.UNKNOWN_TASK:
            unacked, held = self._unacked, self.held
            for number in numbers:
                entry = unacked.pop(number, None)
                if entry is not None:
                    self.unacked_bytes -= entry[2]
                    held.pop(entry[0], None)
            if self._pausing:
                self._pausing = {n: at for n, at in self._pausing.items() if n in unacked}
            if self._full:
                self._measure()
            return False
        if code == VerdictCode.RETRY:
            at_ns = now_ns + max(retry_after_ns, RECONNECT_MIN_NS)
            self._pausing.update((number, at_ns) for number in numbers if number in self._unacked)
        return code == VerdictCode.NOT_OWNER

    def get(self, number: int) -> object | None:
        """The report of that number; None when it needs no sending any more."""
        entry = self._unacked.get(number)
        return None if entry is None else entry[1]

    @property
    def next_due_ns(self) -> int | None:
        """When the first report that was told to wait may be sent again; None: none waits."""
        return min(self._pausing.values(), default=None)

    def due(self, now_ns: int) -> list[int]:
        """Numbers of reports whose pause is over; they are taken as sent again."""
        numbers = [number for number, at_ns in self._pausing.items() if at_ns <= now_ns]
        for number in numbers:
            del self._pausing[number]
        return numbers
