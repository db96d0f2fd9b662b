"""What the farm runs for Clouds: two stages, each a plan, a task a day, and a summary.

`clouds.download` turns a group of days into one `clouds.fetch` a day; `clouds.analyse` turns what that group has downloaded into one
`clouds.measure` a day. Every task first looks whether its work is in Storage already, so that repeating one costs a look. Nothing is stored that did
not pass every check.

Every worker of every farm where Clouds is installed imports this module, so whatever loads arrays, pictures or HTTP is imported by the tasks that
need it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import antfarm as af
from antfarm.errors import BlobNotFound, Conflict, DataLoss, Weather
from clouds.box import Box
from clouds.catalogue import Series, method_folder
from clouds.errors import CloudsError, DayUnavailable, Refused, ServiceDown
from clouds.service import Extent, Service

if TYPE_CHECKING:
    from antfarm.storage import AsyncStorage, Storage
    from clouds.worldview import Snapshot

FETCH_RETRIES = af.Retry(max_attempts=6, on=(ServiceDown, OSError, Weather, DataLoss), backoff=1.0, backoff_max=60.0)
"""The weather of the service, and of Storage, is waited out; what the service refuses, and what is wrong with the question, is not asked again."""
PAUSE_MAX_S = 300.0
"""The longest pause the service may ask for and get; a day that would wait longer is left to a later run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a run asks of both stages for a group of days."""

    service: Service
    area: Box | Extent
    series: str
    days: tuple[date, ...]
    snow_days: tuple[date, ...] = ()
    """Days that want the Bands 7-2-1 picture beside the true-colour one."""
    requests_max: int = 3
    """Requests to the service at the same time, for the whole farm."""

    @property
    def catalogue(self) -> Series:
        """Where its days lie."""
        extension = self.service.format.removeprefix("image/").replace("jpeg", "jpg")
        return Series(key=self.series, extension=extension, provisional_days=self.service.provisional_days)

    @property
    def box(self) -> Box | None:
        """The box in degrees; None in a projected system, which has no rows of one latitude."""
        return self.area if isinstance(self.area, Box) else None

    @property
    def picture_size(self) -> tuple[int, int]:
        """The (width, height) in which pictures are expected, which the mean map is laid out for."""
        return self.service.sizes(self.area)[-1]


# ---- stage 1: download ----------------------------------------------------------------------------------------------


def plan_download(request: Request) -> af.Expansion:
    """One fetch a day. The limit on requests is farm-wide: all downloads from one service go by its name."""
    service = hashlib.sha256((request.service.name or request.service.url).encode()).hexdigest()[:16]
    limit = af.Limit(f"clouds:{service}", request.requests_max)
    return af.Expansion(
        task=fetch.options(limit=limit),
        calls=[(day, day in request.snow_days) for day in request.days],
        common={"request": replace(request, days=(), snow_days=())},
    )


def summarise_download(outcomes: Sequence[af.Outcome], request: Request) -> dict[str, Any]:
    """What is in Storage now, and why the rest is not."""
    return _by_day(outcomes, request.days, "downloaded")


@af.task(name="clouds.fetch", version="1", retries=FETCH_RETRIES, timeouts=af.Timeouts(run="20m"), idempotent=True)
async def fetch(day: date, snow: bool, ctx: af.Context, *, request: Request) -> dict[str, Any]:
    """Download one day into Storage, with the Bands 7-2-1 picture where wanted. Returns where it lies and what came.

    A day whose 7-2-1 picture is refused goes on without it, and says so.
    """
    folder = request.catalogue.folder(day, datetime.now(UTC).date())
    source = await _obtain(ctx, request, request.service, day, folder, "source")
    answer: dict[str, Any] = {"day": day.isoformat(), "folder": folder, "snow": False, **source}
    if snow:
        reason = await _obtain_bands721(ctx, request, day, folder)
        answer["snow"] = not reason
        if reason:
            answer["note"] = f"no snow screen: {reason}"
    return answer


async def _obtain_bands721(ctx: af.Context, request: Request, day: date, folder: str) -> str:
    """The 7-2-1 picture in Storage, or why the service has none, which then stands for the day as the picture would."""
    try:
        facts = await _obtain(ctx, request, request.service.bands721(), day, folder, "bands721")
    except (Refused, DayUnavailable) as error:
        ctx.log.warning("no Bands 7-2-1 picture of %s: %s", day, error)
        facts = {"refused": str(error)}
        try:
            await ctx.storage.put(f"{folder}bands721.json", json.dumps(facts).encode())
        except Conflict:
            facts = json.loads(await ctx.storage.get(f"{folder}bands721.json"))
    return str(facts.get("refused", ""))


async def _obtain(
    ctx: af.Context, request: Request, service: Service, day: date, folder: str, name: str
) -> dict[str, Any]:
    """One picture in Storage and the facts about it: those of an earlier attempt when it came so far."""
    storage: AsyncStorage = ctx.storage
    try:
        known: dict[str, Any] = json.loads(await storage.get(f"{folder}{name}.json"))
        return {**known, "cached": True}
    except BlobNotFound:
        pass
    ctx.progress(0.1, f"fetching {name} of {day}")
    snapshot = await _ask(ctx, service, request.area, day)
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


async def _ask(ctx: af.Context, service: Service, area: Box | Extent, day: date) -> Snapshot:
    """One attempt. A pause that the service asks for is kept here, because it must hold back one of the farm's places as well."""
    import asyncio

    from clouds import worldview

    async with worldview.open_session(service) as session:
        try:
            return await worldview.fetch(session, service, area, day)
        except ServiceDown as error:
            pause_s = error.retry_after_s or 0.0
            if pause_s > PAUSE_MAX_S:
                raise af.PermanentError(f"{error}; that is too long to wait for, run the same again later") from error
            if pause_s:
                ctx.progress(0.1, f"waiting {pause_s:.0f} s as the service asks")
                await asyncio.sleep(pause_s)
            raise


