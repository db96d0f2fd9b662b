"""One simulated farm: drawn from a seed, put under load and faults, healed, and asked for its end.

Phase 1 demands safety while everything goes wrong; phase 2 stops the faults and demands that every task ends, every report is settled and no slot leaks.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace

from antfarm.model import TaskTemplate
from services.orchestrator.core.turn import CoreConfig
from tests.simulation.checks import ORCHESTRATOR, Checks, demand
from tests.simulation.clients import Client
from tests.simulation.faults import Faults
from tests.simulation.kernel import MS, SECOND, Kernel
from tests.simulation.link import Link
from tests.simulation.network import Network
from tests.simulation.orchestrator import Orchestrator
from tests.simulation.storage import Storage
from tests.simulation.worker import Worker

HEAL_LIMIT_NS = 3_600 * SECOND
"""Time after the last fault in which everything must have ended; the longest pause that the farm may take is half an hour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """What a seed draws before anything happens."""

    levels: int
    leaves: int
    """Workers of each lowest orchestrator."""
    tasks: int
    seconds: int
    """Length of phase 1."""
    heartbeat_ns: int
    plans: bool
    fault_every_ns: int
    kinds: tuple[str, ...]
    """Kinds of faults that this run has."""


def draw(dice: random.Random, kinds: tuple[str, ...]) -> Knobs:
    """Small farms mostly, now and then a deep or a wide one; never all kinds of faults at once, because they hide each other."""
    levels = dice.choices((1, 2, 3), (75, 18, 7))[0]
    few = dice.randint(1, 6)
    wanted = dice.randint(1, max(len(kinds) // 2, 1))
    return Knobs(
        levels=levels,
        leaves=few if dice.random() < 0.95 or levels > 1 else dice.randint(7, 50),
        tasks=dice.randint(8, 30) if dice.random() < 0.95 else dice.randint(40, 200),
        seconds=dice.randint(5, 30),
        heartbeat_ns=dice.choice((SECOND, SECOND, 3 * SECOND)),
        plans=dice.random() < 0.5,
        fault_every_ns=dice.choice((SECOND // 2, 2 * SECOND, 5 * SECOND)),
        kinds=tuple(dice.sample(kinds, wanted)),
    )


@dataclass
class Outcome:
    """What a run did."""

    seed: int
    knobs: Knobs
    mark: int
    events: int
    simulated_ns: int
    did: Counter[str] = field(default_factory=Counter)


class World:
    """Everything in it, and the few things that all share."""

    def __init__(self, seed: int) -> None:
        self.kernel = Kernel(seed)
        self.network = Network(self.kernel)
        self.checks = Checks(self)
        self.storage = Storage(self)
        self.storage_ns = 20 * MS
        self.knobs = draw(self.kernel.dice, Faults.KINDS)
        self.orchestrators: dict[str, Orchestrator] = {}
        self.workers: list[Worker] = []
        self.worker_by_name: dict[str, Worker] = {}
        self.executions: Counter[bytes] = Counter()
        self._numbers = 0
        self._build()
        self.client = Client(self, self.orchestrators["top"])
        self.faults = Faults(self)

    def next_number(self) -> int:
        """A number that nothing else has."""
        self._numbers += 1
        return self._numbers

    def link_of(self, worker_id: str) -> Link | None:
        """The link of a worker, or of an orchestrator that is one."""
        worker = self.worker_by_name.get(worker_id)
        return worker.link if worker is not None else self.orchestrators[worker_id.removeprefix(ORCHESTRATOR)].link

    # ---- building -----------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        knobs, dice = self.knobs, self.kernel.dice
        config = CoreConfig(
            heartbeat_ns=knobs.heartbeat_ns,
            orchestrator_lease_ns=dice.choice((5, 10)) * knobs.heartbeat_ns,
            orphan_hold_ns=dice.choice((10, 30)) * SECOND,
            probe_first_ns=dice.choice((2, 10)) * SECOND,
            probe_max_ns=20 * SECOND,
            avoid_ns=dice.choice((1, 10)) * SECOND,
            empty_patience_ns=dice.choice((2, 20)) * SECOND,
            frame_tasks_max=dice.choice((1, 8, 1024)),
            infra_failures_max=dice.choice((1, 5)),
            keep_ended_ns=dice.choice((20 * SECOND, 7 * 24 * 3600 * SECOND)),
        )
        self._add_level("top", config, 1, None)
        for orchestrator in self.orchestrators.values():
            orchestrator.start()
        for worker in self.workers:
            self.kernel.after(int(dice.random() * SECOND), worker.start)

    def _add_level(self, name: str, config: CoreConfig, level: int, upper: str | None) -> None:
        types = frozenset({"t"})
        first_epoch = 1 if upper is None else self.kernel.dice.randrange(1, 1 << 20)
        own = replace(config, orchestrator_id=name, first_epoch=first_epoch)
        self.orchestrators[name] = Orchestrator(self, name, own, upper, types)
        if level < self.knobs.levels:
            for number in range(self.kernel.dice.randint(1, 2)):
                self._add_level(f"{name}-{number}", config, level + 1, name)
            return
        offered = {"t", "u"} if upper is None else {"t"}
        if self.knobs.plans and upper is not None:
            offered = {"t:plan", "t:summarise", "c"}
        for number in range(self.knobs.leaves):
            types = frozenset(offered if number == 0 else offered - {self.kernel.dice.choice(("", "u"))})
            slots = self.kernel.dice.choice((1, 1, 2, 4))
            worker = Worker(self, f"{name}-w{number}", name, slots, types)
            self.workers.append(worker)
            self.worker_by_name[worker.name] = worker

    # ---- user code ------------------------------------------------------------------------------------------------------

    def fate(self, payload: bytes) -> tuple[str, int]:
        """What an execution does, and for how long: `app2` fails its first two executions, wherever they are."""
        kind, _, rest = payload.decode().partition(":")
        millis = int(rest.partition(":")[0])
        self.executions[payload] += 1
        name, times = kind.rstrip("0123456789"), kind.lstrip("abcdefghijklmnopqrstuvwxyz")
        if times and self.executions[payload] > int(times):
            name = "ok"
        return name, millis

    def write_plan(self, payload: bytes) -> bytes:
        """The result of planning: the payloads of the children."""
        dice = self.kernel.dice
        count = dice.choice((0, 1, 2, 5))
        return b";".join(
            b"%s:%d:%d" % (dice.choice((b"ok", b"ok", b"app1")), dice.randint(1, 2000), self.next_number())
            for _ in range(count)
        )

    def parse_plan(self, result: bytes) -> tuple[TaskTemplate, list[bytes]]:
        """Template and payloads of a plan's result."""
        retry = self.client.retry(3)
        return TaskTemplate(type="c", retry=retry), [part for part in result.split(b";") if part]

    def passed_down(self, template: TaskTemplate, remaining_ns: int | None) -> TaskTemplate:
        """A template as a lower orchestrator takes it: the queue's limit was the upper one's, of the total what is left."""
        left_ns = None if remaining_ns is None else max(remaining_ns, 1)
        return replace(template, timeouts=replace(template.timeouts, queue_ns=None, total_ns=left_ns))

    # ---- running ----------------------------------------------------------------------------------------------------------

    def revive_later(self, who: Worker | Orchestrator) -> None:
        """Start a dead process again after a while, as systemd would."""
        delay = int((self.kernel.dice.random() ** 3) * 30 * SECOND) + 100 * MS
        self.kernel.after(delay, self.revive, who)

    def revive(self, who: Worker | Orchestrator) -> None:
        """Start it unless it lives."""
        if not who.process.alive:
            who.start()

    def run(self) -> Outcome:
        """Both phases."""
        kernel, knobs = self.kernel, self.knobs
        self.client.begin()
        self.faults.begin()
        self.storage.sweep()
        kernel.run(knobs.seconds * SECOND)
        self.faults.stop()
        self.client.finish()
        healed_ns = kernel.now
        while not self._settled():
            demand(kernel.now - healed_ns < HEAL_LIMIT_NS, "L1", "not settled:", *self._unsettled())
            kernel.run(kernel.now + 2 * SECOND)
        self.checks.healed()
        self._demand_work()
        return Outcome(kernel.seed, knobs, kernel.mark, kernel.events, kernel.now, self.checks.did)

    def _settled(self) -> bool:
        return not next(iter(self._unsettled()), None)

    def _unsettled(self) -> list[object]:
        found: list[object] = [*self.checks.unended()[:1], *self.client.waiting[:1]]
        found += [
            worker.name
            for worker in self.workers
            if not worker.process.alive or not worker.idle or worker.link.session.held or not worker.link.attached
        ]
        for orchestrator in self.orchestrators.values():
            state = orchestrator.core.state
            if state.parents or any(worker.live for worker in state.workers.values()):
                found.append(orchestrator.name)
        return found

    def _demand_work(self) -> None:
        did = self.checks.did
        demand(self.faults.count > 0, "a run without a fault proves nothing:", self.knobs)
        demand(did["started"] >= 4, "a run with so little work proves nothing:", dict(did))
