"""How steady the machine is: a fixed loop, timed before each measurement."""

from __future__ import annotations

import time

LOOPS = 1_000_000


def loop_ms() -> float:
    """Milliseconds that a fixed loop takes now."""
    began = time.perf_counter()
    for _ in range(LOOPS):
        pass
    return 1e3 * (time.perf_counter() - began)
