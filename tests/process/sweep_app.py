"""A task whose first attempt leaves an output behind that nobody will ask for."""

from __future__ import annotations

import antfarm as af
from antfarm.context import current_context


@af.task(name="sweep.save", retries=af.Retry(max_attempts=2, backoff="10ms"))
def save(n: int) -> dict[str, object]:
    context = current_context()
    context.save("out", b"output of attempt %d" % context.attempt)
    if context.attempt == 1:
        raise OSError("the first attempt fails after it has saved")
    return {"n": n, "big": "x" * 100_000}
