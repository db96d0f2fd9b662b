"""Whose link it is: what it says about itself, and whom the link tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from antfarm.link.session import Token
from antfarm.v1 import work_queue_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerIdentity:
    """What a worker says about itself in Hello. Fields as in the protocol; an orchestrator that is a worker of its parent sets the last two."""

    worker_id: str
    slots: int
    window: int
    task_types: tuple[str, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)
    host: str = ""
    orchestrator: bool = False
    descendants: tuple[str, ...] = ()


class Handler(Protocol):
    """Whom the link tells. Called on the loop; must not block. An exception ends the link with it."""

    def on_welcome(self, welcome: work_queue_pb2.Welcome) -> None:
        """The link is attached (again). Attempts to give up follow by `on_revoke`."""
        ...

    def on_tasks(self, groups: list[work_queue_pb2.TaskGroup]) -> None:
        """Start these; none of them was given before. Each must be reported in the end."""
        ...

    def on_revoke(self, tokens: list[Token], cause: str) -> None:
        """Stop these and report REVOKED. A report on one that the orchestrator has forgotten goes nowhere."""
        ...

    def on_drain(self, limit_s: float) -> None:
        """Finish what runs within `limit_s`, hand the rest back, say goodbye."""
        ...
