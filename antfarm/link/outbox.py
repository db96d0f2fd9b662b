"""What a link needs of the place where unacked reports outlive the process.

The content is opaque here: serialised `Reports` messages. Nothing is ever taken out singly: repeating a report is always safe, so an
outbox only grows until it is replaced by what is still unacked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol


class Outbox(Protocol):
    """Keeps serialised `Reports` messages. A failure to write is the outbox's to log; the reports stay in memory all the same."""

    @property
    def size_bytes(self) -> int:
        """What it holds now."""
        ...

    def load(self) -> Iterable[bytes]:
        """What an earlier process left, in order. A torn end is left out."""
        ...

    def belong(self, queue: str) -> None:
        """What is appended from now on is of the queue of that orchestrator. The same one is said at every Welcome."""
        ...

    def append(self, message: bytes) -> None:
        """Keep one more message; written, though not synced, when this returns."""
        ...

    def replace(self, messages: Sequence[bytes]) -> None:
        """Keep exactly these messages."""
        ...


class MemoryOutbox:
    """Keeps nothing: reports live as long as the process. For orchestrators, whose journal is their outbox, and for tests."""

    size_bytes = 0

    def load(self) -> Iterable[bytes]:
        """Nothing."""
        return ()

    def belong(self, queue: str) -> None:
        """Nothing is kept of it."""

    def append(self, message: bytes) -> None:
        """Forget it."""

    def replace(self, messages: Sequence[bytes]) -> None:
        """Forget them."""
