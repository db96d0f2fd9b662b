"""The same script with a pool of one spawned process. It knows nothing of the farm, because a spawned process imports its parent's script."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context


def identity(x: int) -> int:
    """Nothing."""
    return x


if __name__ == "__main__":
    began = time.perf_counter()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        result = pool.submit(identity, 1).result()
        print(result, time.perf_counter() - began, flush=True)
