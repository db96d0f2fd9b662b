"""A run: which days are missing, the two jobs that bring them, and the report over all of them.

The days go in small groups. Group i of the analysis waits for group i of the download alone, on the orchestrator's side, so that days flow
through both stages with no barrier over the range. What is there is what lies in Storage, whichever run brought it: the days that are missing are
those that Storage lacks, and the report is made from what Storage has in the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any

from antfarm import Outcome, aio
from antfarm.storage import AsyncStorage
from clouds.catalogue import Known, known_days
from clouds.tasks import Request

HOPELESS_DAYS = 20
"""So many days without a single picture, and none from before: the service is not asked for the rest."""
CANCEL_S = 10.0
"""How long an interrupted run waits for the farm to hear of it; the next run cancels what is left."""
_OWNER = "clouds.owner"

Say = Callable[["Progress"], None]


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a run is, in days."""

    asked: int
    known: int = 0
    """Analysed by an earlier run."""
    had: int = 0
    """Downloaded by an earlier run, to be analysed."""
    downloaded: int = 0
    """By this run or before, of those to be analysed."""
    analysed: int = 0
    failed: int = 0

    @property
    def wanted(self) -> int:
        """Days that this run has to bring."""
        return self.asked - self.known

    @property
    def ended(self) -> int:
        """Days of this run that need nothing more."""
        return self.analysed + self.failed


@dataclass(slots=True, kw_only=True)
class Found:
    """What is known of the days of a request as a run goes on."""

    keys: dict[date, str]
    """Day -> key of its result.json."""
    failed: dict[date, str]
    """Day -> why it has none."""
    wanted: tuple[date, ...]
    """Days that had no result when the run began."""
    progress: Progress


async def survey(storage: AsyncStorage, request: Request) -> Found:
    """Look what Storage has of the days asked for."""
    known = await _known(storage, request)
    wanted = tuple(day for day in request.days if day not in known.analysed)
    progress = Progress(asked=len(request.days), known=len(known.analysed), had=len(known.downloaded))
    return Found(keys=dict(known.analysed), failed={}, wanted=wanted, progress=progress)


async def _known(storage: AsyncStorage, request: Request) -> Known:
    catalogue = request.catalogue
    keys = [blob.key async for blob in storage.list(catalogue.prefix)]
    today = datetime.now(UTC).date()
    return known_days(keys, request.days, catalogue, today=today, wants_snow=frozenset(request.snow_days))


async def bring(farm: aio.Farm, request: Request, found: Found, *, group: int, owner: str, say: Say) -> None:
    """Run both stages over the wanted days; `found` then holds a result or a reason for each.

    Args:
        group: days that go through the stages together; small ones flow better, large ones cost less.
        owner: who can run only once at a time. Jobs that an earlier run of the same owner left unfinished are cancelled.
        say: told whenever something has changed.
    """
    await _cancel_leftovers(farm, owner)
    groups = [found.wanted[start : start + group] for start in range(0, len(found.wanted), group)]
    snow = frozenset(request.snow_days)
    requests = [replace(request, days=days, snow_days=tuple(day for day in days if day in snow)) for days in groups]
    name, labels = f"clouds {found.wanted[0]} to {found.wanted[-1]}", {_OWNER: owner}
    jobs: list[aio.Job[Any]] = []
    try:
        jobs.append(await farm.map("clouds.download", requests, name=f"{name}: download", labels=labels))
        jobs.append(await farm.map("clouds.analyse", jobs[0], requests, name=f"{name}: analyse", labels=labels))
        say(found.progress)
        await asyncio.gather(
            _follow_downloads(farm, jobs, groups, found, say), _follow_analyses(jobs[1], groups, found, say)
        )
    except asyncio.CancelledError:
        # Nobody is left to wait for the days that are still to come.
        async with asyncio.timeout(CANCEL_S):
            await farm.cancel(jobs, cause="the run was interrupted")
        raise
    await look_again(farm.connection.storage(), request, found, say)


async def _cancel_leftovers(farm: aio.Farm, owner: str) -> None:
    async for status in farm.jobs():
        if not status.state.terminal and status.spec.labels.get(_OWNER) == owner:
            await (await farm.job(status.job_id)).cancel("its run has ended and another has begun")


async def _follow_downloads(
    farm: aio.Farm, jobs: Sequence[aio.Job[Any]], groups: Sequence[Sequence[date]], found: Found, say: Say
) -> None:
    progress, failed, hopeless = found.progress, 0, False
    async for ended in jobs[0].as_completed():
        outcome = await ended.outcome()
        if outcome.ok:
            progress.downloaded += len(outcome.value["days"])
            failed += len(outcome.value["failed"])
            found.failed.update(_by_date(outcome.value["failed"]))
            say(progress)
        else:
            failed += len(groups[outcome.index])
            found.failed.update(dict.fromkeys(groups[outcome.index], _reason(outcome)))
        if failed >= HOPELESS_DAYS and not (hopeless or progress.downloaded or progress.known or progress.had):
            hopeless = True
            await farm.cancel(jobs, cause=f"not asked for: each of the first {failed} days failed")


async def _follow_analyses(job: aio.Job[Any], groups: Sequence[Sequence[date]], found: Found, say: Say) -> None:
    progress = found.progress
    async for ended in job.as_completed():
        outcome = await ended.outcome()
        if outcome.ok:
            for entry in outcome.value["days"]:
                found.keys[date.fromisoformat(entry["day"])] = entry["key"]
            progress.analysed += len(outcome.value["days"])
            failed = _by_date(outcome.value["failed"])
        else:
            failed = dict.fromkeys(groups[outcome.index], _reason(outcome))
        for day, reason in failed.items():
            found.failed.setdefault(day, reason)  # what the download said is the cause of what comes after
        progress.failed += len(failed)
        say(progress)


async def look_again(storage: AsyncStorage, request: Request, found: Found, say: Say) -> None:
    """A group may fail whose days were done (its summary was lost, say): what Storage has counts."""
    if not found.failed:
        return
    known = await _known(storage, request)
    for day in [day for day in found.failed if day in known.analysed]:
        found.keys[day] = known.analysed[day]
        del found.failed[day]
        found.progress.analysed += 1
        found.progress.failed -= 1
    say(found.progress)


def _reason(outcome: Outcome) -> str:
    return "no reason given" if outcome.failure is None else outcome.failure.message or outcome.failure.kind


def _by_date(failed: dict[str, str]) -> dict[date, str]:
    return {date.fromisoformat(day): reason for day, reason in failed.items()}
