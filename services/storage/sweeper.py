"""The sweeper: lists outputs of attempts, consults the record, deletes the orphans. What is one, `core.sweep` decides.

The record is that of all orchestrators whose workers write to this Storage, and of all above them. An orchestrator that was started on another
journal knows nothing, and to it everything would be an orphan: so the ids of the journals are kept beside the blobs, and others are not believed.
Orchestrators below soon forget what they did for those above. So what was made for a task from above goes only where it was seen once that the one at
the top is asked; that is kept there too.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from antfarm.errors import AntFarmError, WrongState
from antfarm.files import sync, write_durably
from services.storage.backends.base import Backend
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
    kept: int = 0
    """Would have been orphans, but were made for tasks from above, and the one at the top was never seen among those asked."""


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
        self._top_asked = False
        """The orchestrator at the top was seen among those asked."""
        self.trouble = ""
        """Why the last sweep did not come to its end, or kept what it should not have to; empty otherwise."""

    async def run(self) -> None:
        """Sweep now and then, until cancelled."""
        try:
            await self._run()
        finally:
            await self._record.close()

    async def _run(self) -> None:
        while True:
            pause_s = RETRY_S
            try:
                swept = await self.sweep()
            except (AntFarmError, OSError) as error:
                self.trouble = str(error) or repr(error)
                log.warning("sweep: nothing more is deleted for now: %s", self.trouble)
            except Exception as error:  # a mistake of ours: without this a disk would fill and nobody be told why
                self.trouble = repr(error)
                log.exception("sweep: nothing more is deleted for now")
            else:
                self.trouble = "" if self._top_asked else _told_of(swept.kept)
                log.info("sweep: %d outputs, %d orphans%s", swept.seen, swept.orphans, self._outcome())
                if self.trouble:
                    log.warning("sweep: %s", self.trouble)
                pause_s = EVERY_S
            await asyncio.sleep(pause_s)

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
            found = await self._check_identities()
            if not self._top_asked and sweep.shows_top(standings):
                self._remember(found, top=True)
                self._top_asked = True
            for key, age_s in old.items():
                if sweep.is_orphan(key, age_s, standings, self._ages):
                    await self._take(key, swept)
        return swept

    async def _take(self, key: str, swept: Swept) -> None:
        if not self._top_asked and sweep.is_from_above(key):
            swept.kept += 1
            return
        swept.orphans += 1
        log.log(logging.INFO if self._dry_run else logging.DEBUG, "sweep: orphan %s", key)
        if not self._dry_run:
            await self._backend.delete(key)

    def _remember(self, found: list[str], *, top: bool) -> None:
        write_durably(self._known, json.dumps({"orchestrators": found} | ({"top": True} if top else {})) + "\n")
        sync(self._known.parent)  # what was deleted on its word must not outlive it

    async def _check_identities(self) -> list[str]:
        """The ids of the journals, which are those that were asked before. WrongState otherwise."""
        found = sorted(await self._record.identities())
        if not self._known.exists():
            self._remember(found, top=False)
        try:
            content = json.loads(self._known.read_text())
            known, self._top_asked = content["orchestrators"], "top" in content
        except (ValueError, KeyError, TypeError):
            raise WrongState(
                f"{self._known} is damaged; delete it if --sweep-for names the right orchestrators"
            ) from None
        if known != found:
            raise WrongState(
                f"--sweep-for leads to the journals {', '.join(found)}, and the outputs here are of {', '.join(known)};"
                f" delete {self._known} if that is right"
            )
        return found


def _told_of(kept: int) -> str:
    if not kept:
        return ""
    return (
        f"{kept} outputs of tasks from an orchestrator above are kept, for no orchestrator of --sweep-for knows a job that they were made for;"
        " name all above those whose workers write here"
    )
