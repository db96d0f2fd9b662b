"""`python -m clouds`: daily cloud cover of a box over a range of days, on a farm; or of one picture without any.

Exit codes: 0 ok, 1 some days failed, 2 usage, 3 the farm cannot be reached, 4 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

from antfarm import __version__, aio, program
from antfarm.errors import AntFarmError, Weather
from antfarm.local import LocalFarm
from clouds import analyse, coverage, farm, fold, pipeline, worldview
from clouds.box import SWEDEN, Box
from clouds.catalogue import day_range
from clouds.errors import CloudsError
from clouds.tasks import Request

LINE_PAUSE_S = 0.2
PLAIN_PAUSE_S = 5.0
DAYS_MAX = 20_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] == ["analyse"]:
            return _analyse(given[1:])
        return _run(_parser().parse_args(given))
    except KeyboardInterrupt:
        print("clouds: interrupted; what is in Storage stays, run the same again to go on", file=sys.stderr)
        return program.EXIT_CANCELLED
    except (CloudsError, AntFarmError) as error:
        print(f"clouds: {' '.join(str(error).split())}", file=sys.stderr)
        return program.EXIT_CANNOT_CONNECT if isinstance(error, Weather) else program.EXIT_USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m clouds",
        description="Download daily satellite pictures of a box, measure their cloud cover, and report over all days.",
        epilog="One picture without a farm: python -m clouds analyse PICTURE [--bands721 PICTURE] --out DIR",
    )
    days = parser.add_argument_group("days and place")
    days.add_argument("--start", type=_day, metavar="DAY", help="first day, YYYY-MM-DD")
    days.add_argument("--end", type=_day, metavar="DAY", help="last day, included")
    days.add_argument("--days", metavar="DAY,DAY,...", help="single days instead of a range")
    days.add_argument(
        "--bbox", default=str(SWEDEN), help="lat_min,lon_min,lat_max,lon_max (default: Sweden, %(default)s)"
    )
    source = parser.add_argument_group("pictures")
    source.add_argument(
        "--source",
        default="nasa",
        help="nasa: the real service; standin: a server of our own that behaves like it; dir:PATH: real pictures from a folder",
    )
    source.add_argument("--seed", type=int, default=42, help="weather and faults of the stand-in (%(default)s)")
    source.add_argument("--calm", action="store_true", help="stand-in without faults")
    source.add_argument("--service-url", default="", help="another address of the service")
    source.add_argument("--style", default="snapshot", help="snapshot (Worldview) or wms (GIBS) (%(default)s)")
    source.add_argument("--layers", default=worldview.TRUE_COLOUR, help="comma list, bottom to top (%(default)s)")
    source.add_argument("--crs", default="EPSG:4326", help="EPSG:4326, 3413, 3031 or 3857 (%(default)s)")
    source.add_argument("--format", default="image/jpeg", help="image/jpeg or image/png (%(default)s)")
    source.add_argument("--km", type=float, default=2.0, help="kilometres a pixel (%(default)s)")
    source.add_argument("--size", metavar="WxH", help="pixels, instead of --km")
    source.add_argument(
        "--snow-screen", default="auto", help="Bands 7-2-1 against snow and ice: auto, on, off (%(default)s)"
    )
    source.add_argument(
        "--requests", type=int, default=3, help="requests at the same time for the whole farm (%(default)s)"
    )
    source.add_argument("--contact", default="", help="your address, for the User-Agent that NASA sees")
    where = parser.add_argument_group("farm and results")
    where.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="where report.html, series.csv and series.json go"
    )
    where.add_argument(
        "--connect", metavar="HOST:PORT", help="a running farm; default: one on this machine for the run"
    )
    where.add_argument(
        "--state",
        type=Path,
        metavar="DIR",
        help="state of the farm on this machine (default: ~/.local/state/antfarm/clouds)",
    )
    where.add_argument("--workers", type=int, default=2, help="analysis workers on this machine (%(default)s)")
    where.add_argument("--group", type=int, default=3, help="days that go through the stages together (%(default)s)")
    where.add_argument("--tls-cert", default="", metavar="FILE")
    where.add_argument("--tls-key", default="", metavar="FILE")
    where.add_argument("--tls-ca", default="", metavar="FILE")
    return parser


def _analyse(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m clouds analyse", description="Measure the cloud cover of one picture."
    )
    parser.add_argument("picture", type=Path)
    parser.add_argument("--bands721", type=Path, metavar="PICTURE", help="the Bands 7-2-1 picture of the same pass")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="gets mask.png, overlay.jpg and result.json"
    )
    options = parser.parse_args(arguments)
    result = analyse.analyse_files(options.picture, options.bands721, options.out)
    cloud = result["cloud_fraction"]
    shown = "no data" if cloud is None else f"{100 * cloud:.1f} % cloud"
    print(f"{options.picture}: {shown}, {100 * result['valid_fraction']:.1f} % observed")
    print(f"{options.out / 'result.json'}")
    return program.EXIT_OK


# ---- reading the arguments ------------------------------------------------------------------------------------------


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a day; write it as 2021-02-16") from None


def _days(options: argparse.Namespace) -> tuple[date, ...]:
    if options.days:
        try:
            return tuple(sorted({date.fromisoformat(part.strip()) for part in options.days.split(",")}))
        except ValueError as error:
            raise CloudsError(f"--days {options.days}: {error}; write days as 2021-02-16,2021-02-17") from None
    if options.start is None or options.end is None:
        raise CloudsError("give --start and --end, or --days")
    if options.end < options.start:
        raise CloudsError(f"--end {options.end} is before --start {options.start}; swap them")
    if (options.end - options.start).days >= DAYS_MAX:
        raise CloudsError(f"more than {DAYS_MAX} days; ask for a shorter range")
    return tuple(day_range(options.start, options.end))


def _area(options: argparse.Namespace) -> Box | worldview.Extent:
    if options.crs == "EPSG:4326":
        return Box.parse(options.bbox)
    try:
        x_min, y_min, x_max, y_max = (float(part) for part in options.bbox.split(","))
    except ValueError:
        raise CloudsError(f"--bbox {options.bbox}: {options.crs} takes x_min,y_min,x_max,y_max in metres") from None
    return worldview.Extent(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max)


def _service(options: argparse.Namespace, url: str, name: str) -> worldview.Service:
    width = height = None
    if options.size:
        try:
            width, height = (int(part) for part in options.size.lower().split("x"))
        except ValueError:
            raise CloudsError(f"--size {options.size}: write it as 800x600") from None
    made = worldview.Service(
        base_url=options.service_url or url,
        name=name,
        style=options.style,
        layers=tuple(options.layers.split(",")),
        crs=options.crs,
        format=options.format,
        km=options.km,
        width=width,
        height=height,
    )
    if options.contact:
        agent = f"antfarm-clouds/{__version__} (daily cloud cover of a box; contact: {options.contact})"
        made = replace(made, user_agent=agent)
    return made


@contextlib.contextmanager
def _source(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """(address, name for cache keys) of the service; the stand-in runs as long as this is open."""
    if options.source == "nasa":
        yield "", ""
    elif options.source == "standin":
        faults = [] if options.calm else ["--realistic"]
        with farm.standin(["--seed", str(options.seed), *faults]) as url:
            yield url, f"standin-{options.seed}{'-calm' if options.calm else ''}"
    elif options.source.startswith("dir:"):
        path = Path(options.source.removeprefix("dir:")).expanduser().resolve()
        with farm.standin(["--dir", str(path)]) as url:
            yield url, f"dir-{path}"
    else:
        raise CloudsError(f"--source {options.source}: give nasa, standin or dir:PATH")


# ---- running --------------------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    days, area = _days(options), _area(options)
    for name in ("requests", "workers", "group"):
        if getattr(options, name) < 1:
            raise CloudsError(f"--{name} {getattr(options, name)}: give at least 1")
    _service(options, "http://127.0.0.1/", "check").size(area)  # what is wrong with them is told before anything starts
    wants_snow = pipeline.snow_days(days, area, options.snow_screen)
    line = _Line()
    with contextlib.ExitStack() as stack:
        url, name = stack.enter_context(_source(options))
        service = _service(options, url, name)
        width, height = service.sizes(area)[-1]
        request = Request(
            service=service,
            area=area,
            series=worldview.cache_key(service, area),
            days=days,
            snow_days=wants_snow,
            requests_max=options.requests,
            grid=fold.grid_shape(width, height),
        )
        address = options.connect
        if address is None:
            local = stack.enter_context(LocalFarm(options.state or farm.default_state()))
            line.note(f"starting a farm: storage, 3 orchestrators, {1 + options.workers} workers ...")
            address = farm.start(local, workers=options.workers)
            stack.enter_context(farm.supervised(local, line.note))
        done = asyncio.run(_go(options, request, address, line))
    _summary(done)
    return program.EXIT_TASKS_FAILED if done.progress.failed else program.EXIT_OK


async def _go(options: argparse.Namespace, request: Request, address: str, line: _Line) -> pipeline.Run:
    tls = {"tls_cert": options.tls_cert, "tls_key": options.tls_key, "tls_ca": options.tls_ca}
    async with await aio.connect(address, **tls) as connected:
        return await pipeline.run(
            connected,
            request,
            options.out,
            group=options.group,
            say=line.show,
            title="Cloud cover",
            provenance={
                "source": options.source,
                "service": request.service.name or request.service.url,
                "layers": ", ".join(request.service.layers),
                "box": str(request.area),
                "crs": request.service.crs,
                "method": f"{coverage.METHOD} version {coverage.METHOD_VERSION}",
                "parameters": ", ".join(f"{name} {value}" for name, value in coverage.PARAMETERS.items()),
                "snow screen": f"Bands 7-2-1 asked for on {len(request.snow_days)} of {len(request.days)} days",
                "made": datetime.now(UTC).isoformat(timespec="seconds"),
                "software": f"AntFarm Clouds {__version__}",
            },
        )


def _summary(done: pipeline.Run) -> None:
    statistics = done.series.statistics
    print(
        f"{statistics.days_asked} days: {statistics.days_used} used, {statistics.days_low_coverage} with little coverage, "
        f"{statistics.days_no_data} without data, {statistics.days_failed} failed"
    )
    if statistics.mean is not None:
        print(
            f"mean cloud cover {100 * statistics.mean:.1f} %, clearest {statistics.clearest}, cloudiest {statistics.cloudiest}"
        )
    for row in done.series.rows:
        if row.status == "failed":
            print(f"  {row.day} failed: {(row.reason or '')[:150]}")
    for name in ("report.html", "series.csv", "series.json"):
        print(done.report.parent / name)


class _Line:
    """The progress line: rewritten in place on a terminal, one now and then elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._clear = "\r\x1b[K" if self._terminal else ""
        self._shown_at = 0.0
        self._told = False
        self._began = time.monotonic()

    def note(self, text: str) -> None:
        """A line that stays."""
        print(f"{self._clear}{text}", file=sys.stderr, flush=True)

    def show(self, progress: pipeline.Progress) -> None:
        """How far it is."""
        if not self._told:
            self._told = True
            self.note(
                f"{progress.asked} days: {progress.known} analysed before, {progress.had} downloaded before, "
                f"{progress.missing} to download"
            )
            self._began = time.monotonic()
        todo = progress.asked - progress.known
        now = time.monotonic()
        pause = LINE_PAUSE_S if self._terminal else PLAIN_PAUSE_S
        if not todo or (now - self._shown_at < pause and progress.ended < todo):
            return
        self._shown_at = now
        rate = progress.ended / max(now - self._began, 1e-6)
        left = f", {(todo - progress.ended) / rate:.0f} s left" if 0 < progress.ended < todo else ""
        filled = round(24 * progress.ended / todo)
        bar = "█" * filled + "░" * (24 - filled)
        text = f"{bar} downloaded {progress.downloaded}/{todo}, analysed {progress.analysed}, failed {progress.failed}{left}"
        end = "\n" if not self._terminal or progress.ended >= todo else ""
        print(f"{self._clear}{text}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
