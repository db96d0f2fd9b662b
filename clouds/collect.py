"""From what Storage has of the days to series and page.

Responsible for reading each day's result, thumbnail and part of the mean map, and for nothing that they mean. The idea: a blob that is lost or
damaged costs its own day, never the report.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antfarm.errors import BlobNotFound, DataLoss
from antfarm.storage import AsyncStorage
from clouds import fold, report, series
from clouds.errors import CloudsError
from clouds.pipeline import Found
from clouds.tasks import Request

READS_MAX = 16
"""Days that are read at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Day:
    """What the report needs of one day."""

    result: dict[str, Any]
    thumbnail: bytes
    fold: fold.Fold


async def write_report(
    storage: AsyncStorage,
    request: Request,
    found: Found,
    out: Path,
    *,
    title: str,
    provenance: Mapping[str, object],
) -> series.Series:
    """Write series.csv, series.json and report.html over all days of the request into `out`; returns the series.

    Raises CloudsError when `out` cannot be written.
    """
    results, thumbnails, failed = {}, {}, dict(found.failed)
    whole = fold.empty(fold.grid_shape(*request.picture_size))
    ordered = sorted(found.keys)
    for start in range(0, len(ordered), READS_MAX):
        some = ordered[start : start + READS_MAX]
        days = await asyncio.gather(*(_read(storage, found.keys[day], whole.shape) for day in some))
        for day, read in zip(some, days, strict=True):
            if isinstance(read, str):
                failed[day] = read
            else:
                results[day], thumbnails[day] = read.result, read.thumbnail
                whole = fold.merge(whole, read.fold)
    made = series.build_series(request.days, results, failed)
    await asyncio.to_thread(
        report.write_report,
        out,
        made,
        whole if whole.days else None,
        thumbnails,
        provenance,
        box=request.box,
        title=title,
    )
    return made


async def _read(storage: AsyncStorage, key: str, shape: tuple[int, int]) -> _Day | str:
    """One day, or why it cannot be read."""
    folder = key.removesuffix("result.json")
    try:
        text, thumbnail, part = await storage.get_all([key, f"{folder}thumbnail.jpg", f"{folder}fold.npz"])
        day = _Day(result=json.loads(text), thumbnail=thumbnail, fold=fold.from_bytes(part))
        if day.fold.shape != shape:
            raise CloudsError(f"its map has {day.fold.shape} cells instead of {shape}")
        return day
    except (BlobNotFound, DataLoss, CloudsError, ValueError) as error:
        return f"its analysis in Storage cannot be read ({error}); delete {folder} there and run the same again"
