"""Running many seeds, in many processes, and adding up what they did."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing import get_context

from tests.simulation.checks import PROBES
from tests.simulation.world import World

CHUNK = 25
"""Seeds that a process runs at a time."""


@dataclass
class Sum:
    """What many seeds did together."""

    seeds: int = 0
    failed: list[tuple[int, str]] = field(default_factory=list)
    did: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    simulated_ns: int = 0
    events: int = 0
    cpu_s: float = 0.0

    def add(self, other: Sum) -> None:
        """Add another sum."""
        self.seeds += other.seeds
        self.failed += other.failed
        self.did.update(other.did)
        self.faults.update(other.faults)
        self.simulated_ns += other.simulated_ns
        self.events += other.events
        self.cpu_s += other.cpu_s

    @property
    def missed(self) -> list[str]:
        """Probes that no seed hit."""
        return [probe for probe in PROBES if not self.did[probe]]


def run_chunk(seeds: Iterable[int]) -> Sum:
    """Run seeds one after another in this process."""
    total = Sum()
    began = time.process_time()
    gc.disable()  # a world is one large cycle: collected between chunks
    for seed in seeds:
        world = World(seed)
        try:
            world.run()
        except Exception as error:
            total.failed.append((seed, f"{type(error).__name__} {str(error)[:300]}"))
        total.seeds += 1
        total.did.update(world.checks.did)
        total.faults.update(world.faults.kinds)
        total.simulated_ns += world.kernel.now
        total.events += world.kernel.events
    total.cpu_s = time.process_time() - began
    gc.enable()
    gc.collect()
    return total


def run_many(first: int, count: int, jobs: int) -> Sum:
    """Run seeds in that many processes; failures are printed as they come."""
    total = Sum()
    chunks = [range(start, min(start + CHUNK, first + count)) for start in range(first, first + count, CHUNK)]
    with get_context("spawn").Pool(jobs) as pool:
        for part in pool.imap_unordered(run_chunk, chunks):
            for seed, text in part.failed:
                print(f"seed {seed} FAILED {text}", flush=True)
            total.add(part)
    return total
