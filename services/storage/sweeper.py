"""The sweeper: lists outputs of attempts, consults the record, deletes the orphans. What is one, `core.sweep` decides.

The record is that of all orchestrators whose workers write to this Storage. An orchestrator that was started on another journal knows nothing, and
to it everything would be an orphan: so the ids of the journals are kept beside the blobs, and others are not believed.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from antfarm.errors import AntFarmError, WrongState
from services.storage.backends.base import Backend
from services.storage.backends.statedir import write_durably
from services.storage.core import sweep
from services.storage.record import Record

log = logging.getLogger("antfarm.storage")

EVERY_S = 3600.0
"""From the end of one sweep to the next."""
RETRY_S = 60.0
"""The same after one that failed."""
PAGE_KEYS = 500
"""Blobs for which the record is asked at once."""


@dataclass(slots=True)
class Swept:
    """What one sweep did."""

    seen: int = 0
    orphans: int = 0


class Sweeper:
    """Sweeps one Storage."""

    def __init__(
        self, backend: Backend, record: Record, known: Path, ages: sweep.Ages, *, dry_run: bool = False
    ) -> None:
        """Args: known: file that keeps which journals are the record. dry_run: say what would go, delete nothing."""
        self._backend = backend
        self._record = record
        self._known = known
        self._ages = ages
        self._dry_run = dry_run
        self.trouble = ""
        """Why the last sweep did not come to its end; empty when it did."""

    async def run(self) -> None:
        """Sweep now and then, until cancelled."""
        try:
            await self._run()
        finally:
            await self._record.close()

    async def _run(self) -> None:
        while True:
            try:
                swept = await self.sweep()
            except (AntFarmError, OSError) as error:
                self.trouble = str(error) or repr(error)
                log.warning("sweep: nothing more is deleted for now: %s", self.trouble)
            except Exception as error:  # a mistake of ours: without this a disk would fill and nobody be told why
                self.trouble = repr(error)
                log.exception("sweep: nothing more is deleted for now")
            else:
                self.trouble = ""
                log.info("sweep: %d outputs, %d orphans%s", swept.seen, swept.orphans, self._outcome())
            await asyncio.sleep(RETRY_S if self.trouble else EVERY_S)

    def _outcome(self) -> str:
        return " (dry run: all are still there)" if self._dry_run else " deleted"

    async def sweep(self) -> Swept:
        """Sweep once. Any error ends it; what was deleted until then were orphans."""
        swept, after = Swept(), ""
        await self._check_identities()
        while page := await self._backend.list_ages(sweep.PREFIX, after=after, limit=PAGE_KEYS):
            after = page[-1].key
            swept.seen += len(page)
            old = {blob.key: blob.age_s for blob in page if blob.age_s >= self._ages.least_s}
            tasks = frozenset().union(*map(sweep.concerned, old))
            if not tasks:
                continue
            standings = await self._record.standings(tasks)
            # What answered was the record, not another one that took its address meanwhile.
            await self._check_identities()
            for key, age_s in old.items():
                if sweep.is_orphan(key, age_s, standings, self._ages):
                    swept.orphans += 1
                    log.log(logging.INFO if self._dry_run else logging.DEBUG, "sweep: orphan %s", key)
                    if not self._dry_run:
                        await self._backend.delete(key)
        return swept

    async def _check_identities(self) -> None:
        found = sorted(await self._record.identities())
        if not self._known.exists():
            write_durably(self._known, json.dumps({"orchestrators": found}) + "\n")
        try:
            known = json.loads(self._known.read_text())["orchestrators"]
        except (ValueError, KeyError, TypeError):
            raise WrongState(
                f"{self._known} is damaged; delete it if --sweep-for names the right orchestrators"
            ) from None
        if known != found:
            raise WrongState(
                f"--sweep-for leads to the journals {', '.join(found)}, and the outputs here are of {', '.join(known)};"
                f" delete {self._known} if that is right"
            )
