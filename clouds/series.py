"""The series: one row a day, and the statistics over days.

Responsible for which days count and for every number over days. Must not know of pictures, HTML or the farm.

The idea is honesty: each day asked for has a row, with its reason where it has no number; a day of which less than
half was observed is shown but stays out of means; a day without any data has no fraction, never 0; a mean over days
weighs days equally.
"""

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import date, timedelta
from statistics import fmean, median
from typing import Any, Final, Literal

from clouds.coverage import VALID_MIN

Status = Literal["used", "low_coverage", "no_data", "failed", "missing"]

STATUSES: Final[tuple[Status, ...]] = ("used", "low_coverage", "no_data", "failed", "missing")
QUADRANTS: Final = ("nw", "ne", "sw", "se")
WINDOW_DAYS: Final = 7
WINDOW_USED_MIN: Final = 4  # a running mean needs more than half of its week


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One day. A number is None where it is not known; `reason` says why a day has none, or stays out of means."""

    day: date
    status: Status
    reason: str | None = None
    cloud_fraction: float | None = None
    cloud_fraction_area: float | None = None
    cloud_fraction_7day: float | None = None
    thick_fraction: float | None = None
    valid_fraction: float | None = None
    cloud_fraction_nw: float | None = None
    cloud_fraction_ne: float | None = None
    cloud_fraction_sw: float | None = None
    cloud_fraction_se: float | None = None
    snow_screen: bool | None = None
    snow_risk: bool | None = None
    provisional: bool | None = None
    warnings: tuple[str, ...] = ()
    sha256: str | None = None

    @property
    def used(self) -> bool:
        """Whether the day enters means."""
        return self.status == "used"


@dataclass(frozen=True, slots=True, kw_only=True)
class Month:
    """One calendar month over all years: quartiles and mean of its used days; None where it has none."""

    month: int
    days: int
    mean: float | None
    low_quartile: float | None
    median: float | None
    high_quartile: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What the days amount to. Fractions over used days only, None where there are none."""

    days_asked: int
    days_used: int
    days_low_coverage: int
    days_no_data: int
    days_failed: int
    days_missing: int
    mean: float | None
    mean_area: float | None
    median: float | None
    low_quartile: float | None
    high_quartile: float | None
    clearest: date | None
    cloudiest: date | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """All days asked for, in order, and what they amount to."""

    rows: tuple[Row, ...]
    statistics: Statistics
    months: tuple[Month, ...]
    """The calendar months that have a day in the series."""

    def to_csv(self) -> str:
        """Return the rows as CSV with a header; an unknown number is an empty field, warnings are joined by '; '."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(field.name for field in fields(Row))
        for row in self.rows:
            writer.writerow(_cell(getattr(row, field.name)) for field in fields(Row))
        return text.getvalue()

    def to_json(self) -> str:
        """Return statistics, months and rows as one JSON object; an unknown number is null."""
        value = {
            "statistics": asdict(self.statistics),
            "months": [asdict(month) for month in self.months],
            "days": [asdict(row) for row in self.rows],
        }
        return json.dumps(value, indent=1, default=str, ensure_ascii=False, allow_nan=False) + "\n"


def build_series(
    days: Iterable[date], results: Mapping[date, Mapping[str, Any]], failures: Mapping[date, str] | None = None
) -> Series:
    """Make a series of the days asked for from the result.json of each and the reason of each that failed.

    A result stands even where a failure is told as well (an earlier attempt). Days in neither are missing.
    """
    failures = failures or {}
    twins = _twins(results)
    bare = [
        _row(day, results.get(day), failures.get(day), [other for other in twins.get(day, ()) if other != day])
        for day in sorted(set(days))
    ]
    rows = _with_running_mean(bare)
    return Series(rows=rows, statistics=_statistics(rows), months=_months(rows))


def _row(day: date, result: Mapping[str, Any] | None, failure: str | None, twins: Sequence[date]) -> Row:
    if result is None:
        if failure is not None:
            return Row(day=day, status="failed", reason=_one_line(failure) or "no reason given")
        return Row(day=day, status="missing", reason="not in this run")
    warnings = tuple(_one_line(str(warning)) for warning in result.get("warnings") or ())
    warnings += tuple(f"same picture as {twin.isoformat()}" for twin in twins)
    valid, cloud = _number(result.get("valid_fraction")), _number(result.get("cloud_fraction"))
    status: Status = "used"
    reason = None
    if not valid or cloud is None:
        status, reason, cloud = "no_data", "no data in the box", None
    elif valid < VALID_MIN:
        status, reason = "low_coverage", f"only {math.floor(100 * valid)} % observed"
    quarters = list(result.get("by_quadrant") or ()) + [None] * len(QUADRANTS)
    return Row(
        day=day,
        status=status,
        reason=reason,
        cloud_fraction=cloud,
        cloud_fraction_area=_number(result.get("cloud_fraction_area")),
        thick_fraction=_number(result.get("thick_fraction")),
        valid_fraction=valid,
        cloud_fraction_nw=_number(quarters[0]),
        cloud_fraction_ne=_number(quarters[1]),
        cloud_fraction_sw=_number(quarters[2]),
        cloud_fraction_se=_number(quarters[3]),
        snow_screen=result.get("snow_screen"),
        snow_risk=result.get("snow_risk"),
        provisional=result.get("provisional"),
        warnings=warnings,
        sha256=result.get("sha256"),
    )


def _twins(results: Mapping[date, Mapping[str, Any]]) -> dict[date, list[date]]:
    """Find days that got the very same picture: the service answers with the nearest day it has.

    Pictures without any data are all alike and say nothing.
    """
    by_digest: dict[str, list[date]] = defaultdict(list)
    for day, result in sorted(results.items()):
        if result.get("sha256") and result.get("valid_fraction"):
            by_digest[result["sha256"]].append(day)
    return {day: days for days in by_digest.values() if len(days) > 1 for day in days}


def _with_running_mean(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Add to each row the mean over the used days of the week around it, where there are enough of them."""
    used = {row.day: row.cloud_fraction for row in rows if row.used and row.cloud_fraction is not None}
    reach = WINDOW_DAYS // 2
    done = []
    for row in rows:
        week = [row.day + timedelta(days=shift) for shift in range(-reach, reach + 1)]
        values = [used[day] for day in week if day in used]
        done.append(replace(row, cloud_fraction_7day=fmean(values)) if len(values) >= WINDOW_USED_MIN else row)
    return tuple(done)


