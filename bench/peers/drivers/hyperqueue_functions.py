"""HyperQueue with Python functions: each task starts an interpreter."""

from __future__ import annotations

from collections.abc import Callable

from hyperqueue import Job
from hyperqueue_true import HyperQueue
from peer import noop, serve


class HyperQueueFunctions(HyperQueue):
    """What its Python interface offers."""

    def add(self, job: Job, function: Callable[[int], int], number: int) -> None:
        job.function(function if function.__name__ != "_" else noop, args=(number,))


if __name__ == "__main__":
    serve(HyperQueueFunctions())
