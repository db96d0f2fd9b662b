"""Charts of the report as inline SVG: time series, calendar, climatology, histogram and the frame of a map.

Responsible for geometry alone: numbers in, SVG text out. Must not know of files, pictures or the page around it.

The idea: SVG written by hand takes its colours from the page's style, so it follows light and dark; each chart is
drawn for a width in pixels and the page shows the one that fits, so letters stay readable on a phone. No text here
comes from outside but through `escape`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from html import escape
from itertools import pairwise
from typing import Final

from clouds.box import Box
from clouds.series import Month, Row, Series

MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

# Clear sky is deep blue, full cloud white: (cloud fraction, red, green, blue).
COLOURS: Final = (
    (0.0, 10, 30, 70),
    (0.25, 28, 88, 146),
    (0.5, 82, 150, 200),
    (0.75, 168, 207, 230),
    (1.0, 255, 255, 255),
)

_DAY_STEPS: Final = (1, 2, 7, 14)
_MONTH_STEPS: Final = (1, 2, 3, 6)
_YEAR_STEPS: Final = (1, 2, 5, 10, 20)
_DEGREE_STEPS: Final = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 20, 30, 45, 60)


def colour(fraction: float) -> tuple[int, int, int]:
    """Return the red, green and blue of a cloud fraction of 0..1 on the scale of all maps."""
    fraction = min(1.0, max(0.0, fraction))
    for (low, *dark), (high, *light) in pairwise(COLOURS):
        if fraction <= high:
            share = (fraction - low) / (high - low)
            red, green, blue = (round(a + (b - a) * share) for a, b in zip(dark, light, strict=True))
            return red, green, blue
    raise AssertionError("the scale ends at 1")


def time_series(series: Series, width: int) -> str:
    """Draw a dot a day, hollow where little was observed, the running mean, and marks where a day has no number."""
    rows = series.rows
    height = 300 if width > 500 else 240
    area = _Area(left=40, top=12, right=width - 10, bottom=height - 44)
    step = (area.right - area.left) / max(1, len(rows))
    first = rows[0].day

    def x(day: date) -> float:
        return area.left + ((day - first).days + 0.5) * (area.right - area.left) / ((rows[-1].day - first).days + 1)

    radius = min(4.5, max(1.7, step * 0.38))
    body = [_share_grid(area)]
    for tick, label in date_ticks(first, rows[-1].day, max(3, width // 95)):
        body.append(f'<path class="tick" d="M{x(tick):.1f} {area.bottom}v5"/>')
        body.append(_text(x(tick), area.bottom + 18, label, "middle"))
    if series.statistics.mean is not None:
        level = area.y(series.statistics.mean)
        body.append(f'<path class="mean" d="M{area.left} {level:.1f}H{area.right}"/>')
    body.extend(f'<path class="week" d="{path}"/>' for path in _paths(rows, x, area.y))
    for row in rows:
        if row.cloud_fraction is not None:
            kind, r = ("dot", radius) if row.used else ("dot hollow", max(radius, 2.4))  # smaller ones look full
            body.append(
                f'<circle class="{kind}" cx="{x(row.day):.1f}" cy="{area.y(row.cloud_fraction):.1f}" r="{r:.1f}"/>'
            )
        else:
            # Marks stand below the axis: a day without a number must not look like a clear one.
            kind = "lost" if row.status == "failed" else "gap"
            body.append(f'<path class="{kind}" d="M{x(row.day):.1f} {area.bottom + 25}v9"/>')
    # What the page's script needs to find the day under a pointer.
    place = f'data-left="{area.left}" data-right="{area.right}" data-bottom="{area.bottom}"'
    body.append(f'<path class="cursor" d="M0 {area.top}V{area.bottom}" visibility="hidden"/>')
    return _svg(
        width, height, "Cloud fraction of each day with its running mean", "".join(body), f'class="series" {place}'
    )


def calendar(series: Series, width: int) -> str:
    """Draw a row a month and a column a day, coloured by cloud; days not asked for are left out."""
    months = sorted({(row.day.year, row.day.month) for row in series.rows})
    left = 66
    cell = (width - left) / 31
    tall = min(max(cell, 14), 22)
    top = 18
    line = {month: top + place * (tall + 2) for place, month in enumerate(months)}
    body = [_text(left + (day - 0.5) * cell, 11, str(day), "middle") for day in (1, 5, 10, 15, 20, 25, 30)]
    for (year, month), y in line.items():
        body.append(_text(left - 8, y + tall * 0.72, f"{MONTHS[month - 1]} {year}", "end"))
    for row in series.rows:
        x, y = left + (row.day.day - 1) * cell, line[row.day.year, row.day.month]
        shape = f'x="{x + 0.75:.1f}" y="{y:.1f}" width="{cell - 1.5:.1f}" height="{tall:.1f}" rx="2"'
        tag = f'data-day="{row.day.isoformat()}"'
        if row.cloud_fraction is None:
            kind = "lost" if row.status == "failed" else "gap"
            body.append(f'<rect class="cell {kind}" {shape} {tag}/>')
        else:
            kind = "cell" if row.used else "cell faint"
            fill = "#{:02x}{:02x}{:02x}".format(*colour(row.cloud_fraction))
            body.append(f'<rect class="{kind}" {shape} fill="{fill}" {tag}/>')
    height = math.ceil(top + len(months) * (tall + 2))
    return _svg(width, height, "Cloud fraction of each day as a calendar", "".join(body), 'class="calendar"')


def climatology(months: Sequence[Month], width: int) -> str:
    """Draw for each calendar month the quartiles as a bar, the median as a line, the mean as a dot, and its days."""
    height = 260
    area = _Area(left=40, top=12, right=width - 10, bottom=height - 40)
    slot = (area.right - area.left) / max(1, len(months))
    half = min(22.0, slot * 0.32)
    body = [_share_grid(area)]
    for place, month in enumerate(months):
        x = area.left + (place + 0.5) * slot
        body.append(_text(x, area.bottom + 17, MONTHS[month.month - 1], "middle"))
        body.append(_text(x, area.bottom + 32, str(month.days), "middle", "faint"))
        if month.mean is None or month.median is None or month.low_quartile is None or month.high_quartile is None:
            continue
        top, bottom = area.y(month.high_quartile), area.y(month.low_quartile)
        tall = max(2.0, bottom - top)
        body.append(
            f'<rect class="box" x="{x - half:.1f}" y="{top:.1f}" width="{2 * half:.1f}" height="{tall:.1f}" rx="4"/>'
        )
        body.append(f'<path class="median" d="M{x - half:.1f} {area.y(month.median):.1f}h{2 * half:.1f}"/>')
        body.append(f'<circle class="average" cx="{x:.1f}" cy="{area.y(month.mean):.1f}" r="4"/>')
    body.append(_text(area.left - 6, area.bottom + 32, "days", "end", "faint"))
    return _svg(width, height, "Cloud fraction by calendar month", "".join(body))


def histogram(rows: Sequence[Row], width: int) -> str:
    """Draw how many used days fall into each tenth of cloud fraction."""
    counts = tenths([row.cloud_fraction for row in rows if row.used and row.cloud_fraction is not None])
    height = 260
    area = _Area(left=14, top=26, right=width - 14, bottom=height - 40)
    slot = (area.right - area.left) / 10
    body = [f'<path class="axis" d="M{area.left} {area.bottom}H{area.right}"/>']
    for tenth, count in enumerate(counts):
        x, tall = area.left + tenth * slot, (area.bottom - area.top) * count / max(1, *counts)
        if count:
            body.append(
                f'<rect class="bar" x="{x + 1.5:.1f}" y="{area.bottom - tall:.1f}" width="{slot - 3:.1f}" height="{tall:.1f}" rx="3"/>'
            )
            body.append(_text(x + slot / 2, area.bottom - tall - 6, str(count), "middle", "faint"))
    body.extend(
        _text(area.left + share * 10 * slot, area.bottom + 17, f"{100 * share:.0f}\u202f%", "middle")
        for share in (0, 0.2, 0.4, 0.6, 0.8, 1)
    )
    body.append(_text((area.left + area.right) / 2, area.bottom + 33, "cloud fraction of a day", "middle", "faint"))
    return _svg(width, height, "How many days had how much cloud", "".join(body))


def tenths(fractions: Sequence[float]) -> list[int]:
    """Count fractions by tenths; a full 1 belongs to the last."""
    counts = [0] * 10
    for fraction in fractions:
        counts[min(9, int(fraction * 10))] += 1
    return counts


def map_frame(href: str, box: Box | None, width: int, aspect: float, label: str) -> str:
    """Draw a picture of the box with its graticule; `aspect` is its width over its height on the ground."""
    left, bottom = (44, 22) if box else (1, 1)
    wide = width - left - 12
    area = _Area(left=left, top=8, right=left + wide, bottom=round(8 + wide / aspect))
    tall = area.bottom - area.top
    body = [
        f'<rect class="unseen" x="{left}" y="{area.top}" width="{wide}" height="{tall}"/>',
        f'<image href="{escape(href)}" x="{left}" y="{area.top}" width="{wide}" height="{tall}" preserveAspectRatio="none"/>',
    ]
    if box:
        body.append(_graticule(area, box))
    body.append(f'<rect class="frame" x="{left}" y="{area.top}" width="{wide}" height="{tall}"/>')
    return _svg(width, area.bottom + bottom, label, "".join(body), 'class="map"')


def colour_bar(width: int) -> str:
    """Draw the scale of the maps from clear to cloud."""
    stops = "".join(f'<stop offset="{at}" stop-color="rgb({red},{green},{blue})"/>' for at, red, green, blue in COLOURS)
    left, wide = 44, width - 56
    body = [
        f'<defs><linearGradient id="scale{width}">{stops}</linearGradient></defs>',
        f'<rect class="frame" x="{left}" y="2" width="{wide}" height="12" rx="2" style="fill:url(#scale{width})"/>',
    ]
    body.extend(
        _text(left + share * wide, 30, f"{100 * share:.0f}\u202f%", "middle") for share in (0, 0.25, 0.5, 0.75, 1)
    )
    return _svg(width, 36, "Colours of cloud fraction from 0 to 100 %", "".join(body))


def date_ticks(first: date, last: date, count_max: int) -> list[tuple[date, str]]:
    """Return at most `count_max` days to be labelled, at even steps of days, weeks, months or years."""
    for ticks in _tick_candidates(first, last):
        if 1 <= len(ticks) <= count_max:
            return ticks
    return [(first, str(first.year))]


def degree_ticks(low: float, high: float, count_max: int) -> list[float]:
    """Return the degrees within a range that a graticule shows: round ones, at most `count_max`."""
    for step in _DEGREE_STEPS:
        ticks = [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
        if len(ticks) <= count_max:
            return ticks
    return []


@dataclass(frozen=True, slots=True, kw_only=True)
class _Area:
    """Where the data of a chart lies, in pixels; fractions of 0..1 run from its bottom to its top."""

    left: float
    top: float
    right: float
    bottom: float

    def y(self, fraction: float) -> float:
        return self.bottom - fraction * (self.bottom - self.top)


def _tick_candidates(first: date, last: date) -> Iterator[list[tuple[date, str]]]:
    days = [first + timedelta(days=shift) for shift in range((last - first).days + 1)]
    for step in _DAY_STEPS:
        # Weeks start on Mondays, other steps with the range.
        start = (-first.weekday()) % 7 if step >= 7 else 0
        yield [(day, f"{day.day} {MONTHS[day.month - 1]}") for day in days[start::step]]
    firsts = [day for day in days if day.day == 1]
    for step in _MONTH_STEPS:
        chosen = [day for day in firsts if (day.month - 1) % step == 0]
        yield [
            (
                day,
                f"{MONTHS[day.month - 1]} {day.year}" if day.month == 1 or day == chosen[0] else MONTHS[day.month - 1],
            )
            for day in chosen
        ]
    for step in _YEAR_STEPS:
        yield [(day, str(day.year)) for day in firsts if day.month == 1 and day.year % step == 0]


def _paths(rows: Sequence[Row], x: Callable[[date], float], y: Callable[[float], float]) -> Iterator[str]:
    """Yield the running mean as lines, broken where it is not known."""
    points: list[str] = []
    for row in [*rows, None]:
        if row is not None and row.cloud_fraction_7day is not None:
            points.append(f"{x(row.day):.1f} {y(row.cloud_fraction_7day):.1f}")
        elif points:
            yield "M" + "L".join(points if len(points) > 1 else points * 2)
            points = []


def _share_grid(area: _Area) -> str:
    return "".join(
        f'<path class="grid" d="M{area.left} {area.y(share):.1f}H{area.right}"/>'
        + _text(area.left - 6, area.y(share) + 4, f"{100 * share:.0f}\u202f%", "end")
        for share in (0, 0.25, 0.5, 0.75, 1)
    )


def _graticule(area: _Area, box: Box) -> str:
    wide, tall = area.right - area.left, area.bottom - area.top
    parts = []
    for lon in degree_ticks(box.lon_min, box.lon_max, max(2, int(wide // 70))):
        x = area.left + wide * (lon - box.lon_min) / (box.lon_max - box.lon_min)
        parts.append(f'<path class="graticule" d="M{x:.1f} {area.top}V{area.bottom}"/>')
        parts.append(_text(x, area.bottom + 16, degrees(lon, "E", "W"), "middle"))
    for lat in degree_ticks(box.lat_min, box.lat_max, max(2, int(tall // 60))):
        y = area.bottom - tall * (lat - box.lat_min) / (box.lat_max - box.lat_min)
        parts.append(f'<path class="graticule" d="M{area.left} {y:.1f}H{area.right}"/>')
        parts.append(_text(area.left - 5, y + 4, degrees(lat, "N", "S"), "end"))
    return "".join(parts)


def degrees(value: float, positive: str, negative: str) -> str:
    """Write a latitude or longitude with the letter of its side of zero."""
    return f"{round(abs(value), 4):g}°{positive if value > 0 else negative if value < 0 else ''}"


def _text(x: float, y: float, text: str, anchor: str, kind: str = "label") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: int, height: float, label: str, body: str, extra: str = "") -> str:
    return (
        f'<svg viewBox="0 0 {width} {height:.0f}" width="{width}" height="{height:.0f}" role="img" '
        f'aria-label="{escape(label)}" {extra}>{body}</svg>'
    )
