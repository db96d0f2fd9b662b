"""A growth run as a picture: one column for each thing that grows, throughput above, round trip below; all axes logarithmic. An SVG image."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from bench.growth_record import LEVELS, PAYLOAD, SIMULATED, TASKS, WORKERS, Growth, Point

LEFT, TOP, RIGHT, BOTTOM = 64, 100, 16, 36
WIDTH_MIN = 760
"""The lines at the top need it."""
PLOT_WIDTH, PLOT_HEIGHT = 270, 190
GAP_X, GAP_Y = 62, 66
INSET = 10
"""From the frame of a plot to its first and last place on the axis."""
LABEL_PX = 7
"""About the width of a character."""
ORANGE, SLATE = "#c2410c", "#475569"
STEPS = (1, 2, 5)


@dataclass(frozen=True, slots=True)
class Line:
    """One series of a plot: places and values, all above 0."""

    name: str
    colour: str
    dashed: bool
    places: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Column:
    """What grows: its axes in the record with their colours, and what is said of it."""

    title: str
    axes: tuple[tuple[str, str, str], ...]
    """(axis, colour, name in the legend)"""
    unit: Callable[[float], str]


def chart(growth: Growth) -> str:
    """All columns that something was measured for."""
    columns = [column for column in _columns(growth) if any(growth.axis(axis) for axis, _, _ in column.axes)]
    width = max(LEFT + len(columns) * (PLOT_WIDTH + GAP_X) - GAP_X + RIGHT, WIDTH_MIN)
    height = TOP + 2 * PLOT_HEIGHT + GAP_Y + BOTTOM
    said = f"{growth.date[:10]}, {growth.machine}, revision {growth.revision}, medians of {growth.rounds} round{'s' * (growth.rounds > 1)}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12" fill="#222">',
        "<title>AntFarm as the work grows</title>",
        f"<desc>{escape('Throughput, and round trip of one task, against ' + ', '.join(column.title for column in columns))}</desc>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(LEFT, 24, "AntFarm as the work grows", size=15, weight="bold"),
        _text(LEFT, 44, said, colour="#555"),
    ]
    for number, column in enumerate(columns):
        x = LEFT + number * (PLOT_WIDTH + GAP_X)
        parts.append(_text(x, TOP - 26, column.title, weight="bold"))
        rate, trip = _rate_lines(growth, column), _trip_lines(growth, column)
        parts += _plot(x, TOP, "tasks/s", rate, column.unit)
        parts += _plot(x, TOP + PLOT_HEIGHT + GAP_Y, "round trip of one task, ms; dashed: p99", trip, column.unit)
    return "\n".join([*parts, "</svg>", ""])


def _columns(growth: Growth) -> list[Column]:
    few = {point.workers for point in growth.points if point.axis in (TASKS, PAYLOAD)}
    workers = f"{min(few)} workers" if few else ""
    counts = {point.tasks for point in growth.points if point.axis in (WORKERS, SIMULATED)}
    of = f", {short(max(counts))} tasks" if counts else ""
    return [
        Column(f"tasks of one job, {workers}", ((TASKS, ORANGE, ""),), short),
        Column(f"workers{of}", ((WORKERS, ORANGE, "real"), (SIMULATED, SLATE, "simulated")), short),
        Column(f"bytes of a task's arguments, {workers}", ((PAYLOAD, ORANGE, ""),), size),
        Column(f"levels of orchestrators, {workers}", ((LEVELS, ORANGE, ""),), short),
    ]


def _rate_lines(growth: Growth, column: Column) -> list[Line]:
    return [
        Line(name, colour, False, tuple((point.x, point.rate) for point in growth.axis(axis)))
        for axis, colour, name in column.axes
    ]


def _trip_lines(growth: Growth, column: Column) -> list[Line]:
    def series(axis: str, of: Callable[[Point], Sequence[float]]) -> tuple[tuple[float, float], ...]:
        return tuple((point.x, statistics.median(of(point))) for point in growth.axis(axis) if of(point))

    lines = []
    for axis, colour, _ in column.axes:  # named in the plot above
        lines.append(Line("", colour, False, series(axis, lambda point: point.p50_ms)))
        lines.append(Line("", colour, True, series(axis, lambda point: point.p99_ms)))
    return lines


# ---- one plot ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scale:
    """A logarithmic axis: values between `low` and `high` to pixels between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Where a value lies."""
        if self.high <= self.low:
            return (self.start + self.end) / 2
        return self.start + (self.end - self.start) * math.log(value / self.low) / math.log(self.high / self.low)


def bounds(values: Sequence[float]) -> tuple[float, float]:
    """The nearest 1, 2 or 5 times a power of ten below and above all values, apart from each other."""
    decades = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    round_ones = [step * 10.0**decade for decade in decades for step in STEPS]
    slack = 1 + 1e-9
    low = max(one for one in round_ones if one <= min(values) * slack)
    high = min(one for one in [*round_ones, 10 * round_ones[-1]] if one * slack >= max(values) and one > low)
    return low, high


def ticks(low: float, high: float, most: int = 7) -> list[float]:
    """1, 2 and 5 times powers of ten from `low` to `high`; the powers alone, or every so many of them, where that were more than `most`."""
    slack = 1 + 1e-9
    decades = range(math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high)) + 1)

    def within(steps: Sequence[int], every: int) -> list[float]:
        found = [step * 10.0**decade for decade in decades[::every] for step in steps]
        return [one for one in found if low <= one * slack and one <= high * slack]

    if len(within(STEPS, 1)) <= most:
        return within(STEPS, 1)
    every = 1
    while len(within((1,), every)) > most:
        every += 1
    return within((1,), every)


def _plot(x: float, y: float, title: str, lines: Sequence[Line], unit: Callable[[float], str]) -> Iterator[str]:
    lines = [line for line in lines if line.places]
    yield f'<rect x="{x}" y="{y}" width="{PLOT_WIDTH}" height="{PLOT_HEIGHT}" fill="none" stroke="#cbd5e1"/>'
    yield _text(x, y - 8, title, colour="#555")
    if not lines:
        return
    places = sorted({place for line in lines for place, _ in line.places})
    across = Scale(places[0], places[-1], x + INSET, x + PLOT_WIDTH - INSET)
    low, high = bounds([value for line in lines for _, value in line.places])
    up = Scale(low, high, y + PLOT_HEIGHT, y)
    for tick in ticks(low, high):
        at = up.at(tick)
        yield f'<line x1="{x}" x2="{x + PLOT_WIDTH}" y1="{at:.1f}" y2="{at:.1f}" stroke="#e2e8f0"/>'
        yield _text(x - 6, at + 4, short(tick), anchor="end")
    yield from _places(places, across, y + PLOT_HEIGHT, unit)
    for line in lines:
        yield from _line(line, across, up)
    yield from _legend(x, y, [line for line in lines if line.name])


def _places(places: Sequence[float], across: Scale, y: float, unit: Callable[[float], str]) -> Iterator[str]:
    """A mark for each place that was measured; a label where there is room for one, powers of ten first."""
    labelled: list[tuple[float, float]] = []
    for place in sorted(places, key=lambda place: not math.log10(place).is_integer()):
        at, half = across.at(place), len(unit(place)) * LABEL_PX / 2 + 3
        yield f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y}" y2="{y + 4}" stroke="#94a3b8"/>'
        if all(at + half <= left or at - half >= right for left, right in labelled):
            labelled.append((at - half, at + half))
            yield _text(at, y + 18, unit(place), anchor="middle")


def _line(line: Line, across: Scale, up: Scale) -> Iterator[str]:
    points = [(across.at(place), up.at(value)) for place, value in line.places]
    dashes = ' stroke-dasharray="5 4"' if line.dashed else ""
    joined = " ".join(f"{at:.1f},{height:.1f}" for at, height in points)
    yield f'<polyline points="{joined}" fill="none" stroke="{line.colour}" stroke-width="1.8"{dashes}/>'
    for at, height in points:
        fill = "white" if line.dashed else line.colour
        yield f'<circle cx="{at:.1f}" cy="{height:.1f}" r="3" fill="{fill}" stroke="{line.colour}"/>'


def _legend(x: float, y: float, lines: Sequence[Line]) -> Iterator[str]:
    """Between the title and the frame, at the right."""
    right = x + PLOT_WIDTH
    for line in reversed(lines):
        width = len(line.name) * LABEL_PX
        yield _text(right - width, y - 8, line.name)
        dashes = ' stroke-dasharray="5 4"' if line.dashed else ""
        yield (
            f'<line x1="{right - width - 22}" x2="{right - width - 4}" y1="{y - 12}" y2="{y - 12}" '
            f'stroke="{line.colour}" stroke-width="1.8"{dashes}/>'
        )
        right -= width + 32


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, weight: str = "normal", colour: str = ""
) -> str:
    fill = f' fill="{colour}"' if colour else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}"{fill}>'
        f"{escape(text)}</text>"
    )


# ---- numbers ----------------------------------------------------------------------------------------------------------


def short(number: float) -> str:
    """1200 as 1.2k, 1000000 as 1M; below a thousand as it is."""
    for scale, letter in ((1e6, "M"), (1e3, "k")):
        if number >= scale:
            return f"{number / scale:.3g}{letter}"
    return f"{number:.3g}"


def size(number: float) -> str:
    """Bytes; K is 1,024."""
    return f"{number / 1024:.3g}K" if number >= 1024 else f"{number:.0f}"
