"""Run simulated farms by seed.

`python -m tests.simulation SEED` runs one seed and prints what happens; `--many N` runs N seeds on all cores and prints what they did.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback

from tests.simulation.kernel import SECOND
from tests.simulation.runs import Sum, run_many
from tests.simulation.world import World


def run_one(seed: int, *, trace: bool) -> int:
    """Run one seed and say what it did."""
    world = World(seed)
    if trace:
        world.kernel.trace = print
    print(f"seed {seed}: {world.knobs}")
    try:
        outcome = world.run()
    except AssertionError as error:
        print(f"at {world.kernel.now / SECOND:.4f} s of seed {seed}, mark {world.kernel.mark:08x}")
        traceback.print_exc()
        print(f"FAILED {error}")
        return 1
    print(f"mark {outcome.mark:08x}, {outcome.events} events, {outcome.simulated_ns / SECOND:.1f} s simulated")
    print(dict(sorted(outcome.did.items())))
    return 0


def report(total: Sum, first: int, took_s: float) -> int:
    """Print what many seeds did. Exit code 1 when one failed, or when a rare branch was never reached."""
    print(f"seeds {first} to {first + total.seeds - 1}: {len(total.failed)} failed")
    print(
        f"{total.seeds / total.cpu_s:.1f} seeds/s and {total.events / total.cpu_s:,.0f} events/s per core; "
        f"{total.simulated_ns / SECOND / 86400:.2f} days of simulated time in {took_s:.0f} s"
    )
    print("did:", ", ".join(f"{name} {count:,}" for name, count in sorted(total.did.items())))
    print("faults:", ", ".join(f"{name} {count:,}" for name, count in sorted(total.faults.items())))
    if total.missed and total.seeds >= 1_000:
        print("never reached:", ", ".join(total.missed))
    return 1 if total.failed or (total.missed and total.seeds >= 1_000) else 0


def main() -> int:
    """Run seeds. Exit code 1 when one fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seed", type=int, nargs="?", help="run this seed, with a trace")
    parser.add_argument("--many", type=int, default=0, metavar="N", help="run N seeds")
    parser.add_argument("--first", type=int, default=1, metavar="SEED", help="the first of them (default 1)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--quiet", action="store_true", help="no trace")
    arguments = parser.parse_args()
    if arguments.many:
        began = time.perf_counter()
        total = run_many(arguments.first, arguments.many, arguments.jobs)
        return report(total, arguments.first, time.perf_counter() - began)
    if arguments.seed is None:
        parser.error("name a seed, or --many N")
    return run_one(arguments.seed, trace=not arguments.quiet)


if __name__ == "__main__":
    sys.exit(main())
