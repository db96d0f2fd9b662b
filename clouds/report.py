"""The report: series.csv, series.json and one report.html that needs nothing else to be looked at.

Responsible for what the page says and in which order. Must not know of the farm, the network or how a number came
about. The idea: a page that a reader can send to somebody: no loads from elsewhere, light and dark, readable on a
phone and on paper, and without its script. The same input gives the same bytes: the time of writing is part of the
provenance that the caller hands in.

All foreign text (reasons, provenance, titles) passes through `escape`, or `_script_json` where it is data of the script.
"""

import base64
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Final

from clouds import chart, film
from clouds.analyse import write_whole
from clouds.box import Box
from clouds.errors import BadPicture, CloudsError
from clouds.fold import Fold
from clouds.picture import THUMBNAIL_SIDE_PX, decode_small
from clouds.series import STATUSES, Row, Series, Status

ACKNOWLEDGEMENT: Final = (
    "We acknowledge the use of imagery provided by NASA Worldview / GIBS, part of the NASA Earth Science Data and "
    "Information System (ESDIS)."
)

_Draw = Callable[[int], str]

WIDE_PX: Final = 1020
HALF_PX: Final = 480
NARROW_PX: Final = 350
TILES_MAX: Final = 400  # pictures on the contact sheet; of longer series every n-th day is shown

_STATUS_NAMES: Final[dict[Status, str]] = {
    "used": "used",
    "low_coverage": "less than half observed",
    "no_data": "without data",
    "failed": "failed",
    "missing": "missing",
}


def write_report(
    out_dir: Path,
    series: Series,
    fold: Fold | None,
    thumbnails: Mapping[date, bytes],
    provenance: Mapping[str, object],
    *,
    box: Box | None = None,
    title: str = "Cloud cover",
) -> Path:
    """Write series.csv, series.json and report.html into `out_dir`, each whole or not at all; returns the page's path.

    `fold` over the same days gives the maps, `thumbnails` the pictures; the page says so where they are absent.
    Raises CloudsError when there is no day to report or the folder cannot be written.
    """
    if not series.rows:
        raise CloudsError("there is no day to report")
    page = report_html(series, fold, thumbnails, provenance, box=box, title=title)
    path = out_dir / "report.html"
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        write_whole(out_dir / "series.csv", series.to_csv().encode())
        write_whole(out_dir / "series.json", series.to_json().encode())
        write_whole(path, page.encode())
    except OSError as error:
        raise CloudsError(f"cannot write the report to {out_dir}: {error.strerror or error}") from error
    return path


def report_html(
    series: Series,
    fold: Fold | None,
    thumbnails: Mapping[date, bytes],
    provenance: Mapping[str, object],
    *,
    box: Box | None = None,
    title: str = "Cloud cover",
) -> str:
    """Return the page; see `write_report`."""
    pictures = _sound(thumbnails)
    aspect = _aspect(box, pictures, fold)
    parts = [
        _head(series, box, title),
        "<main>",
        _summary(series, pictures, aspect),
        _daily(series),
        _distribution(series),
        _maps(fold, box, aspect),
        _film(series, pictures, aspect),
        _contact_sheet(series, pictures, aspect),
        _gaps(series.rows),
        _table(series.rows),
        _provenance(provenance),
        "</main>",
        f"<footer><p>{escape(ACKNOWLEDGEMENT)}</p></footer>",
    ]
    return _document(title, "\n".join(part for part in parts if part), series, aspect)


def _head(series: Series, box: Box | None, title: str) -> str:
    first, last = series.rows[0].day, series.rows[-1].day
    mean = series.statistics.mean
    if mean is None:
        lead = "No day has enough data for a number."
    else:
        lead = f"On an average day <b>{_percent(mean)}</b> of the box lay under cloud."
    period = _long(first) if first == last else f"{_long(first)} to {_long(last)}"
    if box is not None:
        period += f" · {chart.degrees(box.lat_min, 'N', 'S')}–{chart.degrees(box.lat_max, 'N', 'S')}"
        period += f", {chart.degrees(box.lon_min, 'E', 'W')}–{chart.degrees(box.lon_max, 'E', 'W')}"
    return (
        f'<header class="top"><p class="eyebrow">{escape(period)}</p><h1>{escape(title)}</h1>'
        f'<p class="lead">{lead}</p></header>'
    )


