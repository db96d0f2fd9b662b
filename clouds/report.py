"""The report: series.csv, series.json and one report.html that needs nothing else to be looked at.

Responsible for what the page says and in which order. Must not know of the farm, the network or how a number came
about. The idea: a page that a reader can send to somebody: no loads from elsewhere, light and dark, readable on a
phone and on paper, and without its script. The same input gives the same bytes: the time of writing is part of the
provenance that the caller hands in.

All foreign text (reasons, provenance, titles) passes through `escape`, or `script_json` where it is data of the script.
"""

from collections.abc import Mapping, Sequence
from datetime import date
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Final

from clouds import chart, report_figures
from clouds.analyse import write_whole
from clouds.box import Box
from clouds.errors import BadPicture, CloudsError
from clouds.fold import Fold
from clouds.picture import decode_small
from clouds.series import STATUSES, Row, Series, Status
from clouds.service import ACKNOWLEDGEMENT
from clouds.wording import data_url, long_day, percent, plain, script_json, some_days

_STATUS_NAMES: Final[dict[Status, str]] = {
    "used": "used",
    "low_coverage": "less than half observed",
    "no_data": "without data",
    "failed": "failed",
    "missing": "missing",
}
# What a reader should look into first, first.
_GAP_ORDER: Final = [_STATUS_NAMES[status] for status in ("failed", "missing", "no_data", "low_coverage")] + ["warning"]


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
        _summary(series, pictures),
        report_figures.daily(series),
        report_figures.distribution(series),
        report_figures.maps(fold, box, aspect),
        report_figures.animation(series, pictures, aspect),
        report_figures.contact_sheet(series, pictures, aspect),
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
        lead = f"On an average day <b>{percent(mean)}</b> of the box lay under cloud{_between(series)}."
    period = long_day(first) if first == last else f"{long_day(first)} to {long_day(last)}"
    if box is not None:
        period += f" · {chart.degrees(box.lat_min, 'N', 'S')}–{chart.degrees(box.lat_max, 'N', 'S')}"
        period += f", {chart.degrees(box.lon_min, 'E', 'W')}–{chart.degrees(box.lon_max, 'E', 'W')}"
    return (
        f'<header class="top"><p class="eyebrow">{escape(period)}</p><h1>{escape(title)}</h1>'
        f'<p class="lead">{lead}</p></header>'
    )


def _between(series: Series) -> str:
    by_day = {row.day: row for row in series.rows}
    clearest, cloudiest = series.statistics.clearest, series.statistics.cloudiest
    if clearest is None or cloudiest is None or clearest == cloudiest:
        return ""
    low, high = by_day[clearest], by_day[cloudiest]
    return (
        f", from <b>{percent(low.cloud_fraction)}</b> on {long_day(low.day)} to <b>{percent(high.cloud_fraction)}</b> "
        f"on {long_day(high.day)}"
    )


def _summary(series: Series, pictures: Mapping[date, bytes]) -> str:
    told = series.statistics
    count = {
        "used": told.days_used,
        "low_coverage": told.days_low_coverage,
        "no_data": told.days_no_data,
        "failed": told.days_failed,
        "missing": told.days_missing,
    }
    tiles = [
        ("mean of days", percent(told.mean), "each day weighs the same"),
        ("weighted by area", percent(told.mean_area), "rows by their size on the globe"),
        (
            "median",
            percent(told.median),
            f"quartiles {percent(told.low_quartile)} and {percent(told.high_quartile)}",
        ),
        ("days used", str(told.days_used), f"of {told.days_asked} asked for"),
    ]
    strip = "".join(f'<i class="s-{status}" style="flex:{count[status]}"></i>' for status in STATUSES if count[status])
    legend = "".join(
        f'<li><i class="s-{status}"></i><b>{count[status]}</b> {_STATUS_NAMES[status]}</li>' for status in STATUSES
    )
    by_day = {row.day: row for row in series.rows}
    extremes = "".join(
        _extreme(name, by_day[day], pictures.get(day))
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


def _extreme(name: str, row: Row, thumbnail: bytes | None) -> str:
    image = ""
    if thumbnail is not None:
        image = f'<img alt="{row.day}" src="{data_url(thumbnail, "image/jpeg")}">'
    return (
        f'<div class="card extreme">{image}<div><span class="kind">{name}</span><strong>{percent(row.cloud_fraction)}'
        f"</strong>{long_day(row.day)}<br><small>observed {percent(row.valid_fraction)}</small></div></div>"
    )


def _gaps(rows: Sequence[Row]) -> str:
    """List what kept days out and what they were warned of, days of the same reason together."""
    groups: dict[tuple[str, str], list[date]] = {}
    for row in rows:
        if row.status == "low_coverage":  # the reason of each names its own share
            groups.setdefault((_STATUS_NAMES[row.status], "shown hollow and left out of means"), []).append(row.day)
        elif not row.used:
            groups.setdefault((_STATUS_NAMES[row.status], row.reason or ""), []).append(row.day)
        for warning in row.warnings:
            # A warning that repeats the reason for leaving the day out says nothing new.
            if row.used:
                groups.setdefault(("warning", warning), []).append(row.day)
    if not groups:
        return '<section class="card"><h2>Gaps and warnings</h2><p class="note">None: every day asked for was used.</p></section>'
    lines = "".join(
        f"<li><b>{escape(kind)}</b><span>{escape(reason)}</span><small>{len(days)} {'day' if len(days) == 1 else 'days'}: "
        f"{escape(some_days(days))}</small></li>"
        for (kind, reason), days in sorted(groups.items(), key=lambda group: _GAP_ORDER.index(group[0][0]))
    )
    return f'<section class="card"><h2>Gaps and warnings</h2><ul class="told">{lines}</ul></section>'


def _table(rows: Sequence[Row]) -> str:
    columns = ("cloud", "by area", "thick", "observed", "7 days")
    lines = "".join(
        f'<tr><td class="d">{row.day}</td>'
        + "".join(
            f'<td class="n">{percent(value)}</td>'
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
        f"<dt>{escape(str(name).replace('_', ' '))}</dt><dd>{escape(plain(value))}</dd>"
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
<script type="application/json" id="days">{script_json(days)}</script>
<script>
{script}</script>
</body>
</html>
"""


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
