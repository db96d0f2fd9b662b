"""The figures of the report: charts with their legends, maps, film and contact sheet, as parts of a page.

Responsible for what is shown in pictures and with which words beside it. Must not know of the page around it, of files
or of how a number came about. `aspect` is always width over height of the box as it is on the ground.
"""

from collections.abc import Callable, Mapping
from datetime import date
from html import escape
from typing import Final

from clouds import chart, film
from clouds.box import Box
from clouds.fold import Fold
from clouds.picture import THUMBNAIL_SIDE_PX
from clouds.series import Row, Series
from clouds.wording import data_url, percent

_Draw = Callable[[int], str]

WIDE_PX: Final = 1020
HALF_PX: Final = 480
NARROW_PX: Final = 350
TILES_MAX: Final = 400  # pictures on the contact sheet; of longer series every n-th day is shown
MONTH_TILES_MIN: Final = 8  # a heading over one or two pictures is more heading than picture


def daily(series: Series) -> str:
    """Return the time series and the calendar, with legends for the kinds of day that occur."""
    told = series.statistics
    marks = [
        (told.days_used, '<i class="c-day round"></i>a day'),
        (told.days_low_coverage, '<i class="ring"></i>less than half observed, left out of means'),
        (
            any(row.cloud_fraction_7day is not None for row in series.rows),
            '<i class="c-week rule"></i>mean of the week around the day',
        ),
        (told.days_no_data + told.days_missing, '<i class="s-no_data"></i>without data or missing'),
        (told.days_failed, '<i class="s-failed"></i>failed'),
    ]
    legend, lost = ("".join(f"<li>{mark}</li>" for days, mark in some if days) for some in (marks, marks[3:]))
    return (
        '<section class="card"><h2>Day by day</h2><p class="note">Cloud fraction of the part of the box that was '
        f"observed.</p>{_both(lambda width: chart.time_series(series, width), WIDE_PX)}"
        f'<ul class="legend">{legend}</ul></section>'
        '<section class="card"><h2>Calendar</h2><p class="note">Deep blue is clear, white is cloud; dashed is less than '
        f"half observed.</p>{_both(lambda width: chart.calendar(series, width), WIDE_PX)}"
        f'<div class="scale"><div class="chart">{chart.colour_bar(300)}</div><ul class="legend">{lost}</ul></div></section>'
    )


def distribution(series: Series) -> str:
    """Return the histogram and the climatology by month."""
    return (
        '<div class="grid two"><section class="card"><h2>How often</h2><p class="note">Days used, by tenths of cloud '
        f"fraction.</p>{_both(lambda width: chart.histogram(series.rows, width), HALF_PX)}</section>"
        '<section class="card"><h2>By month</h2><p class="note">Bar: the middle half of the days; line: median; dot: '
        f"mean; below: days used.</p>{_both(lambda width: chart.climatology(series.months, width), HALF_PX)}</section></div>"
    )


def maps(fold: Fold | None, box: Box | None, aspect: float) -> str:
    """Return the mean cloud map with its scale and the clearest-pixel picture, both with a graticule."""
    if fold is None or not fold.valid.any():
        return (
            '<section class="card"><h2>Where it was cloudy</h2><p class="note">No day has data for a map.</p></section>'
        )
    mean = data_url(film.mean_map_png(fold), "image/png")
    clearest = data_url(film.clearest_webp(fold), "image/webp")
    # A tall box would not fit a screen at the full width of its half of the page.
    width = round(max(220, min(HALF_PX, 60 + 620 * aspect)))
    cloud_map = chart.map_frame(mean, box, width, aspect, "Mean cloud fraction of each place")
    ground = chart.map_frame(clearest, box, width, aspect, "The clearest look at each place")
    rows, columns = fold.shape
    return (
        '<div class="grid two"><section class="card"><h2>Where it was cloudy</h2>'
        f'<div class="chart">{cloud_map}{chart.colour_bar(width)}</div><p class="note">Cloudy pixels over observed '
        f"pixels, summed over {fold.days} days in {columns} x {rows} cells; grey was never seen.</p></section>"
        '<section class="card"><h2>The ground, clouds removed</h2>'
        f'<div class="chart">{ground}</div><p class="note">Each place on the day on which it looked darkest in blue, of '
        "the days that saw it and what lies around it whole.</p></section></div>"
    )


