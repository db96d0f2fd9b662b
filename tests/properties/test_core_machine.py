"""The core against a model of plain dictionaries: whatever happens in whatever order, the invariants of semantics section 14 hold.

Reports come late, twice, from strangers, in another order, over several streams; workers and the process itself die; journals lose what was not
committed. At the end of every run the faults stop, and everything must come to its end.

`ANTFARM_SEEDS=5000 pytest tests/properties` tries more; a failing seed is named, and alone again by `ANTFARM_SEED=123`.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from typing import Any

import pytest
from farm_world import ACTIONS, World
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

PROBES = (
    "assigned", "SUCCEEDED", "FAILED", "DEAD_LETTER", "CANCELLED", "EXPIRED", "ACCEPTED", "DUPLICATE", "SUPERSEDED", "FENCED", "UNKNOWN_TASK",
    "purged", "restarts", "reported above", "backups", "alone",
)  # fmt: skip
"""What must have happened often in a run of many seeds, or it proves little."""
RARE_PROBES = ("quarantine", "quarantine ended", "paused", "pause ended")
"""The same of what needs several failures in a row."""


class Farm(RuleBasedStateMachine):
    """The world as a rule-based machine: a failure is shrunk to the fewest steps that show it."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    def teardown(self) -> None:
        self.world.heal()


def _add_rules() -> None:
    def make(name: str) -> Any:
        def step(self: Farm, **parameters: Any) -> None:
            getattr(self.world, name)(**parameters)
            self.world.check()

        step.__name__ = name
        return step

    declare: Any = rule  # its types know no strategies by name
    for weight, name, parameters in ACTIONS:
        strategies: Any = {key: st.sampled_from(choices) for key, choices in parameters.items()}
        for copy in range(min(weight, 3)):
            setattr(Farm, f"{name}_{copy}", declare(**strategies)(make(f"{name}_{copy}".removesuffix(f"_{copy}"))))


_add_rules()


@pytest.mark.slow
def test_no_sequence_of_steps_breaks_an_invariant() -> None:
    run_state_machine_as_test(
        Farm,
        settings=settings(
            max_examples=150,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def run(seed: int, steps: int = 250) -> Counter[str]:
    """One farm's life; what happened in it."""
    dice = random.Random(seed)
    world = World()
    weights = [weight for weight, _, _ in ACTIONS]
    for _ in range(steps):
        _, name, parameters = dice.choices(ACTIONS, weights)[0]
        getattr(world, name)(**{key: dice.choice(choices) for key, choices in parameters.items()})
        world.check()
    world.heal()
    return world.model.worked


@pytest.mark.slow
@pytest.mark.timeout(300)  # a hundred lives are a minute of CPU, and the machine may have other work
def test_many_lives_of_a_farm_keep_every_promise() -> None:
    one = os.environ.get("ANTFARM_SEED")
    seeds = [int(one)] if one else range(int(os.environ.get("ANTFARM_SEEDS", "100")))
    worked: Counter[str] = Counter()
    for seed in seeds:
        try:
            worked.update(run(seed))
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    if not one:
        rare = {probe: worked[probe] for probe in PROBES if worked[probe] < len(seeds) // 4}
        rare |= {probe: worked[probe] for probe in RARE_PROBES if worked[probe] < len(seeds) // 20}
        assert not rare, f"these happened too seldom to prove anything: {rare}; all: {worked}"
