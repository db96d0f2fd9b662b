"""What the command line says: mistakes in one line before anything starts, and progress that fits the terminal."""

from __future__ import annotations

import io
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from clouds_run import ROOT, run

from clouds.__main__ import main
from clouds.cli.line import Line
from clouds.cli.options import parse_run
from clouds.pipeline import Progress

DAYS = ["--start", "2021-01-01", "--end", "2021-01-03"]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a farm would keep its state if one were started."""
    home = tmp_path / "home"
    monkeypatch.setenv("XDG_STATE_HOME", str(home))
    yield home
    assert not home.exists(), "a mistake started a farm"


MISTAKES = [
    ([], "the following arguments are required: --out"),
    ([*DAYS, "--out"], "--out: expected one argument"),
    (["--out", "OUT"], "give --start and --end, or --days"),
    (["--start", "2021-02-30", "--end", "2021-03-01", "--out", "OUT"], "--start: '2021-02-30' is not a day"),
    (
        ["--start", "yesterday", "--end", "2021-03-01", "--out", "OUT"],
        "'yesterday' is not a day; write it as 2021-02-16",
    ),
    (["--start", "2021-02-01", "--end", "2021-01-01", "--out", "OUT"], "--end 2021-01-01 is before --start 2021-02-01"),
    (["--start", "1900-01-01", "--end", "2021-01-01", "--out", "OUT"], "more than 20000 days"),
    ([*DAYS, "--days", "2021-01-01", "--out", "OUT"], "give either --days or --start and --end"),
    (["--days", "2021-01-01,soon", "--out", "OUT"], "'soon' is not a day"),
    ([*DAYS, "--bbox", "70,10,55,24", "--out", "OUT"], "lat_min is north of lat_max, swap them"),
    ([*DAYS, "--bbox", "55,24,70,10", "--out", "OUT"], "lon_min is east of lon_max, swap them"),
    ([*DAYS, "--bbox", "-95,10,70,24", "--out", "OUT"], "box -95,10,70,24: a latitude is outside -90..90"),
    ([*DAYS, "--bbox", "10,-200,20,24", "--out", "OUT"], "a longitude is outside -180..180"),
    ([*DAYS, "--bbox", "a,b,c,d", "--out", "OUT"], "holds something that is not a number"),
    ([*DAYS, "--bbox", "1,2,3", "--out", "OUT"], "has 3 numbers, not 4"),
    ([*DAYS, "--bbox", "10,10,10,20", "--out", "OUT"], "has no area"),
    ([*DAYS, "--crs", "EPSG:3413", "--out", "OUT"], "--crs EPSG:3413 needs --bbox x_min,y_min,x_max,y_max in metres"),
    ([*DAYS, "--crs", "EPSG:3413", "--bbox", "-1e6,0,x,1e6", "--out", "OUT"], "is not four numbers"),
    ([*DAYS, "--crs", "EPSG:1", "--bbox", "0,0,1,1", "--out", "OUT"], "crs 'EPSG:1' is not served; use EPSG:4326"),
    ([*DAYS, "--source", "esa", "--out", "OUT"], "--source esa: give nasa, standin or dir:PATH"),
    ([*DAYS, "--source", "dir:/no/such", "--out", "OUT"], "--source dir:/no/such: /no/such is not a folder"),
    ([*DAYS, "--size", "9000x100", "--out", "OUT"], "a picture of 9000x100 cannot be had, 1 to 8200 pixels a side can"),
    ([*DAYS, "--size", "big", "--out", "OUT"], "--size big: write it as 800x600"),
    ([*DAYS, "--km", "0.05", "--out", "OUT"], "cannot be had, 1 to 8200 pixels a side can"),
    ([*DAYS, "--km", "nan", "--out", "OUT"], "nan kilometres a pixel make no picture"),
    ([*DAYS, "--format", "image/gif", "--out", "OUT"], "format 'image/gif' cannot be analysed"),
    ([*DAYS, "--layers", "", "--out", "OUT"], "give at least one layer name"),
    ([*DAYS, "--style", "wmts", "--out", "OUT"], "style 'wmts' is unknown; use snapshot or wms"),
    ([*DAYS, "--service-url", "ftp://x/", "--out", "OUT"], "is not a plain http:// or https:// address"),
    ([*DAYS, "--snow-screen", "maybe", "--out", "OUT"], "--snow-screen maybe: give auto, on or off"),
    ([*DAYS, "--requests", "0", "--out", "OUT"], "--requests 0: give at least 1"),
    ([*DAYS, "--connect", "localhost", "--out", "OUT"], "address 'localhost' is not HOST:PORT"),
    ([*DAYS, "--connect", "localhost:99999", "--out", "OUT"], "address 'localhost:99999' is not HOST:PORT"),
    ([*DAYS, "--tls-cert", "FILE", "--connect", "localhost:1", "--out", "OUT"], "--tls-cert FILE: "),
    ([*DAYS, "--tls-ca", "x.pem", "--out", "OUT"], "--tls-* are for the farm of --connect"),
    ([*DAYS, "--out", "FILE"], "FILE is not a folder; give one"),
    ([*DAYS, "--out", "FILE/below"], "FILE/below cannot be written: Not a directory"),
    ([*DAYS, "--speed", "9", "--out", "OUT"], "unrecognized arguments: --speed 9"),
    (["analyse", "/no/such.jpg", "--out", "OUT"], "cannot read /no/such.jpg: No such file or directory"),
    (["analyse", "FILE", "--out", "OUT"], "FILE: the picture"),
    (["analyse", "FILE", "--bbox", "1,2", "--out", "OUT"], "--bbox: box '1,2' has 2 numbers, not 4"),
]


@pytest.mark.parametrize(("arguments", "told"), MISTAKES, ids=[told for _, told in MISTAKES])
def test_a_mistake_is_told_in_one_line_and_nothing_starts(
    arguments: list[str], told: str, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "FILE").write_text("not a folder, nor a picture")
    given = [re.sub("^(OUT|FILE)", lambda name: str(tmp_path / name[0]), word) for word in arguments]
    assert main(given) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("clouds: ")
    assert err.count("\n") == 1
    assert told in err.replace(f"{tmp_path}/", "")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written == [tmp_path / "FILE"]


@pytest.mark.slow
def test_nobody_at_the_address_is_told_in_one_line(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and not listening
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main([*DAYS, "--connect", address, "--out", str(tmp_path)]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"clouds: no farm answers at {address} (connection refused): check the address")
    assert err.count("\n") == 1


@pytest.mark.slow
def test_a_folder_without_pictures_is_told_in_one_line(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    state = tmp_path / "state"
    done = run([*DAYS, "--source", f"dir:{empty}", "--state", str(state), "--out", str(tmp_path)])
    assert done.code == 2
    assert done.err[-1] == (
        f"clouds: the stand-in server did not start: {empty} has no .jpg or .png with a day (YYYY-MM-DD) in its name"
    )
    assert not list((state / "storage").rglob("*source*"))


@pytest.mark.slow
def test_a_state_that_is_a_file_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    done = run([*DAYS, "--source", "standin", "--state", str(tmp_path / "state"), "--out", str(tmp_path / "out")])
    assert (done.code, done.out) == (2, [])
    assert done.err == [f"clouds: --state {tmp_path / 'state'} is not a folder; give one"]


def test_help_and_mistakes_load_neither_arrays_nor_grpc(tmp_path: Path) -> None:
    code = (
        "import sys; from clouds.__main__ import main; assert main(['--out']) == 2; "
        "print([name for name in ('numpy', 'PIL', 'aiohttp', 'grpc') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_workers_learn_the_tasks_without_loading_arrays() -> None:
    code = (
        "import sys; import clouds.tasks; "
        "print([name for name in ('numpy', 'PIL', 'aiohttp', 'grpc', 'asyncio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_box_may_begin_below_zero(tmp_path: Path) -> None:
    made = parse_run([*DAYS, "--bbox", "-44,-5,-40.5,10", "--out", str(tmp_path)])
    assert str(made.request.area) == "-44,-5,-40.5,10"


def test_the_snow_screen_is_for_high_latitudes_in_winter(tmp_path: Path) -> None:
    def snowy(*more: str) -> int:
        return len(parse_run([*DAYS, "--out", str(tmp_path), *more]).request.snow_days)

    assert snowy() == 3
    assert snowy("--bbox", "10,-58,20,-48") == 0
    assert snowy("--bbox", "10,-58,20,-48", "--snow-screen", "on") == 3
    assert snowy("--snow-screen", "off") == 0
    assert snowy("--crs", "EPSG:3031", "--bbox", "-1e6,-1e6,1e6,1e6") == 3


# ---- the progress line ------------------------------------------------------------------------------------------------


class Screen(io.TextIOWrapper):
    """A terminal that keeps what is written."""

    def __init__(self, encoding: str = "utf-8") -> None:
        self.bytes = io.BytesIO()
        super().__init__(self.bytes, encoding=encoding, newline="")

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """What was shown, one entry for each state of the line."""
        self.flush()
        return re.split(r"\r\x1b\[K|\n", self.bytes.getvalue().decode(self.encoding))


def shown(progress: Progress, columns: int, monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8") -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    screen = Screen(encoding)
    line = Line(screen)
    line.begin(progress)
    line.show(progress)
    line.end()
    return screen.lines()[1]


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
@pytest.mark.parametrize("count", [2, 90, 20_000])
def test_progress_fits_the_terminal(columns: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress(asked=count, downloaded=count - 1, analysed=count // 2, failed=count // 3)
    text = shown(progress, columns, monkeypatch)
    assert len(text) < columns
    assert f"{count} days: {count - 1} downloaded"[: columns - 1] in text


def test_the_bar_shows_the_part_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    half = Progress(asked=12, known=2, downloaded=7, analysed=4, failed=1)
    assert shown(half, 100, monkeypatch).startswith(
        "█" * 15 + "░" * 15 + " 10 days: 7 downloaded, 4 analysed, 1 failed, "
    )
    assert shown(half, 100, monkeypatch, "ascii").startswith("#" * 15 + "." * 15 + " 10 days")


def test_a_note_takes_the_place_of_the_line_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    line = Line(screen)
    progress = Progress(asked=3)
    line.begin(progress)
    line.show(progress)
    line.note("analysis-1 ended (SIGKILL) and was started again")
    progress.analysed = progress.downloaded = 3
    line.show(progress)
    line.show(progress)
    line.end()
    first, bar, note, last, end = screen.lines()
    assert first == "3 days: 3 to download"
    assert bar.endswith("3 days: 0 downloaded, 0 analysed")
    assert note == "analysis-1 ended (SIGKILL) and was started again"
    assert last.endswith("3 days: 3 downloaded, 3 analysed")
    assert end == ""
