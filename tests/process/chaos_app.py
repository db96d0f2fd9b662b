"""Tasks of the chaos series: each execution notes its begin and its end for the history checker.

`name` is the job as the client knows it; below a down-stream orchestrator the job that a task runs in has another, derived id.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from history import note_begin, note_end

import antfarm as af

SLOWNESS = "CHAOS_SLOWNESS"
"""Variable of slow nodes: how many times longer tasks take there."""


@af.task(name="chaos.step")
def step(number: int, path: str, name: str, seconds: float, ctx: af.Context) -> int:
    """Takes its time, returns the square."""
    return _take_time(number, path, name, seconds, ctx)


@af.task(name="chaos.twice", idempotent=True)
def twice(number: int, path: str, name: str, seconds: float, ctx: af.Context) -> int:
    """The same; may be run twice at a time, and takes so many times longer on a slow node."""
    return _take_time(number, path, name, seconds * float(os.environ.get(SLOWNESS, "1")), ctx)


def _take_time(number: int, path: str, name: str, seconds: float, ctx: af.Context) -> int:
    token = name, number, ctx.epoch, ctx.attempt
    note_begin(path, *token, at=time.time())
    time.sleep(seconds)
    note_end(path, *token, at=time.time())
    return number * number


@af.task(name="chaos.heavy")
def heavy(number: int, filler: str, path: str, name: str, seconds: float, ctx: af.Context) -> int:
    """As a step, with something to carry."""
    return _take_time(number, path, name, seconds, ctx)


@af.task(name="chaos.wide")
def wide(number: int, width: int) -> str:
    """Has much to say."""
    return f"{number}:".ljust(width, "x")


@af.task(name="chaos.gated")
def gated(number: int, path: str, name: str, seconds: float, ctx: af.Context) -> int:
    """Ends when there is a file of its job's name, or it is stopped."""
    token = name, number, ctx.epoch, ctx.attempt
    note_begin(path, *token, at=time.time())
    while not Path(f"{path}.{name}").exists():
        time.sleep(0.01)
    note_end(path, *token, at=time.time())
    return number * number


@af.task(name="chaos.meet")
def meet(number: int, path: str, count: int, ctx: af.Context) -> int:
    """Ends when so many of its kind run at the same time. How many came."""
    note_begin(path, "meeting", number, ctx.epoch, ctx.attempt, at=time.time())
    while (came := Path(path).read_text().count("begin")) < count:
        time.sleep(0.01)
    return came


@af.task(name="chaos.poison")
def poison(number: int) -> None:
    """Takes its worker along."""
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


@af.task(name="chaos.hole")
def hole(number: int, hole: str, seconds: float) -> int:
    """Fails at once on the node whose agent the file names."""
    if Path(hole).read_text() == str(os.getppid()):
        raise OSError("the disk of this node is full")
    time.sleep(seconds)
    return number


def plan(number: int, path: str, name: str, seconds: float, count: int, ctx: af.Context) -> af.Expansion:
    """A request becomes `count` steps."""
    common = {"path": path, "name": f"{name}.{number}", "seconds": seconds}
    return af.Expansion(task=step, calls=range(count), common=common)


def summarise(
    outcomes: list[af.Outcome], number: int, path: str, name: str, seconds: float, count: int, ctx: af.Context
) -> int:
    """The sum of the squares."""
    return sum(outcome.result() for outcome in outcomes)


def plan_of_requests(number: int, path: str, name: str, seconds: float, count: int, ctx: af.Context) -> af.Expansion:
    """A request becomes two requests to the level below."""
    return af.Expansion(
        task="chaos.request",
        calls=range(2),
        common={"path": path, "name": f"{name}.{number}", "seconds": seconds, "count": count},
    )


af.stage(name="chaos.request", plan=plan, summarise=summarise)
af.stage(name="chaos.requests", plan=plan_of_requests, summarise=summarise)
