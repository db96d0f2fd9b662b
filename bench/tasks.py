"""The tasks and the stage that are measured."""

from __future__ import annotations

import time

import antfarm as af
from antfarm.context import current_context

DIGITS = 12
"""Of the number in a payload of `weigh`."""


def identity(x: int) -> int:
    """Nothing: all that is measured is what runs it."""
    return x


noop = af.task(name="bench.noop")(identity)


@af.task(name="bench.note")
def note(x: int, path: str) -> None:
    """Notes the epoch of its attempt and the time, and takes a while."""
    with open(path, "a") as file:
        file.write(f"{current_context().epoch} {time.time()}\n")
    time.sleep(0.02)


def spread(count: int) -> af.Expansion:
    """The plan of a stage: one request becomes that many empty tasks."""
    return af.Expansion(task=noop, calls=range(count))


def gather(outcomes: list[af.Outcome], count: int) -> int:
    """Its summary: how many there were. Fails when one is wrong."""
    if [outcome.result() for outcome in outcomes] != list(range(count)):
        raise ValueError("results are wrong")
    return len(outcomes)


af.stage(name="bench.spread", plan=spread, summarise=gather)


@af.task(name="bench.weigh")
def weigh(text: str) -> int:
    """The number at the end of a payload of any size; the answer is small."""
    return int(text[-DIGITS:])


def payload_text(number: int, size_bytes: int) -> str:
    """The argument of `weigh` whose call takes that many bytes on the wire, 16 at least."""
    return str(number).zfill(size_bytes - len('[""]'))
