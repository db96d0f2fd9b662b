"""What the farm runs for Clouds: two stages, each a plan, a task a day, and a summary.

`clouds.download` turns a group of days into one `clouds.fetch` a day; `clouds.analyse` turns what that group has downloaded into one
`clouds.measure` a day and folds the group's mean map. Every task first looks whether its work is in Storage already, so that repeating one costs a
look. Nothing is stored that did not pass every check.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any

import antfarm as af
from antfarm.errors import BlobNotFound, Conflict
from antfarm.storage import AsyncStorage, Storage
from clouds import analyse, fold, worldview
from clouds.answer import Refused, ServiceDown, Throttled
from clouds.box import Box
from clouds.catalogue import Series, method_folder
from clouds.errors import CloudsError

FETCH_RETRIES = af.Retry(max_attempts=6, on=(ServiceDown, OSError), backoff=1.0, backoff_max=60.0)
"""The service's weather is waited out; what it refuses, and what is wrong with the question, is not asked again."""
RETRY_AFTER_MAX_S = 120.0
"""A longer Retry-After is waited for between attempts instead of within one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a run asks of both stages for a group of days."""

    service: worldview.Service
    area: Box | worldview.Extent
    series: str
    days: tuple[date, ...]
    snow_days: tuple[date, ...] = ()
    """Days that want the Bands 7-2-1 picture beside the true-colour one."""
    requests_max: int = 3
    """Requests to the service at the same time, for the whole farm."""
    grid: tuple[int, int] = (0, 0)
    """Rows and columns of the mean map."""

    @property
    def catalogue(self) -> Series:
        """Where its days lie."""
        extension = self.service.format.removeprefix("image/").replace("jpeg", "jpg")
        return Series(key=self.series, extension=extension, provisional_days=self.service.provisional_days)

    @property
    def box(self) -> Box | None:
        """The box in degrees; None in a projected system, which has no rows of one latitude."""
        return self.area if isinstance(self.area, Box) else None


# ---- stage 1: download ----------------------------------------------------------------------------------------------


def plan_download(request: Request) -> af.Expansion:
    """One fetch a day. The limit on requests is farm-wide: all downloads from one service go by its name."""
    limit = af.Limit(f"clouds:{request.service.name or request.service.url}"[:120], request.requests_max)
    return af.Expansion(
        task=fetch.options(limit=limit),
        calls=[(day, day in request.snow_days) for day in request.days],
        common={"request": replace(request, days=(), snow_days=())},
    )


def summarise_download(outcomes: Sequence[af.Outcome], request: Request) -> dict[str, Any]:
    """What is in Storage now, and why the rest is not."""
    return _by_day(outcomes, request.days, "downloaded")


@af.task(name="clouds.fetch", version="1", retries=FETCH_RETRIES, timeouts=af.Timeouts(run="10m"), idempotent=True)
async def fetch(day: date, snow: bool, ctx: af.Context, *, request: Request) -> dict[str, Any]:
    """Download one day into Storage, with the Bands 7-2-1 picture where wanted. Returns where it lies and what came.

    A day whose 7-2-1 picture is refused goes on without it, and says so.
    """
    folder = request.catalogue.folder(day, datetime.now(UTC).date())
    source = await _obtain(ctx, request, request.service, day, folder, "source")
    answer: dict[str, Any] = {"day": day.isoformat(), "folder": folder, "snow": False, **source}
    if snow:
        try:
            await _obtain(ctx, request, request.service.bands721(), day, folder, "bands721")
            answer["snow"] = True
        except (Refused, worldview.DayUnavailable) as error:
            ctx.log.warning("no Bands 7-2-1 picture of %s: %s", day, error)
            answer["note"] = f"no snow screen: {error}"
    return answer


async def _obtain(
    ctx: af.Context, request: Request, service: worldview.Service, day: date, folder: str, name: str
) -> dict[str, Any]:
    """One picture in Storage and the facts about it: those of an earlier attempt when it came so far."""
    storage: AsyncStorage = ctx.storage
    try:
        known: dict[str, Any] = json.loads(await storage.get(f"{folder}{name}.json"))
        return {**known, "cached": True}
    except BlobNotFound:
        pass
    ctx.progress(0.1, f"fetching {name} of {day}")
    snapshot = await _ask(service, request, day)
    key = f"{folder}{name}.{request.catalogue.extension}"
    facts = {
        "key": key,
        "sha256": snapshot.sha256,
        "bytes": len(snapshot.body),
        "width": snapshot.width,
        "height": snapshot.height,
        "url": snapshot.url,
        "fetched_at": snapshot.fetched_at.isoformat(timespec="seconds"),
        "provisional": snapshot.provisional,
        "warnings": list(snapshot.warnings),
        "fetch_s": round(snapshot.seconds, 3),
    }
    try:
        await storage.put(key, snapshot.body)
        await storage.put(f"{folder}{name}.json", json.dumps(facts).encode())
    except Conflict:
        return await _adopt(ctx, folder, name, key, facts)
    return {**facts, "cached": False}


