"""Functions that workers of the client's tests run."""

from __future__ import annotations

import collections
import dataclasses
import os
import signal
import time
from pathlib import Path
from typing import Any

import antfarm as af
from antfarm.pipeline import Outcome


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: int


@af.task
def square(x: int) -> int:
    return x * x


@af.task
def add(x: Any, y: Any = 0) -> Any:
    return x + y


@af.task
def same(x: Any) -> Any:
    return x


@af.task
def sizes(x: int, job: list[Outcome]) -> list[int]:
    return [*(len(outcome.result()) for outcome in job), x]


@af.task
async def double(x: int) -> int:
    return 2 * x


@af.task
def fail(x: int) -> None:
    raise ValueError(f"no {x}")


@af.task
def fail_odd(x: int) -> int:
    if x % 2:
        raise ValueError(f"odd {x}")
    return x


@af.task
def count_two(x: int) -> Any:
    return collections.Counter("aab") if x == 2 else fail_odd(x)


@af.task(retries=af.Retry(max_attempts=3, backoff=0.01))
def third_time(ctx: af.Context) -> int:
    if ctx.attempt < 3:
        raise OSError("not yet")
    return ctx.attempt


@af.task(retries=af.Retry(max_attempts=3, backoff=86_000, backoff_max=86_000))
def fail_patiently() -> None:
    raise OSError("not yet")


@af.task
def wait_for(path: str) -> str:
    while not Path(path).exists():
        time.sleep(0.01)
    return path


@af.task
def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@af.task
def leave() -> None:
    os._exit(7)


@af.task
def flip(point: Point) -> Point:
    return Point(point.y, point.x)


@af.task
def length(text: Any) -> int:
    return len(text)


@af.task
def repeat(text: str, times: int) -> str:
    return text * times


@af.task
def total(outcomes: list[Outcome], scale: int = 1) -> dict[str, int]:
    return {
        "sum": scale * sum(outcome.value for outcome in outcomes if outcome.ok),
        "failed": sum(not outcome.ok for outcome in outcomes),
    }


@af.task
def say(text: str, ctx: af.Context) -> af.File:
    print("printed", text)  # noqa: T201 - what it prints is its point
    ctx.log.info("logged %s", text)
    return ctx.save("said.txt", text.encode())


def undecorated(x: int) -> int:
    return -x
