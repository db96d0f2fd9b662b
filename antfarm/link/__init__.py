"""The worker's side of the two queues, also used by an orchestrator towards its parent.

`session` decides (pure), `client` talks (asyncio and gRPC), `outbox` says what survives a restart, `window` how much to ask for.
"""

from antfarm.link.client import Link
from antfarm.link.outbox import MemoryOutbox, Outbox
from antfarm.link.owner import Handler, WorkerIdentity
from antfarm.link.reports import OutcomeParts

__all__ = ["Handler", "Link", "MemoryOutbox", "Outbox", "OutcomeParts", "WorkerIdentity"]
