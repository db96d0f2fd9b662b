"""The worker's side of the two queues, also used by an orchestrator towards its parent.

`session` decides (pure), `client` talks (asyncio and gRPC), `outbox` says what survives a restart.
"""

from antfarm.link.client import Handler, Link, WorkerIdentity
from antfarm.link.outbox import MemoryOutbox, Outbox

__all__ = ["Handler", "Link", "MemoryOutbox", "Outbox", "WorkerIdentity"]
