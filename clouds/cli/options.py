"""The command line of a run, read and checked: whatever is wrong with it is told before anything starts.

Responsible for turning words into a request. Must not know of farms. The stand-in's address is not known before it runs, so a request is made with a
placeholder, which its key does not depend on.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import NoReturn

from antfarm import __version__
from antfarm.address import parse_address
from clouds.box import SWEDEN, Box
from clouds.catalogue import day_range
from clouds.errors import CloudsError
from clouds.method import snow_screen_wanted
from clouds.service import CRS_NAMES, TRUE_COLOUR, Extent, Service, cache_key
from clouds.tasks import Request

DAYS_MAX = 20_000
UNKNOWN_URL = "http://127.0.0.1/"

_USAGE = "python -m clouds --start DAY --end DAY --out DIR [--source SOURCE] [--bbox BOX] ..."
_DESCRIPTION = """\
Download daily satellite pictures of a box, measure their cloud cover, and
report over all days: report.html, series.csv and series.json. Days that an
earlier run has brought are not asked for again.
"""
_EPILOG = """\
examples:
  three months of a stand-in server, no internet needed:
    python -m clouds --source standin --start 2021-01-01 --end 2021-03-31 --out clouds-out
  a summer over the Alps from NASA:
    python -m clouds --start 2021-06-01 --end 2021-08-31 --bbox 44,5,48,16 --contact me@example.org --out alps
  one picture, without a farm:
    python -m clouds analyse PICTURE [--bands721 PICTURE] --out DIR

exit codes: 0 ok, 1 some days failed, 2 usage, 3 the farm cannot be reached, 4 interrupted
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """A run, as asked for."""

    request: Request
    """With a placeholder for the address of the service where `source_arguments` are given."""
    source: str
    source_arguments: tuple[str, ...] | None
    """Of the stand-in server that must run meanwhile; None: the service is there."""
    out: Path
    connect: str
    tls: tuple[str, str, str]
    """Paths of certificate, key and authority; empty without TLS."""
    state: Path | None
    workers: int
    group: int


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as everything else here does, and takes numbers below zero for what they are."""

    def error(self, message: str) -> NoReturn:
        raise CloudsError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse; `--bbox -10,20,0,30` is not an option named -1 to us."""
        joined: list[str] = []
        for word in arguments:
            if joined and joined[-1] == "--bbox" and word[:1] == "-" and word[1:2].isdigit():
                joined[-1] += f"={word}"
            else:
                joined.append(word)
        return self.parse_args(joined)


def parse_run(arguments: Sequence[str]) -> Options:
    """Read the arguments of a run; raises CloudsError for what cannot be used."""
    given = _run_parser().parse(arguments)
    for name in ("requests", "workers", "group"):
        if getattr(given, name) < 1:
            raise CloudsError(f"--{name} {getattr(given, name)}: give at least 1")
    tls = (given.tls_cert, given.tls_key, given.tls_ca)
    if any(tls) and not given.connect:
        raise CloudsError("--tls-* are for the farm of --connect; one on this machine needs none")
    days, area = _days(given), _area(given)
    source_arguments, name = _source(given)
    service = _service(given, UNKNOWN_URL if source_arguments is not None else "", name)
    request = Request(
        service=service,
        area=area,
        series=cache_key(service, area),
        days=days,
        snow_days=_snow_days(days, area, given.snow_screen),
        requests_max=given.requests,
    )
    _check_out(given.out)
    return Options(
        request=request,
        source=given.source,
        source_arguments=None if given.service_url else source_arguments,
        out=given.out,
        connect=parse_address(given.connect) if given.connect else "",
        tls=tls,
        state=given.state,
        workers=given.workers,
        group=given.group,
    )