def _summary(series: Series, pictures: Mapping[date, bytes], aspect: float) -> str:
    told = series.statistics
    count = {
        "used": told.days_used,
        "low_coverage": told.days_low_coverage,
        "no_data": told.days_no_data,
        "failed": told.days_failed,
        "missing": told.days_missing,
    }
    tiles = [
        ("mean of days", _percent(told.mean), "each day weighs the same"),
        ("weighted by area", _percent(told.mean_area), "rows by their size on the globe"),
        (
            "median",
            _percent(told.median),
            f"quartiles {_percent(told.low_quartile)} and {_percent(told.high_quartile)}",
        ),
        ("days used", str(told.days_used), f"of {told.days_asked} asked for"),
    ]
    strip = "".join(f'<i class="s-{status}" style="flex:{count[status]}"></i>' for status in STATUSES if count[status])
    legend = "".join(
        f'<li><i class="s-{status}"></i><b>{count[status]}</b> {_STATUS_NAMES[status]}</li>' for status in STATUSES
    )
    by_day = {row.day: row for row in series.rows}
    extremes = "".join(
        _extreme(name, by_day[day], pictures.get(day), aspect)
        for name, day in (("Clearest day", told.clearest), ("Cloudiest day", told.cloudiest))
        if day is not None
    )
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="tile"><span>{name}</span><strong>{value}</strong><small>{note}</small></div>'
            for name, value, note in tiles
        )
        + f'</div><section class="card"><h3>{told.days_asked} days asked for</h3><div class="share">{strip}</div>'
        + f'<ul class="legend">{legend}</ul></section><section class="grid two">{extremes}</section>'
    )


def _extreme(name: str, row: Row, thumbnail: bytes | None, aspect: float) -> str:
    image = ""
    if thumbnail is not None:
        image = f'<img alt="{row.day}" src="{_data_url(thumbnail, "image/jpeg")}" style="aspect-ratio:{aspect:.4f}">'
    return (
        f'<div class="card extreme">{image}<div><span class="note">{name}</span><strong>{_percent(row.cloud_fraction)}'
        f"</strong>{_long(row.day)}<br><span class=note>observed {_percent(row.valid_fraction)}</span></div></div>"
    )


def _daily(series: Series) -> str:
    legend = (
        '<ul class="legend"><li><i class="c-day round"></i>a day</li>'
        '<li><i class="ring"></i>less than half observed, left out of means</li>'
        '<li><i class="c-week rule"></i>mean of the week around the day</li>'
        '<li><i class="s-no_data"></i>without data</li><li><i class="s-failed"></i>failed</li></ul>'
    )
    scale = (
        f'<div class="scale"><div class="chart">{chart.colour_bar(300)}</div><ul class="legend">'
        '<li><i class="s-no_data"></i>without data or missing</li><li><i class="s-failed"></i>failed</li></ul></div>'
    )
    return (
        '<section class="card"><h2>Day by day</h2><p class="note">Cloud fraction of the part of the box that was '
        f"observed.</p>{_both(lambda width: chart.time_series(series, width), WIDE_PX)}{legend}</section>"
        '<section class="card"><h2>Calendar</h2><p class="note">Deep blue is clear, white is cloud; dashed is less than half observed.</p>'
        f"{_both(lambda width: chart.calendar(series, width), WIDE_PX)}{scale}</section>"
    )


def _distribution(series: Series) -> str:
    return (
        '<div class="grid two"><section class="card"><h2>How often</h2><p class="note">Days used, by tenths of cloud '
        f"fraction.</p>{_both(lambda width: chart.histogram(series.rows, width), HALF_PX)}</section>"
        '<section class="card"><h2>By month</h2><p class="note">Bar: the middle half of the days; line: median; dot: '
        f"mean; below: days used.</p>{_both(lambda width: chart.climatology(series.months, width), HALF_PX)}</section></div>"
    )


def _maps(fold: Fold | None, box: Box | None, aspect: float) -> str:
    if fold is None or not fold.valid.any():
        return '<section class="card"><h2>Where</h2><p class="note">No day has data for a map.</p></section>'
    mean = _data_url(film.mean_map_png(fold), "image/png")
    clearest = _data_url(film.clearest_webp(fold), "image/webp")

    def cloud_map(width: int) -> str:
        frame = chart.map_frame(mean, box, width, aspect, "Mean cloud fraction of each place")
        return frame + chart.colour_bar(width)

    def ground(width: int) -> str:
        return chart.map_frame(clearest, box, width, aspect, "The clearest look at each place")

    rows, columns = fold.shape
    return (
        '<div class="grid two"><section class="card"><h2>Where it was cloudy</h2>'
        f'{_map_figure(cloud_map, aspect)}<p class="note">Cloudy pixels over observed pixels, summed over {fold.days} '
        f"days in {columns} x {rows} cells; grey was never seen.</p></section>"
        '<section class="card"><h2>The ground, clouds removed</h2>'
        f'{_map_figure(ground, aspect)}<p class="note">Each place on the day on which it looked darkest in blue, of the '
        "days that saw it and what lies around it whole.</p></section></div>"
    )


