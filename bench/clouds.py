"""`make bench-clouds`: pictures a second of Clouds' analysis, on its own farm and in a bare loop.

The farm is the one that `python -m clouds` brings along: an orchestrator on top, one below it for each stage, Storage, workers. Its download stage first
fetches a year of pictures of Sweden from the stand-in, in full size and with the Bands 7-2-1 pictures of the winter; then the analysis stage runs over all of
them, again and again, and what it stored is deleted in between. The bare loop is a pool of two processes that call the same functions on the same pictures
in files and write the same outputs to files, without a sync: what no farm can be faster than. Both take turns, both keep the memory of large arrays as the
application sets it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import antfarm as af
from antfarm.client.blocking import Farm
from antfarm.local import LocalFarm
from antfarm.storage import Storage
from bench.measure import cpu_s, timed
from clouds import farm as programs
from clouds.__main__ import PATHS
from clouds.catalogue import method_folder
from clouds.cli.options import parse_run
from clouds.service import cache_key
from clouds.tasks import Request

SLOTS = 2
START = date(2021, 1, 1)
GROUP = 3
"""Days that go through a stage together: the application's default."""
GOAL = 0.9
"""Of the bare loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Downloaded:
    """What the download stage has brought."""

    requests: list[Request]
    summaries: list[dict[str, Any]]

    @property
    def days(self) -> list[dict[str, Any]]:
        """The facts of each day, as the analysis stage gets them."""
        return [facts for summary in self.summaries for facts in summary["days"]]

    def first(self, groups: int) -> Downloaded:
        """The first groups alone."""
        return Downloaded(requests=self.requests[:groups], summaries=self.summaries[:groups])


def main() -> int:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m bench.clouds", description="Measure Clouds beside a bare loop.")
    parser.add_argument("--days", type=int, default=365, help="pictures (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (%(default)s)")
    options = parser.parse_args()
    rates: dict[str, list[float]] = {"farm": [], "bare": []}
    cpu_ms: dict[str, list[float]] = {"farm": [], "bare": []}
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch, LocalFarm() as local:
        programs.start(local, workers=SLOTS)
        with af.connect(local.address) as farm, Storage(local.storage_address) as storage:
            told(f"downloading {options.days} days from the stand-in")
            downloaded = download(farm, options.days, Path(scratch))
            days = days_in_files(storage, downloaded, Path(scratch))
            farm_pids = [program.pid for program in local.programs.values()]
            with bare_pool() as (pool, pids):
                sides: dict[str, tuple[Callable[[], None], Callable[[], float]]] = {
                    "farm": (partial(analyse_on, farm, downloaded), partial(cpu_s, farm_pids)),
                    "bare": (partial(analyse_bare, pool, days), partial(cpu_s, pids)),
                }
                analyse_on(farm, downloaded.first(2 * SLOTS))  # warm: the children load arrays and pictures
                clear(storage, downloaded)
                for number in range(options.rounds):
                    for side, (work, used_s) in sides.items():
                        before = used_s()
                        rates[side].append(len(days) / timed(work))
                        cpu_ms[side].append((used_s() - before) / len(days) * 1e3)
                        told(f"round {number + 1}: {side}, {rates[side][-1]:.1f} pictures/s")
                    clear(storage, downloaded)
    print(table(len(days), rates, cpu_ms))
    return 0


def told(text: str) -> None:
    """Say what is going on."""
    print(text, file=sys.stderr, flush=True)


def table(
    count: int, rates: dict[str, Sequence[float]] | dict[str, list[float]], cpu_ms: dict[str, list[float]]
) -> str:
    """Markdown: pictures a second and CPU of both, and what the farm reaches of the bare loop."""
    lines = [f"{count} pictures, {SLOTS} slots, {time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores", ""]
    lines += ["| | pictures/s: min / median / max | CPU ms a picture, all programs |", "|---|---|---|"]
    for side, name in (("farm", "Clouds on its farm"), ("bare", "a bare loop in two processes")):
        figures = " / ".join(f"{of(rates[side]):.1f}" for of in (min, statistics.median, max))
        lines.append(f"| {name} | {figures} | {statistics.median(cpu_ms[side]):.1f} |")
    share = statistics.median(ours / bare for ours, bare in zip(rates["farm"], rates["bare"], strict=True))
    lines += ["", f"The farm reaches {share:.0%} of the bare loop, median of the rounds; the goal is {GOAL:.0%}."]
    return "\n".join(lines)


# ---- the pictures -----------------------------------------------------------------------------------------------------


def download(farm: Farm, days: int, scratch: Path) -> Downloaded:
    """Run the application's download stage over so many days."""
    request, arguments = _request(days, scratch)
    with programs.standin(*arguments) as address:
        url = address() + PATHS[request.service.style]
        request = replace(request, service=replace(request.service, base_url=url))
        requests = list(_groups(request))
        summaries = list(farm.map("clouds.download", requests).results())
    failed = {day: reason for summary in summaries for day, reason in summary["failed"].items()}
    if failed:
        raise SystemExit(f"{len(failed)} days could not be downloaded: {next(iter(failed.items()))}")
    return Downloaded(requests=requests, summaries=summaries)


