"""What a running task can ask of its surroundings.

The worker's child process makes one `Context` per attempt and hands over what only it can do as plain callables, so that this module
knows nothing of pipes, sessions or sockets. Functions get it as the parameter annotated `Context` (or named `ctx`), or by
`current_context()`.
"""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from antfarm.errors import InvalidArgument, WrongState
from antfarm.form import File
from antfarm.model import BlobRef

PROGRESS_TEXT_BYTES_MAX = 256


class Context:
    """The attempt that runs: who it is, and what it may do. One per attempt; valid until the function returns.

    `job_id`, `index` and `attempt` name the attempt; `scratch` is an empty directory on this node's disk (Transient Storage),
    removed afterwards; `log` is a logger whose lines people see with the task.
    """

    def __init__(
        self,
        *,
        job_id: str,
        index: int,
        epoch: int,
        attempt: int,
        scratch: Callable[[], Path],
        log: logging.Logger,
        report_progress: Callable[[float | None, str], None],
        open_storage: Callable[[], Any],
        stopping: threading.Event,
        is_async: bool = False,
    ) -> None:
        """For workers.

        Args:
            scratch: makes the directory on first use and returns it.
            report_progress: ships a fraction (None: unknown) and a text; must not block.
            open_storage: returns `antfarm.storage.Storage` (plain functions) or `AsyncStorage` (async ones); called once, on first use.
            stopping: set when the attempt should stop.
            is_async: which of the two storages it is.
        """
        self.job_id = job_id
        self.index = index
        self.epoch = epoch
        self.attempt = attempt
        self.log = log
        self._make_scratch = scratch
        self._scratch: Path | None = None
        self._report_progress = report_progress
        self._open_storage = open_storage
        self._storage: Any = None
        self._stopping = stopping
        self._is_async = is_async
        self._outputs: list[BlobRef] = []

    @property
    def scratch(self) -> Path:
        """A directory of this attempt alone, on this node; gone when the attempt ends."""
        if self._scratch is None:
            self._scratch = self._make_scratch()
        return self._scratch

    @property
    def storage(self) -> Any:
        """Storage of the farm: `antfarm.storage.Storage` in plain functions, `AsyncStorage` in async ones. Connects on first use."""
        if self._storage is None:
            self._storage = self._open_storage()
        return self._storage

    @property
    def cancelled(self) -> bool:
        """True when the attempt should stop soon: its result is not wanted any more, or the worker drains. Long loops look at it."""
        return self._stopping.is_set()

    @property
    def outputs(self) -> tuple[BlobRef, ...]:
        """What `save` has put into Storage: the manifest that is recorded with the result."""
        return tuple(self._outputs)

    def progress(self, fraction: float | None = None, text: str = "") -> None:
        """Say how far the task is, from 0 to 1, and what it does. Cheap; also resets the progress timeout."""
        if fraction is not None:
            fraction = min(max(float(fraction), 0.0), 1.0)
        if len(text) > PROGRESS_TEXT_BYTES_MAX // 4:
            text = text.encode("utf-8", "replace")[:PROGRESS_TEXT_BYTES_MAX].decode("utf-8", "ignore")
        self._report_progress(fraction, text)

    def output_key(self, name: str) -> str:
        """Where `save(name, ...)` puts it; unique to this attempt, so that attempts cannot disturb each other."""
        return f"tasks/{self.job_id}/{self.index}/{self.epoch}-{self.attempt}/{name}"

    def save(self, name: str, data: bytes | Path) -> Any:
        """Put an output into Storage and return its `File`. In async functions the answer must be awaited.

        It becomes visible to others with the task's result; a failed attempt's outputs are swept later.

        Args:
            name: segments of letters, digits, ".", "_" and "-" divided by "/".
            data: the content, or a path to read it from (streamed, any size).
        """
        if isinstance(data, str):
            raise InvalidArgument("ctx.save takes bytes or a pathlib.Path; encode text, or wrap a path in Path(...)")
        put = self.storage.put(self.output_key(name), data)
        return self._note_later(name, put) if self._is_async else self._note(name, put)

    async def _note_later(self, name: str, put: Awaitable[BlobRef]) -> File:
        return self._note(name, await put)

    def _note(self, name: str, ref: BlobRef) -> File:
        self._outputs.append(BlobRef(key=ref.key, size_bytes=ref.size_bytes, sha256=ref.sha256))
        return File(key=ref.key, size_bytes=ref.size_bytes, sha256=ref.sha256, name=name)


_current: contextvars.ContextVar[Context] = contextvars.ContextVar("antfarm_context")


def current_context() -> Context:
    """The context of the attempt that this code runs in. WrongState outside of one."""
    try:
        return _current.get()
    except LookupError:
        raise WrongState("there is no current task: this code does not run inside a worker") from None


def in_task() -> bool:
    """True where `current_context` finds one."""
    return _current.get(None) is not None


@contextmanager
def use_context(context: Context) -> Iterator[None]:
    """Make it the current one; for workers, around the call of the function."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)
