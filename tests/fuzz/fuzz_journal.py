"""Target `journal`: records that a flipped or torn page may hold. One is read as a record or refused with ValueError; a right one comes back as it went."""

from __future__ import annotations

import random
from typing import Any

from fuzz_bytes import mutate
from fuzz_core import EVENTS_PER_WORLD, Maker
from fuzz_world import Broken, World

from services.orchestrator.core.records import Record
from services.orchestrator.journal import codec

_KINDS_MAX = 18


def run(seed: str, inputs: int, *, check_every: int = 16) -> int:
    """That many record bodies, mutants of those that a world makes. Returns how many were refused."""
    dice = random.Random(seed)
    right = [codec.encode(record) for record in _records(dice)]
    refused = 0
    for _ in range(inputs):
        kind, body = right[int(dice.random() * len(right))]
        other = right[int(dice.random() * len(right))][1]
        if dice.random() < 0.1:
            kind = int(dice.random() * _KINDS_MAX)
        changed = mutate(body, dice, other)
        if dice.random() < 0.01:
            changed = b"\x91" * 3000 + changed  # lists in lists in lists
        try:
            record: Any = codec.decode(kind, changed)
        except ValueError:
            refused += 1
            continue
        codec.job_of(record)
    for kind, body in right:
        if codec.encode(codec.decode(kind, body)) != (kind, body):
            raise Broken(f"a record of kind {kind} does not come back: {body!r}")
    return refused


def _records(dice: random.Random) -> list[Record]:
    world = World(dice)
    maker = Maker(world, dice)
    for _ in range(EVENTS_PER_WORLD):
        world.give(maker.any())
    return [record for _, record in world.records]
