"""Who knocks and must not be let in: a second process under a worker's id, and a peer of another protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.simulation.kernel import SECOND, Process
from tests.simulation.link import Link
from tests.simulation.network import WORK

if TYPE_CHECKING:
    from tests.simulation.network import Wire
    from tests.simulation.world import World


class Stranger:
    """One knock with the name of a worker. Where that one has been silent for long it is let in, as a restarted process would be; then it leaves."""

    def __init__(self, world: World, link: Link, *, major: int) -> None:
        self.process = Process(world.kernel, f"stranger to {link.worker_id}")
        self.process.begin()
        wire = world.network.dial(self, world.orchestrators[link.upper])
        incarnation = world.kernel.dice.randbytes(8)
        world.checks.strangers[incarnation] = None
        hello = dict(
            link.about,
            protocol_major=major,
            worker_id=link.worker_id,
            incarnation=incarnation,
            window=link.session.window,
            max_epoch_seen=0,
            dial=1,
            held=(),
            unacked=(),
        )
        wire.send(0, WORK, ("hello", hello))
        self.process.later(20 * SECOND, wire.hang_up, 0)

    def heard(self, wire: Any, lane: int, message: Any) -> None:
        """Refused, or welcome."""
        if message[0] == "welcome":
            wire.send(0, WORK, ("goodbye",))
        wire.hang_up(0)

    def hung_up(self, wire: Wire) -> None:
        """The other side has ended it."""
        wire.hang_up(0)