def animation(series: Series, pictures: Mapping[date, bytes], aspect: float) -> str:
    """Return the film of all days with data; nothing where there are fewer than two."""
    frames = [
        (f"{row.day}   {100 * row.cloud_fraction:.0f} %", pictures[row.day])
        for row in series.rows
        if row.cloud_fraction is not None and row.day in pictures
    ]
    if len(frames) < 2:
        return ""
    wide = max(64, round(THUMBNAIL_SIDE_PX * min(1.0, aspect)))
    tall = max(64, round(THUMBNAIL_SIDE_PX / max(1.0, aspect)))
    moving = data_url(film.animation_webp(frames, (wide, tall)), "image/webp")
    still = data_url(film.tile_webp(frames[0][1], THUMBNAIL_SIDE_PX), "image/webp")
    shown = min(len(frames), film.FRAMES_MAX)
    return (
        f'<section class="card"><h2>All days in {shown * film.FRAME_MS / 1000:.0f} seconds</h2>'
        f'<p class="note">{shown} days with data.</p>'
        f'<picture><source media="(prefers-reduced-motion: reduce)" srcset="{still}">'
        f'<img class="film" alt="Animation of all days with data" src="{moving}" width="{wide * 2}"></picture></section>'
    )


def contact_sheet(series: Series, pictures: Mapping[date, bytes], aspect: float) -> str:
    """Return a tile for each day, of long series for every n-th; a day without picture shows its reason."""
    step = -(-len(series.rows) // TILES_MAX)
    rows = series.rows[::step]
    side_px = 240 if len(rows) <= 100 else 160
    headed = len(rows) >= MONTH_TILES_MIN * len({(row.day.year, row.day.month) for row in rows})
    parts: list[str] = []
    month = ""
    for row in rows:
        if headed and f"{row.day:%B %Y}" != month:
            month = f"{row.day:%B %Y}"
            parts.append(f"<h3>{month}</h3>")
        name = f"{row.day.day} {chart.MONTHS[row.day.month - 1]}" if headed else row.day.isoformat()
        parts.append(_tile(row, name, pictures.get(row.day), side_px))
    which = "" if step == 1 else f"Every {step} days one. "
    # Tiles of about the same area whatever the shape of the box.
    tile_px = round(min(190, max(84, 132 * aspect**0.5)))
    return (
        f'<section class="card"><h2>The days</h2><p class="note">{which}Choose a picture to see it large.</p>'
        f'<div class="sheet" style="--tile:{tile_px}px">{"".join(parts)}</div></section>'
    )


def _tile(row: Row, name: str, thumbnail: bytes | None, side_px: int) -> str:
    kind = {"low_coverage": "low", "failed": "failed"}.get(row.status, "")
    if thumbnail is not None and row.cloud_fraction is not None:
        face = f'<img decoding="async" alt="" src="{data_url(film.tile_webp(thumbnail, side_px), "image/webp")}">'
    else:
        face = f'<span class="blank">{escape(row.reason or "no picture")}</span>'
    value = "" if row.cloud_fraction is None else f"{100 * row.cloud_fraction:.0f}\u202f%"
    share = round(100 * (row.cloud_fraction or 0))
    return (
        f'<button class="{kind}" data-day="{row.day}" title="{escape(row.reason or percent(row.cloud_fraction))}">{face}'
        f'<span class="of"><b>{name}</b>{value}</span><span class="meter"><i style="width:{share}%"></i></span></button>'
    )


def _both(draw: _Draw, wide_px: int) -> str:
    """Return a chart for wide and for narrow screens; the style shows one of them."""
    return f'<div class="chart wide">{draw(wide_px)}</div><div class="chart narrow">{draw(NARROW_PX)}</div>'
