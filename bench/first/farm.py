"""A user's script with a farm of its own: `python farm.py DIR`. Prints the seconds from starting the farm to the first result."""

from __future__ import annotations

import sys
import time

import antfarm as af


@af.task
def identity(x: int) -> int:
    """Nothing."""
    return x


if __name__ == "__main__":
    began = time.perf_counter()
    with af.connect(state_dir=sys.argv[1], slots=1) as farm:
        result = farm.submit(identity, 1).result()
        print(result, time.perf_counter() - began, flush=True)
