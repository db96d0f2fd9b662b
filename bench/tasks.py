"""The tasks that are measured."""

from __future__ import annotations

import antfarm as af


@af.task(name="bench.noop")
def noop(x: int) -> int:
    """Nothing: all that is measured is the farm."""
    return x
