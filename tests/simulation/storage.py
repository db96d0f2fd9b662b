"""The modelled Storage: blobs that are written once, and the real sweeper's decisions about those that nobody needs."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from antfarm.link.session import Token
from antfarm.model import BlobRef, TaskState
from services.storage.core.sweep import PREFIX, UNKNOWN, Ages, Standing, Task, concerned, is_orphan
from tests.simulation.kernel import SECOND

if TYPE_CHECKING:
    from tests.simulation.world import World

AGES = Ages(ended_s=3.0, unknown_s=90.0)
"""Short, so that a run of half a minute sees blobs go; but no disk may be full for longer than an unknown task is believed in."""
SWEEP_NS = 2 * SECOND


class Storage:
    """Blobs by key. Nothing is ever overwritten."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.blobs: dict[str, tuple[bytes, int]] = {}
        """Key -> (content, when it was written)."""

    def write(self, token: Token, content: bytes) -> BlobRef:
        """An attempt's output, before its success is reported."""
        job_id, index, epoch, attempt = token
        key = f"{PREFIX}{job_id}/{index}/{epoch}-{attempt}/out"
        self.world.checks.blob_written(key, self.blobs.get(key), content)
        self.blobs.setdefault(key, (content, self.world.kernel.now))
        return BlobRef(key=key, sha256=hashlib.sha256(content).digest(), size_bytes=len(content))

    def sweep(self) -> None:
        """One pass: list, ask the records, delete. Where one cannot be asked, nothing goes."""
        kernel = self.world.kernel
        kernel.after(SWEEP_NS, self.sweep)
        if any(not o.process.alive or o.process.stopped for o in self.world.orchestrators.values()):
            return
        for key, (_, written_ns) in list(self.blobs.items()):
            age_s = (kernel.now - written_ns) / SECOND
            if age_s < AGES.least_s:
                continue
            standings = {task: self._standing(task) for task in concerned(key)}
            if is_orphan(key, age_s, standings, AGES):
                self.world.checks.swept(key)
                del self.blobs[key]

    def _standing(self, task: Task) -> Standing:
        """What the orchestrators show of a task: durable facts alone."""
        found = UNKNOWN
        for owner in self.world.orchestrators:
            ledger = self.world.checks.ledger(owner)
            known = ledger.tasks.get(task)
            if known is None:
                continue
            ended = known.state is not None
            keys = frozenset(blob.key for blob in known.outputs) if known.state is TaskState.SUCCEEDED else frozenset()
            found |= Standing(live=not ended, ended=ended, keys=keys)
        return found
