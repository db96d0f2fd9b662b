"""The network: connections with two ordered lanes each way, and all that can happen to them.

A lane keeps its order as TCP does, but the lanes of one connection overtake each other. A direction between two processes can be cut: what is sent
into it waits for the heal, or dies with the connection. A killed process's connections are reset; of a machine that lost its power nobody
tells. Lost packets are late ones. Reports and heartbeats may be doubled and overtaken beyond what TCP would do, because the protocol claims to bear it.
"""

from __future__ import annotations

from typing import Any, Protocol

from tests.simulation.kernel import MS, SECOND, Kernel, Process

WORK, REPORT = 0, 1


class Endpoint(Protocol):
    """Who talks over a connection."""

    process: Process

    def heard(self, wire: Any, lane: int, message: Any) -> None:
        """A message arrived."""
        ...

    def hung_up(self, wire: Wire) -> None:
        """The connection has ended, as far as this side can tell."""
        ...


class Network:
    """How messages travel; the faults are set from outside."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.calm()
        self.cut: dict[tuple[str, str], None] = {}
        """Directions (from, to) in which nothing passes."""
        self._waiting: list[tuple[Wire, int, int, int, Any]] = []
        self.wires: dict[Wire, None] = {}
        self.last_arrival_ns: dict[tuple[str, str], int] = {}
        """When the last message of a direction arrived or will."""
        self.arrived_ns: dict[tuple[str, str], int] = {}
        """When the last message of a direction arrived that could be read then, read or not; what comes late from a connection that was given up is old."""
        self.silence_ns: dict[tuple[str, str], int] = {}
        """The longest silence of a direction that ended by a word that has not been read yet."""
        self.newest_ns: dict[tuple[str, str], int] = {}
        """When the newest connection of a direction over which something has come was dialled."""

    def calm(self) -> None:
        """As networks are when nothing is wrong, but for what is cut."""
        self.latency_ns = 200_000
        self.jitter_ns = 100_000
        self.loss = 0.0
        """How often a packet is lost, which delays its lane by a retransmission."""
        self.doubling = 0.0
        """How often a report or heartbeat comes twice, the second time out of order."""

    def dial(self, dialer: Endpoint, acceptor: Endpoint) -> Wire:
        """A connection, usable at once; the first message finds out whether anybody is there."""
        wire = Wire(self, dialer, acceptor)
        self.wires[wire] = None
        return wire

    def delay_ns(self) -> int:
        """How long one message takes."""
        delay = self.latency_ns + int(self.kernel.dice.random() * self.jitter_ns)
        while self.loss and self.kernel.chance(self.loss):
            delay += 200 * MS
        return delay

    def heal(self, pair: tuple[str, str]) -> None:
        """A direction is open again: what waits for it goes on."""
        self.cut.pop(pair, None)
        waiting, self._waiting = self._waiting, []
        for wire, side, lane, number, message in waiting:
            if wire.pair(side) in self.cut:
                self._waiting.append((wire, side, lane, number, message))
            else:
                wire.travel(side, lane, number, message)

    def hold(self, wire: Wire, side: int, lane: int, number: int, message: Any) -> None:
        """A message that cannot pass now."""
        if not wire.ended[side]:
            self._waiting.append((wire, side, lane, number, message))

    def reset_all(self, process: Process, *, silent: bool) -> None:
        """A process died: the others are told, unless its machine went with it."""
        for wire in list(self.wires):
            for side in (0, 1):
                if wire.ends[side].process is process:
                    wire.ended[side] = True
                    if not silent:
                        wire.say_end(side)


_END = object()
_UNORDERED = -1
"""Number of a message that comes when it comes."""


class Wire:
    """One connection. Side 0 dialled, side 1 accepted."""

    def __init__(self, network: Network, dialer: Endpoint, acceptor: Endpoint) -> None:
        self.network = network
        self.ends = (dialer, acceptor)
        self.lives = (dialer.process.life, acceptor.process.life)
        self.ended = [False, False]
        self.opened_ns = network.kernel.now
        self.session: Any = None
        """What the acceptor knows this connection by."""
        self._arrival = [[0, 0], [0, 0]]
        self._sent = [[0, 0], [0, 0]]
        self._come = [[0, 0], [0, 0]]
        """By sender and lane, how many messages: each lane is read in the order in which it was written."""
        self._over = [False, False]
        """By sender: the connection's end has arrived, and what comes after it nobody can read."""
        self._early: dict[tuple[int, int, int], Any] = {}
        """What has arrived before something that was sent before it."""

    def pair(self, side: int) -> tuple[str, str]:
        """Names of (sender, receiver) when that side sends."""
        return self.ends[side].process.name, self.ends[1 - side].process.name

    def send(self, side: int, lane: int, message: Any, *, may_double: bool = False) -> None:
        """Send from that side."""
        if self.ended[side]:
            return
        number = self._sent[side][lane]
        self._sent[side][lane] += 1
        self.travel(side, lane, number, message)
        if may_double and self.network.doubling and self.network.kernel.chance(self.network.doubling):
            delay = self.network.delay_ns() + int(self.network.kernel.dice.random() * SECOND)
            self.network.kernel.after(delay, self._arrive, side, lane, _UNORDERED, message)
            self._expect(side, self.network.kernel.now + delay)

    def _expect(self, side: int, arrival: int) -> None:
        last, pair = self.network.last_arrival_ns, self.pair(side)
        last[pair] = max(last.get(pair, 0), arrival)

    def travel(self, side: int, lane: int, number: int, message: Any) -> None:
        """On its way, unless the direction is cut."""
        network = self.network
        if self.pair(side) in network.cut:
            network.hold(self, side, lane, number, message)
            return
        kernel = network.kernel
        arrival = max(kernel.now + network.delay_ns(), self._arrival[side][lane])
        self._arrival[side][lane] = arrival
        self._expect(side, arrival)
        kernel.after(arrival - kernel.now, self._arrive, side, lane, number, message)

    def _arrive(self, side: int, lane: int, number: int, message: Any) -> None:
        other = 1 - side
        receiver = self.ends[other]
        process = receiver.process
        if self.pair(side) in self.network.cut:
            self.network.hold(self, side, lane, number, message)
        elif not process.alive or process.life != self.lives[other]:
            if message is not _END:
                # Nobody is there, or another process: the machine answers with a reset.
                self.ended[other] = True
                self.say_end(other)
        elif message is _END:
            self._over[side] = True
            process.enter(self.lives[other], self._hear_end, other)
        elif not self.ended[other]:
            if number == _UNORDERED:
                self._hand_over(side, lane, message)
                return
            self._early[side, lane, number] = message
            while (due := (side, lane, self._come[side][lane])) in self._early:
                self._come[side][lane] += 1
                self._hand_over(side, lane, self._early.pop(due))

    def _hand_over(self, side: int, lane: int, message: Any) -> None:
        other, pair, network = 1 - side, self.pair(side), self.network
        if self.opened_ns >= network.newest_ns.get(pair, 0) and not self._over[side]:
            now = network.kernel.now
            silence = now - network.arrived_ns.get(pair, now)
            network.silence_ns[pair] = max(silence, network.silence_ns.get(pair, 0))
            network.newest_ns[pair], network.arrived_ns[pair] = self.opened_ns, now
        self.ends[other].process.enter(self.lives[other], self._hear, other, lane, message)

    def _hear(self, side: int, lane: int, message: Any) -> None:
        self.network.silence_ns.pop(self.pair(1 - side), None)
        if not self.ended[side]:
            self.ends[side].heard(self, lane, message)

    def _hear_end(self, side: int) -> None:
        if not self.ended[side]:
            self.ended[side] = True
            self.network.wires.pop(self, None)
            self.ends[side].hung_up(self)

    def say_end(self, side: int) -> None:
        """Tell the other side that this one has ended; it may never hear of it."""
        self.travel(side, WORK, _UNORDERED, _END)

    def hang_up(self, side: int) -> None:
        """End the connection from that side."""
        if not self.ended[side]:
            self.ended[side] = True
            self.network.wires.pop(self, None)
            self.say_end(side)
