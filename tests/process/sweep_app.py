"""A task whose first attempt leaves an output behind that nobody will ask for."""

from __future__ import annotations

import time
from typing import Any

import antfarm as af
from antfarm.context import current_context


@af.task(name="sweep.save", retries=af.Retry(max_attempts=2, backoff="10ms"))
def save(n: int) -> dict[str, object]:
    context = current_context()
    context.save("out", b"output of attempt %d" % context.attempt)
    if context.attempt == 1:
        raise OSError("the first attempt fails after it has saved")
    return {"n": n, "big": "x" * 100_000}


def content_of(name: str, number: int) -> bytes:
    """What a task saves."""
    return f"{name}/{number} ".encode() * 500


@af.task(name="sweep.make", retries=af.Retry(max_attempts=5, backoff="10ms"))
def make(number: int, name: str, ctx: af.Context) -> dict[str, object]:
    """Saves an output; every third task fails after that the first time, and every fifth has a result that lies in Storage too."""
    saved = ctx.save("out", content_of(name, number))
    if number % 3 == 0 and ctx.attempt == 1:
        raise OSError("the first attempt fails after it has saved")
    time.sleep(0.02)
    return {"saved": saved, "rest": "x" * (100_000 if number % 5 == 0 else 0)}


@af.task(name="sweep.use")
def use(made: dict[str, Any], name: str, ctx: af.Context) -> bool:
    """Needs what the task before it has saved."""
    time.sleep(0.02)
    return bool(ctx.storage.get(made["saved"]) == content_of(name, ctx.index))