def _film(series: Series, pictures: Mapping[date, bytes], aspect: float) -> str:
    frames = [
        (f"{row.day}   {_percent(row.cloud_fraction)}", pictures[row.day])
        for row in series.rows
        if row.cloud_fraction is not None and row.day in pictures
    ]
    if len(frames) < 2:
        return ""
    wide, tall = THUMBNAIL_SIDE_PX, round(THUMBNAIL_SIDE_PX / aspect)
    if tall > THUMBNAIL_SIDE_PX:
        wide, tall = round(THUMBNAIL_SIDE_PX * aspect), THUMBNAIL_SIDE_PX
    moving = _data_url(film.animation_webp(frames, (max(64, wide), max(64, tall))), "image/webp")
    still = _data_url(film.tile_webp(frames[0][1], THUMBNAIL_SIDE_PX), "image/webp")
    shown = min(len(frames), film.FRAMES_MAX)
    return (
        f'<section class="card"><h2>All days in {shown * film.FRAME_MS / 1000:.0f} seconds</h2>'
        f'<p class="note">{shown} days with data.</p>'
        f'<picture><source media="(prefers-reduced-motion: reduce)" srcset="{still}">'
        f'<img class="film" alt="Animation of all days with data" src="{moving}" width="{wide * 2}"></picture></section>'
    )