def _statistics(rows: Sequence[Row]) -> Statistics:
    count = {status: sum(row.status == status for row in rows) for status in STATUSES}
    used = [row for row in rows if row.used]
    values = [row.cloud_fraction for row in used if row.cloud_fraction is not None]
    areas = [row.cloud_fraction_area for row in used if row.cloud_fraction_area is not None]
    ranked = sorted(used, key=lambda row: (row.cloud_fraction, row.day))
    low, middle, high = quartiles(values)
    return Statistics(
        days_asked=len(rows),
        days_used=count["used"],
        days_low_coverage=count["low_coverage"],
        days_no_data=count["no_data"],
        days_failed=count["failed"],
        days_missing=count["missing"],
        mean=fmean(values) if values else None,
        mean_area=fmean(areas) if areas else None,
        median=middle,
        low_quartile=low,
        high_quartile=high,
        clearest=ranked[0].day if ranked else None,
        cloudiest=ranked[-1].day if ranked else None,
    )


def _months(rows: Sequence[Row]) -> tuple[Month, ...]:
    by_month: dict[int, list[float]] = {row.day.month: [] for row in rows}
    for row in rows:
        if row.used and row.cloud_fraction is not None:
            by_month[row.day.month].append(row.cloud_fraction)
    months = []
    for month, values in sorted(by_month.items()):
        low, middle, high = quartiles(values)
        months.append(
            Month(
                month=month,
                days=len(values),
                mean=fmean(values) if values else None,
                low_quartile=low,
                median=middle,
                high_quartile=high,
            )
        )
    return tuple(months)


def quartiles(values: Sequence[float]) -> tuple[float, float, float] | tuple[None, None, None]:
    """Return the quartiles, interpolated between the two nearest values as spreadsheets do; None of no values."""
    if not values:
        return None, None, None
    ranked = sorted(values)

    def at(share: float) -> float:
        place = share * (len(ranked) - 1)
        below = math.floor(place)
        above = min(below + 1, len(ranked) - 1)
        return ranked[below] + (ranked[above] - ranked[below]) * (place - below)

    return at(0.25), median(ranked), at(0.75)


def _number(value: object) -> float | None:
    """Accept a finite number; a result may have come through other hands."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _cell(value: object) -> object:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:.6f}".rstrip("0").rstrip(".")
        case tuple():
            return "; ".join(str(part) for part in value)
        case _:
            return value


def _one_line(text: str) -> str:
    return " ".join(text.split())[:600]
