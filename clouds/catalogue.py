"""Where everything of a series lies in Storage, and what of it is there already.

A series is one service, layers, box, size and format; its key is a digest of them, so that runs over overlapping ranges share their days. Per day:

    clouds/<series>/<day>/source.jpg, source.json            the bytes as received, and where they came from
    clouds/<series>/<day>/bands721.jpg, bands721.json        the Bands 7-2-1 picture of the same pass, where the snow screen wants it;
                                                             the JSON alone where the service refused it, with the reason
    clouds/<series>/<day>/<method>/overlay.jpg, mask.png, thumbnail.jpg, fold.npz, result.json

The JSON is written last and makes the day's step done. Blobs never change; a day that was young when it was fetched lies in a folder that says so,
`<day>.provisional-<date>`, and is fetched again on a later date.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta

from clouds.method import METHOD, METHOD_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Names the folders of one series. `extension` is that of its pictures: jpg or png."""

    key: str
    extension: str = "jpg"
    provisional_days: int = 3

    @property
    def prefix(self) -> str:
        """Start of all its keys."""
        return f"clouds/{self.key}/"

    def folder(self, day: date, today: date) -> str:
        """Where a day that is fetched today lies."""
        young = (today - day).days < self.provisional_days
        return f"{self.prefix}{day}{f'.provisional-{today}' if young else ''}/"


def method_folder(*, snow_screen: bool) -> str:
    """Folder of an analysis within its day: another method or version stands beside it and replaces nothing."""
    return f"{METHOD}{METHOD_VERSION}{'-snow' if snow_screen else ''}/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What Storage has of the days asked for."""

    analysed: dict[date, str]
    """Day -> key of its result.json."""
    downloaded: frozenset[date]
    """Days whose pictures are there, but not their analysis."""


def known_days(
    keys: Iterable[str], days: Iterable[date], series: Series, *, today: date, wants_snow: frozenset[date]
) -> Known:
    """Read a listing of the series: a day counts only with all the pictures and the method that are wanted now."""
    have = frozenset(keys)
    analysed: dict[date, str] = {}
    downloaded = set()
    for day in days:
        folder = series.folder(day, today)
        screened = day in wants_snow and f"{folder}bands721.{series.extension}" in have
        answered = day not in wants_snow or f"{folder}bands721.json" in have
        result = f"{folder}{method_folder(snow_screen=screened)}result.json"
        if answered and result in have:
            analysed[day] = result
        elif answered and f"{folder}source.json" in have:
            downloaded.add(day)
    return Known(analysed=analysed, downloaded=frozenset(downloaded))


def day_range(start: date, end: date) -> list[date]:
    """All days from start to end, both included."""
    return [start + timedelta(days=offset) for offset in range((end - start).days + 1)]
