"""What every handle on a job or a task knows, asynchronous or blocking: its name. Arguments that are handles become dependencies by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class JobHandle:
    """A job by its id, and by what its tasks are called where this process knows it."""

    job_id: str
    keys: Sequence[Any] | None


class FutureHandle:
    """One task by its job and its index there."""

    __slots__ = ()

    @property
    def job_id(self) -> str:
        """The job."""
        raise NotImplementedError

    @property
    def index(self) -> int:
        """Its index in the job."""
        raise NotImplementedError
