"""A run: which days are missing, the two jobs that bring them, and the report over all of them.

The days go in small groups. Group i of the analysis waits for group i of the download alone, on the orchestrator's side, so that days flow
through both stages with no barrier over the range. The report is made from what lies in Storage, whichever run brought it there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from antfarm import aio
from antfarm.storage import AsyncStorage
from clouds import coverage, fold, report, series
from clouds.box import Box
from clouds.catalogue import known_days
from clouds.errors import CloudsError
from clouds.tasks import Request

READS_MAX = 16
"""Blobs that are read at the same time for the report."""
Say = Callable[["Progress"], None]


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a run is, in days."""

    asked: int
    known: int = 0
    """Analysed by an earlier run."""
    had: int = 0
    """Downloaded by an earlier run, to be analysed."""
    missing: int = 0
    """To be downloaded."""
    downloaded: int = 0
    analysed: int = 0
    failed: int = 0

    @property
    def ended(self) -> int:
        """Days of this run that need nothing more."""
        return self.analysed + self.failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What came of a run."""

    progress: Progress
    report: Path
    series: series.Series


@dataclass(slots=True)
class _Found:
    """What is known of the days as the run goes on."""

    keys: dict[date, str]
    """Day -> key of its result.json."""
    failed: dict[date, str] = field(default_factory=dict)


async def run(
    farm: aio.Farm,
    request: Request,
    out: Path,
    *,
    group: int,
    say: Say,
    title: str,
    provenance: dict[str, object],
) -> Run:
    """Bring the days of the request that are missing, then write the report over all of them to `out`.

    Args:
        group: days that go through the stages together; small ones flow better, large ones cost less.
        say: told whenever something has changed.
    """
    storage = farm.connection.storage()
    catalogue = request.catalogue
    keys = [blob.key async for blob in storage.list(catalogue.prefix)]
    known = known_days(
        keys,
        request.days,
        catalogue,
        today=datetime.now(UTC).date(),
        wants_snow=frozenset(request.snow_days),
    )
    wanted = [day for day in request.days if day not in known.analysed]
    progress = Progress(
        asked=len(request.days),
        known=len(known.analysed),
        had=len(known.downloaded),
        missing=len(wanted) - len(known.downloaded),
    )
    say(progress)
    found = _Found(dict(known.analysed))
    if wanted:
        await _bring(farm, request, wanted, group, found, progress, say)
    made = await _report(storage, request, found, out, title, provenance)
    return Run(progress=progress, report=out / "report.html", series=made)


async def _bring(
    farm: aio.Farm, request: Request, wanted: Sequence[date], group: int, found: _Found, progress: Progress, say: Say
) -> None:
    """Run both stages over the wanted days."""
    groups = [tuple(wanted[start : start + group]) for start in range(0, len(wanted), group)]
    snow = frozenset(request.snow_days)
    requests = [replace(request, days=days, snow_days=tuple(day for day in days if day in snow)) for days in groups]
    name = f"clouds {wanted[0]} to {wanted[-1]}"
    downloads = await farm.map("clouds.download", requests, name=f"{name}: download")
    analyses = await farm.map("clouds.analyse", downloads, requests, name=f"{name}: analyse")
    try:
        await asyncio.gather(
            _follow(downloads, groups, found, progress, say, analysed=False),
            _follow(analyses, groups, found, progress, say, analysed=True),
        )
    except asyncio.CancelledError:
        await asyncio.shield(farm.cancel(analyses, downloads, cause="the run was interrupted"))
        raise


async def _follow(
    job: aio.Job[Any],
    groups: Sequence[Sequence[date]],
    found: _Found,
    progress: Progress,
    say: Say,
    *,
    analysed: bool,
) -> None:
    async for ended in job.as_completed():
        outcome = await ended.outcome()
        if not analysed:
            progress.downloaded += len(outcome.value["days"]) if outcome.ok else 0
        elif outcome.ok:
            for entry in outcome.value["days"]:
                found.keys[date.fromisoformat(entry["day"])] = entry["key"]
            found.failed.update({date.fromisoformat(day): why for day, why in outcome.value["failed"].items()})
            progress.analysed += len(outcome.value["days"])
            progress.failed += len(outcome.value["failed"])
        else:
            assert outcome.failure is not None
            found.failed.update(dict.fromkeys(groups[outcome.index], outcome.failure.message))
            progress.failed += len(groups[outcome.index])
        say(progress)


async def _report(
    storage: AsyncStorage, request: Request, found: _Found, out: Path, title: str, provenance: dict[str, object]
) -> series.Series:
    """Read what Storage has of the days, and write series and page."""
    places = asyncio.Semaphore(READS_MAX)

    async def read(key: str) -> bytes:
        async with places:
            return await storage.get(key)

    days = sorted(found.keys)
    folders = {day: found.keys[day].removesuffix("result.json") for day in days}
    texts = await asyncio.gather(*(read(found.keys[day]) for day in days))
    results = {day: json.loads(text) for day, text in zip(days, texts, strict=True)}
    pictures = await asyncio.gather(*(read(f"{folders[day]}thumbnail.jpg") for day in days))
    thumbnails = dict(zip(days, pictures, strict=True))
    whole = fold.empty(request.grid)
    for start in range(0, len(days), READS_MAX):
        parts = await asyncio.gather(*(read(f"{folders[day]}fold.npz") for day in days[start : start + READS_MAX]))
        for part in parts:
            whole = fold.merge(whole, fold.from_bytes(part))
    made = series.build_series(request.days, results, found.failed)
    await asyncio.to_thread(
        report.write_report,
        out,
        made,
        whole if days else None,
        thumbnails,
        provenance,
        box=request.box,
        title=title,
    )
    return made


def snow_days(days: Sequence[date], area: object, mode: str) -> tuple[date, ...]:
    """The days that want the snow screen: `auto` asks the latitude and the season, `on` and `off` say it themselves."""
    if mode == "off":
        return ()
    if mode == "on":
        return tuple(days)
    if mode != "auto":
        raise CloudsError(f"--snow-screen {mode}: give auto, on or off")
    if not isinstance(area, Box):
        return tuple(days)  # projected systems are polar ones
    return tuple(day for day in days if coverage.snow_screen_wanted(area, day))