def parse_analyse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the arguments of `analyse`: picture, bands721, out, day, bbox."""
    parser = _Parser(
        prog="python -m clouds analyse",
        description="Measure the cloud cover of one picture, without a farm.",
        allow_abbrev=False,
    )
    parser.add_argument("picture", type=Path, help="true-colour picture: JPEG, PNG or TIFF")
    parser.add_argument("--bands721", type=Path, metavar="PICTURE", help="the Bands 7-2-1 picture of the same pass")
    parser.add_argument("--day", type=_day, metavar="DAY", help="its day, YYYY-MM-DD, for the caption and the season")
    parser.add_argument("--bbox", type=_box, metavar="BOX", help="its box in degrees, for the fraction of the area")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="gets mask.png, overlay.jpg and result.json"
    )
    return parser.parse(arguments)


def _run_parser() -> _Parser:
    parser = _Parser(
        prog="python -m clouds",
        usage=_USAGE,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument_group("days and place").add_argument
    add("--start", type=_day, metavar="DAY", help="first day, YYYY-MM-DD")
    add("--end", type=_day, metavar="DAY", help="last day, included")
    add("--days", metavar="DAY,DAY,...", help="single days instead of a range")
    add("--bbox", metavar="BOX", help=f"lat_min,lon_min,lat_max,lon_max in degrees (default: Sweden, {SWEDEN})")

    add = parser.add_argument_group("pictures").add_argument
    add("--source", default="nasa", help="nasa, the real service; standin, a server of our own that behaves like it; "
        "dir:PATH, real pictures from a folder (default: %(default)s)")  # fmt: skip
    add("--seed", type=int, default=42, metavar="N", help="weather and faults of the stand-in (default: %(default)s)")
    add("--calm", action="store_true", help="a stand-in without faults")
    add("--service-url", default="", metavar="URL", help="another address of the service")
    add("--style", default="snapshot", help="snapshot (Worldview) or wms (GIBS) (default: %(default)s)")
    add("--layers", default=TRUE_COLOUR, metavar="NAME,...", help="drawn bottom to top (default: %(default)s)")
    add("--crs", default="EPSG:4326", help=f"{', '.join(CRS_NAMES)}; all but the first take --bbox as "
        "x_min,y_min,x_max,y_max in metres (default: %(default)s)")  # fmt: skip
    add("--format", default="image/jpeg", help="image/jpeg or image/png (default: %(default)s)")
    add("--km", type=float, default=2.0, metavar="KM", help="kilometres a pixel (default: %(default)s)")
    add("--size", metavar="WxH", help="pixels, instead of --km")
    add("--snow-screen", default="auto", metavar="WHEN", help="a second picture, Bands 7-2-1, to tell snow and ice from "
        "cloud: auto (beyond 45 degrees in winter), on or off (default: %(default)s)")  # fmt: skip
    add("--requests", type=int, default=3, metavar="N", help="requests at a time, over the whole farm (default: %(default)s)")  # fmt: skip
    add("--contact", default="", metavar="ADDRESS", help="your e-mail address, for the User-Agent that NASA sees")

    add = parser.add_argument_group("farm and results").add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="where report.html, series.csv and series.json go")
    add("--connect", default="", metavar="HOST:PORT", help="a farm that runs; default: one on this machine for the run")
    add("--state", type=Path, metavar="DIR", help="state of the farm on this machine, with its pictures "
        "(default: ~/.local/state/antfarm/clouds)")  # fmt: skip
    add("--workers", type=int, default=2, metavar="N", help="analysis workers on this machine (default: %(default)s)")
    add("--group", type=int, default=3, metavar="N", help="days that go through the stages together (default: %(default)s)")  # fmt: skip
    for name, what in (("cert", "certificate"), ("key", "its key"), ("ca", "who signed the farm's")):
        add(f"--tls-{name}", default="", metavar="FILE", help=f"mutual TLS with --connect: {what}")
    return parser


# ---- words to values ------------------------------------------------------------------------------------------------


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text.strip())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a day; write it as 2021-02-16") from None


def _box(text: str) -> Box:
    try:
        return Box.parse(text)
    except CloudsError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _days(given: argparse.Namespace) -> tuple[date, ...]:
    if given.days is not None:
        if given.start or given.end:
            raise CloudsError("give either --days or --start and --end")
        try:
            return tuple(sorted({_day(part) for part in given.days.split(",")}))
        except argparse.ArgumentTypeError as error:
            raise CloudsError(f"--days {given.days}: {error}") from None
    if given.start is None or given.end is None:
        raise CloudsError("give --start and --end, or --days")
    if given.end < given.start:
        raise CloudsError(f"--end {given.end} is before --start {given.start}; swap them")
    if given.end - given.start >= timedelta(days=DAYS_MAX):
        raise CloudsError(f"more than {DAYS_MAX} days; ask for a shorter range")
    return tuple(day_range(given.start, given.end))


def _area(given: argparse.Namespace) -> Box | Extent:
    if given.crs == "EPSG:4326":
        return SWEDEN if given.bbox is None else Box.parse(given.bbox)
    if given.bbox is None:
        raise CloudsError(f"--crs {given.crs} needs --bbox x_min,y_min,x_max,y_max in metres")
    return Extent.parse(given.bbox)


def _source(given: argparse.Namespace) -> tuple[tuple[str, ...] | None, str]:
    """(arguments of the stand-in, name for cache keys) of the service; the name outlives an address that changes from run to run."""
    if given.source == "nasa":
        return None, ""
    if given.source == "standin":
        faults = () if given.calm else ("--realistic",)
        return ("--seed", str(given.seed), *faults), f"standin-{given.seed}{'-calm' if given.calm else ''}"
    if given.source.startswith("dir:") and given.source != "dir:":
        path = Path(given.source.removeprefix("dir:")).expanduser().resolve()
        if not path.is_dir():
            raise CloudsError(f"--source {given.source}: {path} is not a folder")
        return ("--dir", str(path)), f"dir-{path}"
    raise CloudsError(f"--source {given.source}: give nasa, standin or dir:PATH")


def _service(given: argparse.Namespace, url: str, name: str) -> Service:
    width = height = None
    if given.size:
        try:
            width, height = (int(part) for part in given.size.lower().split("x"))
        except ValueError:
            raise CloudsError(f"--size {given.size}: write it as 800x600") from None
    made = Service(
        base_url=given.service_url or url,
        name=name,
        style=given.style,
        layers=tuple(given.layers.split(",")),
        crs=given.crs,
        format=given.format,
        km=given.km,
        width=width,
        height=height,
    )
    if given.contact:
        if not given.contact.isprintable():
            raise CloudsError(f"--contact {given.contact!r}: give an address that can stand in one line")
        agent = f"antfarm-clouds/{__version__} (daily cloud cover of a box; contact: {given.contact})"
        made = replace(made, user_agent=agent)
    return made


def _snow_days(days: Sequence[date], area: Box | Extent, mode: str) -> tuple[date, ...]:
    """The days that want the snow screen: `auto` asks the latitude and the season, `on` and `off` say it themselves."""
    if mode not in ("auto", "on", "off"):
        raise CloudsError(f"--snow-screen {mode}: give auto, on or off")
    if mode == "off":
        return ()
    if mode == "on" or isinstance(area, Extent):  # projected systems are polar ones
        return tuple(days)
    return tuple(day for day in days if snow_screen_wanted(area, day))


def _check_out(out: Path) -> None:
    """Find out before the first download whether the report can be written after the last."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except FileExistsError:
        raise CloudsError(f"--out {out} is not a folder; give one") from None
    except OSError as error:
        raise CloudsError(f"--out {out} cannot be written: {error.strerror or error}") from None