def _request(days: int, scratch: Path) -> tuple[Request, tuple[str, ...]]:
    """What the application would ask for, with a stand-in that never fails, and pictures of 1 km a pixel whose width the server leaves alone: 1642 x 1721."""
    last = START + timedelta(days=days - 1)
    words = ["--source", "standin", "--calm", "--km", "1", "--start", str(START), "--end", str(last)]
    options = parse_run([*words, "--out", str(scratch / "out")])
    assert options.source_arguments is not None
    request = options.request
    service = replace(request.service, autoscale=False)
    request = replace(request, service=service, series=cache_key(service, request.area), requests_max=8)
    return request, options.source_arguments


def _groups(request: Request) -> Iterator[Request]:
    snow = frozenset(request.snow_days)
    for start in range(0, len(request.days), GROUP):
        days = request.days[start : start + GROUP]
        yield replace(request, days=days, snow_days=tuple(day for day in days if day in snow))


# ---- on the farm ------------------------------------------------------------------------------------------------------


def analyse_on(farm: Farm, downloaded: Downloaded) -> None:
    """The analysis stage over all days. Every day must be analysed anew."""
    summaries = list(farm.map("clouds.analyse", downloaded.summaries, downloaded.requests).results())
    analysed = sum(summary["analysed"] for summary in summaries)
    if analysed != len(downloaded.days):
        raise SystemExit(f"{analysed} of {len(downloaded.days)} days were analysed")


def clear(storage: Storage, downloaded: Downloaded) -> None:
    """Delete what the analysis has stored, so that it is done again."""
    prefix = downloaded.requests[0].catalogue.prefix
    folders = {facts["folder"] + method_folder(snow_screen=facts["snow"]) for facts in downloaded.days}
    for blob in list(storage.list(prefix)):
        if blob.key.rpartition("/")[0] + "/" in folders:
            storage.delete(blob.key)


# ---- the bare loop ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """One day in files."""

    day: date
    folder: Path
    request: Request
    snow: bool


def days_in_files(storage: Storage, downloaded: Downloaded, scratch: Path) -> list[Day]:
    """The pictures of all days, read from Storage into a folder each."""
    request = replace(downloaded.requests[0], days=(), snow_days=())
    days = []
    for facts in downloaded.days:
        folder = scratch / facts["day"]
        folder.mkdir()
        for name in ("source", *(("bands721",) if facts["snow"] else ())):
            key = f"{facts['folder']}{name}.{request.catalogue.extension}"
            (folder / name).write_bytes(storage.get(key))
        days.append(Day(day=date.fromisoformat(facts["day"]), folder=folder, request=request, snow=facts["snow"]))
    return days


@contextmanager
def bare_pool() -> Iterator[tuple[ProcessPoolExecutor, list[int]]]:
    """Two processes, spawned as the farm's are, that have loaded what they need; and their numbers."""
    with ProcessPoolExecutor(SLOTS, mp_context=get_context("spawn"), initializer=load) as pool:
        pids: set[int] = set()
        while len(pids) < SLOTS:
            pids |= set(pool.map(pid_of_this, range(4 * SLOTS)))
        yield pool, sorted(pids)


def analyse_bare(pool: ProcessPoolExecutor, days: Sequence[Day]) -> None:
    """All days in the pool."""
    for _ in pool.map(measure_files, days):
        pass


def load() -> None:
    """Import what the analysis needs."""
    from clouds import analyse, fold  # noqa: F401


def pid_of_this(_: int) -> int:
    """The process that runs it, after a while, so that the others get some."""
    time.sleep(0.05)
    return os.getpid()


def measure_files(one: Day) -> None:
    """What `clouds.measure` does with one day, files in place of Storage."""
    from clouds import analyse, fold

    bands721 = (one.folder / "bands721").read_bytes() if one.snow else None
    picture = (one.folder / "source").read_bytes()
    done = analyse.analyse_picture(picture, day=one.day, box=one.request.box, bands721=bands721)
    day_fold = fold.fold_day(done.rgb, done.cover.mask, one.day, fold.grid_shape(*one.request.picture_size))
    for name, content in (
        ("overlay.jpg", done.overlay_jpg),
        ("mask.png", done.mask_png),
        ("thumbnail.jpg", done.thumbnail_jpg),
        ("fold.npz", fold.to_bytes(day_fold)),
        ("result.json", analyse.result_json(done.result)),
    ):
        (one.folder / name).write_bytes(content)


if __name__ == "__main__":
    sys.exit(main())
