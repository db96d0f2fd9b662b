"""`python -m tests.simulation SEED` runs one seed and prints what happens; `--many N [--first SEED]` runs many and prints what they did."""

from __future__ import annotations

import argparse
import gc
import sys
import time
import traceback
from collections import Counter

from tests.simulation.kernel import SECOND
from tests.simulation.world import World


def main() -> int:
    """Run seeds. Exit code 1 when one fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seed", type=int, nargs="?", help="run this seed, with a trace")
    parser.add_argument("--many", type=int, default=0, metavar="N", help="run N seeds")
    parser.add_argument("--first", type=int, default=1, metavar="SEED", help="the first of them (default 1)")
    parser.add_argument("--quiet", action="store_true", help="no trace")
    arguments = parser.parse_args()
    if arguments.many:
        return run_many(arguments.first, arguments.many)
    if arguments.seed is None:
        parser.error("name a seed, or --many N")
    return run_one(arguments.seed, trace=not arguments.quiet)


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


def run_many(first: int, count: int) -> int:
    """Run seeds one after another and add up what they did."""
    did: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    failed: list[tuple[int, str]] = []
    simulated_ns = events = 0
    began = time.perf_counter()
    gc.disable()  # a world is one large cycle: collected now and then, between two of them
    for seed in range(first, first + count):
        world = World(seed)
        try:
            world.run()
        except Exception as error:
            failed.append((seed, f"{type(error).__name__} {error}"))
            print(f"seed {seed} FAILED {type(error).__name__} {str(error)[:300]}", flush=True)
        did += world.checks.did
        faults += world.faults.kinds
        simulated_ns += world.kernel.now
        events += world.kernel.events
        if seed % 50 == 0:
            gc.collect()
    took = time.perf_counter() - began
    print(f"{count} seeds from {first}: {len(failed)} failed, {count / took:.1f} seeds/s, {events / took:.0f} events/s, ")
    print(f"{simulated_ns / SECOND / 86400:.2f} days simulated in {took:.0f} s")
    print("did:", dict(sorted(did.items())))
    print("faults:", dict(sorted(faults.items())))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
