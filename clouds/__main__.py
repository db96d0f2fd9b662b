"""`python -m clouds`: daily cloud cover of a box over a range of days, on a farm; or of one picture without any.

Exit codes: 0 ok, 1 some days failed, 2 usage, 3 the farm cannot be reached, 4 interrupted.

Arrays, pictures and gRPC are loaded by the functions that need them, so that help and mistakes are told at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from antfarm import __version__, program
from antfarm.errors import AntFarmError, UserError, Weather
from clouds.cli.options import Options, parse_analyse, parse_run
from clouds.errors import CloudsError
from clouds.method import METHOD, METHOD_VERSION

if TYPE_CHECKING:
    from antfarm import aio
    from antfarm.local import LocalFarm
    from clouds.cli.line import Line
    from clouds.pipeline import Found
    from clouds.series import Series

PATHS = {"snapshot": "/api/v1/snapshot", "wms": "/wms/epsg4326/best/wms.cgi"}
"""Where the stand-in answers each style of request."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _terminated_as_interrupted():
            if given[:1] == ["analyse"]:
                return _analyse(given[1:])
            return _run(parse_run(given))
    except KeyboardInterrupt:
        print("clouds: interrupted; what is in Storage stays, run the same again to go on", file=sys.stderr)
        return program.EXIT_CANCELLED
    except (CloudsError, AntFarmError) as error:
        line = str(error).partition("\n")[0]  # what may follow is the end of a log
        print(f"clouds: {line}", file=sys.stderr)
        if isinstance(error, Weather):
            return program.EXIT_CANNOT_CONNECT
        return program.EXIT_USAGE if isinstance(error, CloudsError | UserError) else program.EXIT_FAILED


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends a run in order, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A shell without job control starts background commands with SIGINT ignored, and asyncio handles it only where it is not.
    interrupt_before = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, interrupt_before)


def _analyse(arguments: Sequence[str]) -> int:
    options = parse_analyse(arguments)
    from clouds.analyse import analyse_files

    result = analyse_files(options.picture, options.bands721, options.out, day=options.day, box=options.bbox)
    print(
        f"{options.picture}: cloud {_percent(result['cloud_fraction'])}, observed {_percent(result['valid_fraction'])}"
    )
    for name in ("overlay.jpg", "mask.png", "result.json"):
        print(options.out / name)
    return program.EXIT_OK


# ---- a run ------------------------------------------------------------------------------------------------------------


def _run(options: Options) -> int:
    """Look what is missing, bring that, report. The farm and the stand-in start only when something is missing."""
    with contextlib.ExitStack() as stack:
        from clouds.cli.line import Line

        line = Line()
        local = None
        if options.connect:
            storage = asyncio.run(_storage_of(options))
        else:
            from clouds import farm

            local = stack.enter_context(farm.claimed(options.state or farm.default_state(), line.note))
            storage = farm.whole(local.start_storage)
        found = asyncio.run(_survey(options, storage))
        line.begin(found.progress)
        if found.wanted:
            _bring(options, local, found, line)
        series = asyncio.run(_report(options, storage, found))
    _tell(series, options.out)
    return program.EXIT_TASKS_FAILED if series.statistics.days_failed else program.EXIT_OK


async def _connect(options: Options, address: str) -> aio.Farm:
    from antfarm import aio

    cert, key, authority = options.tls
    return await aio.connect(address, tls_cert=cert, tls_key=key, tls_ca=authority)


async def _storage_of(options: Options) -> str:
    async with await _connect(options, options.connect) as connected:
        return connected.connection.storage().address


async def _survey(options: Options, storage: str) -> Found:
    from antfarm.net import Tls
    from antfarm.storage import AsyncStorage
    from clouds import pipeline

    async with AsyncStorage(storage, Tls.from_paths(*options.tls)) as opened:
        return await pipeline.survey(opened, options.request)