def _contact_sheet(series: Series, pictures: Mapping[date, bytes], aspect: float) -> str:
    step = -(-len(series.rows) // TILES_MAX)
    rows = series.rows[::step]
    side = 240 if len(rows) <= 100 else 160
    parts, month = [], None
    for row in rows:
        if (row.day.year, row.day.month) != month:
            month = (row.day.year, row.day.month)
            parts.append(f"<h3>{chart.MONTHS[row.day.month - 1]} {row.day.year}</h3>")
        parts.append(_tile(row, pictures.get(row.day), side))
    note = (
        "Choose a picture to see it large."
        if step == 1
        else f"Every {step} days one; choose a picture to see it large."
    )
    # Tiles of about the same area whatever the shape of the box.
    tile_px = round(min(190, max(84, 132 * aspect**0.5)))
    return (
        f'<section class="card"><h2>The days</h2><p class="note">{note}</p>'
        f'<div class="sheet" style="--tile:{tile_px}px">{"".join(parts)}</div></section>'
    )


def _tile(row: Row, thumbnail: bytes | None, side_px: int) -> str:
    kind = {"low_coverage": "low", "failed": "failed"}.get(row.status, "")
    if thumbnail is not None and row.cloud_fraction is not None:
        face = f'<img decoding="async" alt="" src="{_data_url(film.tile_webp(thumbnail, side_px), "image/webp")}">'
    else:
        face = f'<span class="blank">{escape(row.reason or "no picture")}</span>'
    share = 0 if row.cloud_fraction is None else round(100 * row.cloud_fraction)
    value = "" if row.cloud_fraction is None else f"{share}\u202f%"
    return (
        f'<button class="{kind}" data-day="{row.day}">{face}<span class="of"><b>{row.day.day} {chart.MONTHS[row.day.month - 1]}</b>'
        f'{value}</span><span class="meter" style="display:block"><i style="width:{share}%"></i></span></button>'
    )


def _gaps(rows: Sequence[Row]) -> str:
    """List what kept days out and what they were warned of, days of the same reason together."""
    groups: dict[tuple[str, str], list[date]] = {}
    for row in rows:
        if not row.used:
            groups.setdefault((_STATUS_NAMES[row.status], row.reason or ""), []).append(row.day)
        for warning in row.warnings:
            # A warning that repeats the reason for leaving the day out says nothing new.
            if row.used:
                groups.setdefault(("warning", warning), []).append(row.day)
    if not groups:
        return '<section class="card"><h2>Gaps and warnings</h2><p class="note">None: every day asked for was used.</p></section>'
    lines = "".join(
        f'<tr><td class="d">{escape(kind)}</td><td class="x">{escape(reason)}</td><td class="n">{len(days)}</td>'
        f'<td class="x">{escape(_some(days))}</td></tr>'
        for (kind, reason), days in groups.items()
    )
    return (
        '<section class="card"><h2>Gaps and warnings</h2><div class="scroll"><table><tr><th>what</th><th>why</th>'
        f'<th class="n">days</th><th>which</th></tr>{lines}</table></div></section>'
    )


def _table(rows: Sequence[Row]) -> str:
    columns = ("cloud", "by area", "thick", "observed", "7 days")
    lines = "".join(
        f'<tr><td class="d">{row.day}</td>'
        + "".join(
            f'<td class="n">{_percent(value)}</td>'
            for value in (
                row.cloud_fraction,
                row.cloud_fraction_area,
                row.thick_fraction,
                row.valid_fraction,
                row.cloud_fraction_7day,
            )
        )
        + f"<td>{_STATUS_NAMES[row.status]}</td></tr>"
        for row in rows
    )
    heads = "".join(f'<th class="n">{name}</th>' for name in columns)
    return (
        '<section class="card"><details><summary>All numbers</summary><p class="note">The same as series.csv and '
        f'series.json beside this page.</p><div class="scroll"><table><tr><th>day</th>{heads}<th></th></tr>{lines}'
        "</table></div></details></section>"
    )


def _provenance(provenance: Mapping[str, object]) -> str:
    lines = "".join(
        f"<dt>{escape(str(name).replace('_', ' '))}</dt><dd>{escape(_plain(value))}</dd>"
        for name, value in provenance.items()
    )
    return f'<section class="card"><h2>Where this comes from</h2><dl>{lines}</dl></section>' if lines else ""


def _document(title: str, body: str, series: Series, aspect: float) -> str:
    page = files("clouds") / "page"
    style, script = (page / "report.css").read_text("utf-8"), (page / "report.js").read_text("utf-8")
    days = [
        {"day": row.day.isoformat(), "cloud": row.cloud_fraction, "valid": row.valid_fraction, "reason": row.reason}
        for row in series.rows
    ]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>
:root {{ --aspect: {aspect:.4f}; }}
{style}</style>
</head>
<body>
{body}
<div id="tip" hidden></div>
<dialog id="large"><img alt=""><div><button data-step="-1">Earlier</button><p></p><button data-step="1">Later</button></div></dialog>
<script type="application/json" id="days">{_script_json(days)}</script>
<script>
{script}</script>
</body>
</html>
"""


def _both(draw: _Draw, wide_px: int) -> str:
    """Return a chart for wide and for narrow screens; the style shows one of them."""
    return f'<div class="chart wide">{draw(wide_px)}</div><div class="chart narrow">{draw(NARROW_PX)}</div>'


def _map_figure(draw: _Draw, aspect: float) -> str:
    # A tall box would not fit a screen at full width.
    wide = round(min(HALF_PX, 60 + 620 * aspect))
    return f'<div class="chart">{draw(max(220, min(wide, HALF_PX)))}</div>'


def _sound(thumbnails: Mapping[date, bytes]) -> dict[date, bytes]:
    """Keep the thumbnails that decode: a broken one must not cost the report."""
    sound = {}
    for day, data in thumbnails.items():
        try:
            decode_small(data, (8, 8))
        except BadPicture:
            continue
        sound[day] = data
    return sound


def _aspect(box: Box | None, pictures: Mapping[date, bytes], fold: Fold | None) -> float:
    """Return width over height as it is on the ground, whatever shape the pictures came in."""
    if box is not None:
        return box.aspect
    if pictures:
        rows, columns = decode_small(next(iter(pictures.values())), (10_000, 10_000)).shape[:2]
        return float(columns / rows)
    return fold.shape[1] / fold.shape[0] if fold is not None else 1.0


def _data_url(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _script_json(value: object) -> str:
    """Return JSON that cannot end the script element it stands in."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return (
        text.replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("&", "\\u0026")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f}\u202f%"


def _long(day: date) -> str:
    return f"{day.day} {day:%B} {day.year}"


def _some(days: Sequence[date]) -> str:
    """Name the days, of many the first ones."""
    named = ", ".join(day.isoformat() for day in days[:12])
    return named if len(days) <= 12 else f"{named} and {len(days) - 12} more"


def _plain(value: object) -> str:
    match value:
        case Mapping():
            return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
        case str():
            return value
        case Iterable():
            return ", ".join(_plain(part) for part in value)
        case _:
            return str(value)