async def _adopt(ctx: af.Context, folder: str, name: str, key: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Another attempt stored a picture first, which passed the same checks: it stands, and the facts are made to fit it."""
    storage: AsyncStorage = ctx.storage
    ref = await storage.stat(key)
    facts = {**facts, "sha256": ref.sha256.hex(), "bytes": ref.size_bytes}
    try:
        await storage.put(f"{folder}{name}.json", json.dumps(facts).encode())
    except Conflict:
        facts = json.loads(await storage.get(f"{folder}{name}.json"))
    return {**facts, "cached": True}


async def _ask(service: worldview.Service, request: Request, day: date) -> worldview.Snapshot:
    """One attempt. A pause that the service asks for is kept here, because it must hold back the whole farm's place as well."""
    async with worldview.open_session(service) as session:
        try:
            return await worldview.fetch(session, service, request.area, day)
        except Throttled as error:
            await asyncio.sleep(min(error.retry_after_s or 0.0, RETRY_AFTER_MAX_S))
            raise


# ---- stage 2: analyse -----------------------------------------------------------------------------------------------


def plan_analyse(downloaded: dict[str, Any], request: Request) -> af.Expansion:
    """One measurement for each day that the download stage has put into Storage."""
    return af.Expansion(
        task=measure,
        calls=[(facts,) for facts in downloaded["days"]],
        common={"request": replace(request, days=(), snow_days=())},
    )


def summarise_analyse(
    outcomes: Sequence[af.Outcome], downloaded: dict[str, Any], request: Request, ctx: af.Context
) -> dict[str, Any]:
    """The days' results in short, what failed in either stage, and the group's part of the mean map."""
    days = tuple(date.fromisoformat(facts["day"]) for facts in downloaded["days"])
    summary = _by_day(outcomes, days, "analysed")
    summary["failed"] = {**downloaded["failed"], **summary["failed"]}
    storage: Storage = ctx.storage
    part = fold.empty(request.grid)
    for entry in summary["days"]:
        part = fold.merge(part, fold.from_bytes(storage.get(entry["folder"] + "fold.npz")))
    summary["fold"] = ctx.save("fold.npz", fold.to_bytes(part)) if summary["days"] else None
    return summary


@af.task(name="clouds.measure", version="1", timeouts=af.Timeouts(run="5m"), idempotent=True)
def measure(source: dict[str, Any], ctx: af.Context, *, request: Request) -> dict[str, Any]:
    """Analyse one downloaded day: overlay, mask, thumbnail, its part of the map, and at last result.json, into Storage."""
    storage: Storage = ctx.storage
    day = date.fromisoformat(source["day"])
    folder = source["folder"] + method_folder(snow_screen=source["snow"])
    entry = {"day": source["day"], "folder": folder, "key": f"{folder}result.json", "cached": True}
    try:
        storage.stat(entry["key"])
        return entry
    except BlobNotFound:
        pass
    picture = storage.get(source["key"])
    extension = request.catalogue.extension
    bands721 = storage.get(f"{source['folder']}bands721.{extension}") if source["snow"] else None
    try:
        done = analyse.analyse_picture(picture, day=day, box=request.box, bands721=bands721)
    except CloudsError as error:
        raise af.PermanentError(str(error)) from error
    result = done.result | {
        "box": [float(part) for part in str(request.area).split(",")],
        "crs": request.service.crs,
        "layers": list(request.service.layers),
        "service": request.service.url,
        "fetched_at": source["fetched_at"],
        "provisional": source["provisional"],
        "warnings": [*source["warnings"], *([source["note"]] if "note" in source else []), *done.result["warnings"]],
        "seconds": done.result["seconds"] | {"fetch": source["fetch_s"]},
    }
    day_fold = fold.fold_day(done.rgb, done.cover.mask, day, request.grid)
    for name, content in (
        ("overlay.jpg", done.overlay_jpg),
        ("mask.png", done.mask_png),
        ("thumbnail.jpg", done.thumbnail_jpg),
        ("fold.npz", fold.to_bytes(day_fold)),
    ):
        storage.put(folder + name, content)
    try:
        storage.put(entry["key"], json.dumps(result).encode())
    except Conflict:
        return entry  # another attempt has told the same with other times
    return {**entry, "cached": False}


# ---- both -----------------------------------------------------------------------------------------------------------


def _by_day(outcomes: Sequence[af.Outcome], days: Sequence[date], done: str) -> dict[str, Any]:
    """{"days": [...], "failed": {day: reason}, "<done>": count of those that were not there before}."""
    found: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for day, outcome in zip(days, outcomes, strict=True):
        if outcome.ok:
            found.append(outcome.value)
        else:
            assert outcome.failure is not None
            failed[day.isoformat()] = outcome.failure.message or outcome.failure.kind
    return {"days": found, "failed": failed, done: sum(not entry["cached"] for entry in found)}


download_stage = af.stage(name="clouds.download", plan=plan_download, summarise=summarise_download, version="1")
analyse_stage = af.stage(name="clouds.analyse", plan=plan_analyse, summarise=summarise_analyse, version="1")