def _bring(options: Options, local: LocalFarm | None, found: Found, line: Line) -> None:
    """Bring the missing days, on the farm of `--connect` or on one of our own."""
    from clouds import farm

    with contextlib.ExitStack() as stack:
        request = options.request
        wait_for_standin = None
        if options.source_arguments is not None:
            wait_for_standin = stack.enter_context(farm.standin(*options.source_arguments))
        address, owner = options.connect, f"{os.uname().nodename}:{options.out.resolve()}"
        if local is not None:
            line.note(f"starting a farm: storage, 3 orchestrators, {1 + options.workers} workers ...")
            owner = "the farm of this run"
            address = farm.whole(partial(farm.start, local, workers=options.workers))
            stack.enter_context(farm.supervised(local, line.note))
        if wait_for_standin is not None:
            url = wait_for_standin() + PATHS[request.service.style]
            request = replace(request, service=replace(request.service, base_url=url))
        asyncio.run(_work(replace(options, request=request), address, owner, found, line))


async def _work(options: Options, address: str, owner: str, found: Found, line: Line) -> None:
    from clouds import pipeline

    try:
        async with await _connect(options, address) as connected:
            await pipeline.bring(
                connected, options.request, found, group=options.group, owner=owner[-200:], say=line.show
            )
    finally:
        line.end()


async def _report(options: Options, storage: str, found: Found) -> Series:
    from antfarm.net import Tls
    from antfarm.storage import AsyncStorage
    from clouds import collect

    async with AsyncStorage(storage, Tls.from_paths(*options.tls)) as opened:
        return await collect.write_report(
            opened, options.request, found, options.out, title="Cloud cover", provenance=_provenance(options, found)
        )


def _provenance(options: Options, found: Found) -> dict[str, object]:
    from clouds.coverage import PARAMETERS

    request = options.request
    return {
        "source": options.source,
        "service": request.service.name or request.service.url,
        "layers": request.service.layers,
        "box": request.area,
        "crs": request.service.crs,
        "picture": f"{' x '.join(map(str, request.picture_size))} pixels, {request.service.format}",
        "method": f"{METHOD} version {METHOD_VERSION}",
        "parameters": PARAMETERS,
        "snow screen": f"Bands 7-2-1 asked for on {len(request.snow_days)} of {len(request.days)} days",
        "days": f"{found.progress.known} from earlier runs, {found.progress.analysed} from this one",
        "in Storage": request.catalogue.prefix,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "software": f"AntFarm Clouds {__version__}",
    }


# ---- telling ----------------------------------------------------------------------------------------------------------


def _tell(series: Series, out: Path) -> None:
    """The sum of it on standard output, days that failed by their reason, then where the report is."""
    from clouds.wording import some_days

    told = series.statistics
    parts = [
        f"{count} {what}"
        for count, what in (
            (told.days_low_coverage, "with less than half observed"),
            (told.days_no_data, "without data"),
            (told.days_failed, "failed"),
            (told.days_missing, "missing"),
        )
        if count
    ]
    print(f"{told.days_asked} days: {', '.join([f'{told.days_used} used', *parts])}")
    if told.mean is not None:
        by_day = {row.day: _percent(row.cloud_fraction) for row in series.rows}
        print(f"mean cloud cover {_percent(told.mean)}", end="")
        if told.clearest is not None and told.cloudiest is not None and told.clearest != told.cloudiest:
            print(f", clearest {told.clearest} ({by_day[told.clearest]})", end="")
            print(f", cloudiest {told.cloudiest} ({by_day[told.cloudiest]})", end="")
        print()
    reasons: dict[str, list[date]] = {}
    for row in series.rows:
        if row.status == "failed":
            # Days that fail for one reason fail in the same words but for the day itself.
            reasons.setdefault((row.reason or "").replace(row.day.isoformat(), "DAY"), []).append(row.day)
    for reason, days in reasons.items():
        words = reason if len(days) > 1 else reason.replace("DAY", days[0].isoformat())
        print(f"failed: {some_days(days)}: {words}")
    for name in ("report.html", "series.csv", "series.json"):
        print(out / name)


def _percent(fraction: float | None) -> str:
    return "no data" if fraction is None else f"{100 * fraction:.1f} %"


if __name__ == "__main__":
    sys.exit(main())