# ---- stage 2: analyse -----------------------------------------------------------------------------------------------


def plan_analyse(downloaded: dict[str, Any], request: Request) -> af.Expansion:
    """One measurement for each day that the download stage has put into Storage."""
    return af.Expansion(
        task=measure,
        calls=[(facts,) for facts in downloaded["days"]],
        common={"request": replace(request, days=(), snow_days=())},
    )


def summarise_analyse(outcomes: Sequence[af.Outcome], downloaded: dict[str, Any], request: Request) -> dict[str, Any]:
    """The days' results in short, and what failed in either stage."""
    days = tuple(date.fromisoformat(facts["day"]) for facts in downloaded["days"])
    summary = _by_day(outcomes, days, "analysed")
    summary["failed"] = {**downloaded["failed"], **summary["failed"]}
    return summary


@af.task(name="clouds.measure", version="1", timeouts=af.Timeouts(run="5m"), idempotent=True)
def measure(source: dict[str, Any], ctx: af.Context, *, request: Request) -> dict[str, Any]:
    """Analyse one downloaded day: overlay, mask, thumbnail, its part of the map, and at last result.json, into Storage."""
    from clouds import analyse, fold

    storage: Storage = ctx.storage
    day = date.fromisoformat(source["day"])
    folder = source["folder"] + method_folder(snow_screen=source["snow"])
    entry = {"day": source["day"], "folder": folder, "key": f"{folder}result.json", "cached": True}
    try:
        storage.stat(entry["key"])
        return entry
    except BlobNotFound:
        pass
    keys = [source["key"]]
    if source["snow"]:
        keys.append(f"{source['folder']}bands721.{request.catalogue.extension}")
    picture, *screen = storage.get_all(keys)
    try:
        done = analyse.analyse_picture(picture, day=day, box=request.box, bands721=screen[0] if screen else None)
    except CloudsError as error:
        raise af.PermanentError(str(error)) from error
    result = done.result | {
        "box": list(request.area.as_tuple()),
        "crs": request.service.crs,
        "layers": list(request.service.layers),
        "service": request.service.url,
        "fetched_at": source["fetched_at"],
        "provisional": source["provisional"],
        "warnings": [*source["warnings"], *([source["note"]] if "note" in source else []), *done.result["warnings"]],
        "seconds": done.result["seconds"] | {"fetch": source["fetch_s"]},
    }
    day_fold = fold.fold_day(done.rgb, done.cover.mask, day, fold.grid_shape(*request.picture_size))
    blobs = {
        f"{folder}overlay.jpg": done.overlay_jpg,
        f"{folder}mask.png": done.mask_png,
        f"{folder}thumbnail.jpg": done.thumbnail_jpg,
        f"{folder}fold.npz": fold.to_bytes(day_fold),
        entry["key"]: analyse.result_json(result),  # the last, which stands for all
    }
    try:
        storage.put_all(blobs)
        entry["cached"] = False
    except Conflict:  # another attempt was here, and has said the same in other bytes: what it left out is added
        for key, content in blobs.items():
            entry["cached"] = not _put_first(storage, key, content)
    return entry


def _put_first(storage: Storage, key: str, content: bytes) -> bool:
    """Store what the first attempt to come so far may say for all; False when another has said it."""
    try:
        storage.put(key, content)
    except Conflict:
        return False
    return True


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
