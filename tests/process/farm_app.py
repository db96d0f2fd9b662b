"""Tasks and stages of the process tests. Each execution leaves one line in a file, so that executions can be counted."""

from __future__ import annotations

import os
import time
from pathlib import Path

import antfarm as af


def note(path: str, ctx: af.Context, what: str) -> None:
    """One line, whole or not at all, however many processes write."""
    line = f"{what} {ctx.index} {ctx.attempt} {os.getpid()} {time.time()}\n"
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


@af.task
def work(number: int, path: str, seconds: float, ctx: af.Context) -> int:
    """Notes that it began, takes its time, returns the square."""
    note(path, ctx, f"work-{number}")
    time.sleep(seconds)
    return number * number


@af.task
def meet(number: int, path: str, count: int, ctx: af.Context) -> int:
    """Notes that it began and goes on when `count` of them have."""
    note(path, ctx, f"met-{number}")
    while Path(path).read_text().count("met-") < count:
        time.sleep(0.01)
    return number


@af.task
def gated(number: int, path: str, gate: str, ctx: af.Context) -> int:
    """Notes that it began and goes on until the gate is there."""
    note(path, ctx, f"work-{number}")
    while not Path(gate).exists():
        time.sleep(0.005)
    return number * number


@af.task
def broken(number: int, path: str, ctx: af.Context) -> int:
    """Fails for odd numbers."""
    note(path, ctx, f"work-{number}")
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number


@af.task
def after(value: int, path: str, ctx: af.Context) -> int:
    """Takes another task's value."""
    note(path, ctx, f"after-{value}")
    return value + 1


def plan(name: str, count: int, path: str, seconds: float, kind: str, ctx: af.Context) -> af.Expansion:
    """What becomes of one request, by its kind."""
    note(path, ctx, f"plan-{name}")
    if kind == "fail":
        raise ValueError("there is no plan")
    if kind == "nothing":
        return count  # type: ignore[return-value]  # a mistake that people make
    if kind == "gated":
        return af.Expansion(task=gated, calls=range(count), common={"path": path, "gate": f"{path}.gate"})
    if kind == "broken":
        return af.Expansion(task=broken, calls=range(count), common={"path": path})
    return af.Expansion(task=work, calls=range(count), common={"path": path, "seconds": seconds})


def summarise(
    outcomes: list[af.Outcome], name: str, count: int, path: str, seconds: float, kind: str, ctx: af.Context
) -> list[object]:
    """[name, sum of the values, kinds of the failures]."""
    note(path, ctx, f"summary-{name}")
    values = [outcome.value for outcome in outcomes if outcome.ok]
    return [name, sum(values), [outcome.failure.kind for outcome in outcomes if outcome.failure is not None]]


def plan_of_stages(requests: int, count: int, path: str, seconds: float, ctx: af.Context) -> af.Expansion:
    """Each child is a request to the stage below."""
    note(path, ctx, "plan-of-stages")
    calls = [(f"r{number}", count, path, seconds, "work") for number in range(requests)]
    return af.Expansion(task="test.stage", calls=calls)


def sum_of_stages(
    outcomes: list[af.Outcome], requests: int, count: int, path: str, seconds: float, ctx: af.Context
) -> int:
    """Sum of the sums."""
    note(path, ctx, "summary-of-stages")
    return sum(outcome.result()[1] for outcome in outcomes)


af.stage(name="test.stage", plan=plan, summarise=summarise)
af.stage(name="test.stages", plan=plan_of_stages, summarise=sum_of_stages)
