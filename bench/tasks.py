"""The tasks that are measured."""

from __future__ import annotations

import antfarm as af


def identity(x: int) -> int:
    """Nothing: all that is measured is what runs it."""
    return x


noop = af.task(name="bench.noop")(identity)
