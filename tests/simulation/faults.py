"""Faults: what goes wrong, when, and how it heals. Each kind is one method; a run has some of them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, ClassVar

from antfarm.model import Ending
from services.orchestrator.core.events import Outcome
from tests.simulation.kernel import MS, SECOND
from tests.simulation.link import Link
from tests.simulation.network import REPORT
from tests.simulation.orchestrator import Orchestrator
from tests.simulation.strangers import Stranger
from tests.simulation.worker import Worker

if TYPE_CHECKING:
    from tests.simulation.world import World


class Faults:
    """Draws faults until it is stopped, then undoes all of them."""

    KINDS: ClassVar[tuple[str, ...]] = (
        "kill_worker",
        "power_off_worker",
        "stop_worker",
        "kill_orchestrator",
        "power_off_orchestrator",
        "stop_orchestrator",
        "cut_one_way",
        "cut_both_ways",
        "reset_connection",
        "slow_network",
        "lossy_network",
        "doubling_network",
        "slow_disk",
        "full_disk",
        "low_disk",
        "disk_error",
        "clock_jump",
        "restore_backup",
        "black_hole",
        "slow_worker",
        "forge_reports",
        "strangers",
    )

    def __init__(self, world: World) -> None:
        self.world = world
        self.kernel = world.kernel
        self.count = 0
        self.kinds: Counter[str] = Counter()
        self._dice = world.kernel.dice
        self._over = False

    def begin(self) -> None:
        """The first fault comes soon."""
        self.kernel.after(int(self._dice.random() * 2 * SECOND), self._next)

    def _next(self) -> None:
        if self._over:
            return
        kind = self._dice.choice(self.world.knobs.kinds)
        self.kernel.note("fault", kind)
        if getattr(self, f"_{kind}")() is not False:
            self.count += 1
            self.kinds[kind] += 1
        self.kernel.after(int(self._dice.expovariate(1 / self.world.knobs.fault_every_ns)), self._next)

    def stop(self) -> None:
        """Heal everything."""
        self._over = True
        if not self.count:
            self._kill_worker()
            self.count += 1
        self.kernel.note("heal")
        network = self.world.network
        network.calm()
        for pair in list(network.cut):
            network.heal(pair)
        for orchestrator in self.world.orchestrators.values():
            orchestrator.disk.mend()
            self._continue(orchestrator)
            self.world.revive(orchestrator)
        for worker in self.world.workers:
            worker.black_hole, worker.speed = False, 1.0
            worker.process.go_on()
            self.kernel.after(SECOND, self.world.revive, worker)
        self.kernel.after(SECOND, self._keep_alive)

    def _keep_alive(self) -> None:
        """What user code brings down, and what has left, is started again, as systemd does."""
        for worker in self.world.workers:
            if not worker.process.alive:
                self.world.revive(worker)
        self.kernel.after(5 * SECOND, self._keep_alive)

    def _a_while(self, most_s: float) -> int:
        """Mostly short, sometimes long."""
        return int(self._dice.random() ** 2 * most_s * SECOND) + MS

    def _orchestrator(self) -> Orchestrator:
        return self._dice.choice(list(self.world.orchestrators.values()))

    def _worker(self) -> Worker:
        return self._dice.choice(self.world.workers)

    # ---- processes ----------------------------------------------------------------------------------------------------

    def _kill_worker(self) -> None:
        worker = self._worker()
        worker.die()
        self.world.revive_later(worker)

    def _power_off_worker(self) -> None:
        worker = self._worker()
        worker.die(silent=True)
        self.world.revive_later(worker)

    def _stop_worker(self) -> None:
        process = self._worker().process
        process.stop()
        self.kernel.after(self._a_while(40), process.go_on)

    def _kill_orchestrator(self) -> None:
        orchestrator = self._orchestrator()
        orchestrator.die()
        self.world.revive_later(orchestrator)

    def _power_off_orchestrator(self) -> None:
        orchestrator = self._orchestrator()
        orchestrator.die(silent=True)
        self.world.revive_later(orchestrator)

    def _stop_orchestrator(self) -> None:
        orchestrator = self._orchestrator()
        orchestrator.disturb()
        orchestrator.process.stop()
        self.kernel.after(self._a_while(60), self._continue, orchestrator)

    def _continue(self, orchestrator: Orchestrator) -> None:
        orchestrator.disturb()
        orchestrator.process.go_on()

    # ---- network ------------------------------------------------------------------------------------------------------

    def _pair(self) -> tuple[str, str]:
        pairs = [(worker.name, worker.upper) for worker in self.world.workers]
        pairs += [(name, o.upper) for name, o in self.world.orchestrators.items() if o.upper is not None]
        return self._dice.choice(pairs)

    def _cut_one_way(self) -> None:
        lower, upper = self._pair()
        self._cut(self._dice.choice(((lower, upper), (upper, lower))), self._a_while(40))

    def _cut_both_ways(self) -> None:
        lower, upper = self._pair()
        whole = self._a_while(40)
        self._cut((lower, upper), whole)
        self._cut((upper, lower), whole)

    def _cut(self, pair: tuple[str, str], for_ns: int) -> None:
        self.world.network.cut[pair] = None
        self.kernel.after(for_ns, self.world.network.heal, pair)

    def _reset_connection(self) -> bool:
        wires = list(self.world.network.wires)
        if not wires:
            return False
        wire = self._dice.choice(wires)
        wire.say_end(0)
        wire.say_end(1)
        return True

    def _slow_network(self) -> None:
        network = self.world.network
        network.latency_ns = self._dice.choice((10, 100, 1000)) * MS
        network.jitter_ns = network.latency_ns
        self.kernel.after(self._a_while(30), self.world.network.calm)

    def _lossy_network(self) -> None:
        self.world.network.loss = self._dice.choice((0.01, 0.05, 0.2))
        self.kernel.after(self._a_while(30), self.world.network.calm)

    def _doubling_network(self) -> None:
        self.world.network.doubling = self._dice.choice((0.05, 0.5))
        self.kernel.after(self._a_while(60), self.world.network.calm)

    # ---- disks and clocks ---------------------------------------------------------------------------------------------

    def _slow_disk(self) -> None:
        orchestrator = self._orchestrator()
        orchestrator.disk.commit_ns = self._dice.choice((50, 500, 3000)) * MS
        self.kernel.after(self._a_while(30), orchestrator.disk.mend)

    def _full_disk(self) -> None:
        orchestrator = self._orchestrator()
        orchestrator.disk.full = orchestrator.disk.low = True
        self.kernel.after(self._a_while(40), orchestrator.disk.mend)

    def _low_disk(self) -> None:
        orchestrator = self._orchestrator()
        orchestrator.disk.low = True
        self.kernel.after(self._a_while(20), orchestrator.disk.mend)

    def _disk_error(self) -> bool:
        orchestrator = self._orchestrator()
        if not orchestrator.process.alive:
            return False
        orchestrator.io_error()
        self.world.revive_later(orchestrator)
        return True

    def _clock_jump(self) -> None:
        self._orchestrator().wall_jump_ns += int(
            self._dice.choice((-1, 1)) * self._dice.choice((1, 60, 86_400)) * SECOND
        )

    def _restore_backup(self) -> bool:
        """Take a backup now, or go back to one. Only alone at the top: what stands above or below would have to go back as well."""
        orchestrator = self.world.orchestrators["top"]
        if self.world.knobs.levels > 1:
            return False
        disk = orchestrator.disk
        if not disk.backups:
            disk.back_up()
            return False
        orchestrator.die()
        disk.restore(disk.backups[0])
        self.world.checks.restored(orchestrator)
        self.world.revive_later(orchestrator)
        return True

    # ---- workers that do wrong ------------------------------------------------------------------------------------------

    def _black_hole(self) -> None:
        worker = self._worker()
        worker.black_hole = True
        self.kernel.after(self._a_while(30), setattr, worker, "black_hole", False)

    def _slow_worker(self) -> None:
        worker = self._worker()
        worker.speed = 20.0
        self.kernel.after(self._a_while(40), setattr, worker, "speed", 1.0)

    def _forge_reports(self) -> bool:
        """A worker reports successes of attempts that are not its own, or that nobody has."""
        links: list[Link] = [
            worker.link
            for worker in self.world.workers
            if worker.process.alive
            and worker.link.attached
            and not self.world.orchestrators[worker.upper].process.stopped
        ]
        if not links:
            return False
        link = self._dice.choice(links)
        ledger = self.world.checks.ledger(link.upper)
        foreign = [t for t, holder in ledger.issued.items() if holder != link.worker_id and t[2] == ledger.epoch]
        if not foreign or link.wire is None:
            return False
        job_id, index, epoch, attempt = self._dice.choice(foreign)
        attempt += self._dice.choice((0, 0, 1000))
        if ledger.issued.get((job_id, index, epoch, attempt)) == link.worker_id:
            return False
        forged = Outcome(report_no=1 << 40, index=index, attempt=attempt, ending=Ending.SUCCEEDED, result=b"forged")
        # At once, within the epoch: which tokens an earlier one issued nobody knows for sure, and one of these would be adopted.
        owner = self.world.orchestrators[link.upper]
        owner.process.enter(link.wire.lives[1], owner.heard, link.wire, REPORT, ("reports", job_id, epoch, [forged]))
        return True

    def _strangers(self) -> bool:
        """A twin of a worker knocks, or a peer of another protocol."""
        known = [worker.link for worker in self.world.workers if worker.process.life]
        if known:
            Stranger(self.world, self._dice.choice(known), major=self._dice.choice((1, 1, 2)))
        return bool(known)
