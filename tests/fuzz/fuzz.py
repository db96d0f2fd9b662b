"""Hostile input, by seed: the same seed gives the same inputs.

python tests/fuzz/fuzz.py                          every target, 100,000 inputs each
python tests/fuzz/fuzz.py core --inputs 10000000   one target
python tests/fuzz/fuzz.py core --only 1/4711       one world again, with every check after every input

Inputs come in worlds of 250, each of its own seed and fresh, so that what one has spoilt hides nothing in the next. What must hold is said in the targets;
beside it, memory must not grow with the number of inputs.
"""

from __future__ import annotations

import argparse
import logging
import resource
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, the tests' own modules are not on it

import fuzz_core
import fuzz_journal
import fuzz_keys
import fuzz_protocol
import fuzz_storage

TARGETS: dict[str, Callable[..., int]] = {
    "protocol": fuzz_protocol.run,
    "storage": fuzz_storage.run,
    "core": fuzz_core.run,
    "journal": fuzz_journal.run,
    "keys": fuzz_keys.run,
}
WORLD_INPUTS = 250
GROWTH_MIB_MAX = 64
REPORT_S = 60.0


@dataclass(slots=True)
class Outcome:
    """What a run has done. `broken`: seeds of worlds in which something did not hold."""

    target: str
    inputs: int = 0
    refused: int = 0
    seconds: float = 0.0
    growth_mib: float = 0.0
    broken: int = 0

    def __str__(self) -> str:
        return (
            f"{self.target}: {self.inputs} inputs, {self.refused} refused, {self.broken} worlds broken, {self.seconds:.0f} s, "
            f"{self.inputs / max(self.seconds, 1e-9):.0f} a second, memory grew by {self.growth_mib:.0f} MiB"
        )


def fuzz(target: str, inputs: int, seed: int = 1, say: Callable[[str], None] = print) -> Outcome:
    """Run a target. Says where something broke, and goes on."""
    run, outcome, began = TARGETS[target], Outcome(target), time.monotonic()
    said_at, early_mib = began, 0.0
    for number in range(-(-inputs // WORLD_INPUTS)):
        count = min(WORLD_INPUTS, inputs - outcome.inputs)
        try:
            outcome.refused += run(f"{seed}/{number}", count)
        except Exception:
            outcome.broken += 1
            say(f"{target} is broken by seed {seed}/{number}:\n{traceback.format_exc()}")
        outcome.inputs += count
        outcome.seconds = time.monotonic() - began
        if outcome.inputs <= inputs // 10:
            early_mib = _resident_mib()
        outcome.growth_mib = _resident_mib() - early_mib if early_mib else 0.0
        if time.monotonic() - said_at > REPORT_S:
            said_at = time.monotonic()
            say(str(outcome))
    return outcome


def _resident_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """Run what is asked for; exit code 1 when anything did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--inputs", type=int, default=100_000, help="of each target (100,000)")
    parser.add_argument("--seed", type=int, default=1, help="another number gives other inputs (1)")
    parser.add_argument("--only", metavar="SEED/WORLD", help="one world, with every check after every input")
    given = parser.parse_args()
    unknown = [name for name in given.targets if name not in TARGETS]
    if unknown:
        parser.error(f"there is no target {unknown[0]}; there are {', '.join(TARGETS)}")
    logging.getLogger("antfarm").setLevel(logging.ERROR)
    sound = True
    for target in given.targets or TARGETS:
        if given.only:
            TARGETS[target](given.only, WORLD_INPUTS, check_every=1)
            continue
        outcome = fuzz(target, given.inputs, given.seed, lambda text: print(text, flush=True))  # noqa: T201
        print(f"{outcome}", flush=True)  # noqa: T201
        sound = sound and not outcome.broken and outcome.growth_mib < GROWTH_MIB_MAX
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
