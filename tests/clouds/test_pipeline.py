"""Whole runs on a farm of real programs: from the service's bytes to series and page."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from csv import DictReader
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from clouds_run import (
    FIRST,
    SHARED,
    Server,
    arguments_for,
    assert_nothing_false,
    blobs,
    days_from,
    results,
    run,
    series_of,
    serving,
)
from conftest import RunningFarm
from PIL import Image

from clouds.analyse import analyse_picture
from clouds.box import Box

pytestmark = pytest.mark.slow

TRADES = SHARED / "trades"
TRUTH_ERROR_MAX, TRUTH_ERROR_MEAN_MAX = 0.08, 0.04
"""How far the method may be from the stand-in's truth, on one day and on average; its own tests hold it to the same."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A stand-in without faults."""
    with serving("--seed", "1") as standin:
        yield standin


@pytest.mark.skipif(not TRADES.is_dir(), reason="the shared pictures are not beside the repository")
def test_real_pictures_come_out_as_when_analysed_directly(running_farm: RunningFarm, tmp_path: Path) -> None:
    files = {date.fromisoformat(path.stem.partition("_")[2]): path for path in sorted(TRADES.glob("*.jpg"))}
    assert len(files) == 11
    asked = ",".join(day.isoformat() for day in files)
    done = run(
        [
            *("--source", f"dir:{TRADES}", "--bbox", "10,-58,20,-48", "--size", "1000x1000"),
            *("--days", asked, "--out", str(tmp_path), "--connect", running_farm.address),
        ]
    )
    assert done.code == 0
    assert list(done.series) == list(files)
    with (SHARED / "reference.csv").open() as text:
        reference = {row["file"]: row for row in DictReader(text)}
    box = Box.parse("10,-58,20,-48")
    for day, path in files.items():
        body = path.read_bytes()
        direct = analyse_picture(body, day=day, box=box).result
        row = done.series[day]
        assert row["sha256"] == hashlib.sha256(body).hexdigest()
        for name in ("cloud_fraction", "cloud_fraction_area", "valid_fraction", "thick_fraction"):
            assert float(row[name]) == direct[name], (day, name)
        told = reference[f"trades/{path.name}"]
        assert float(row["cloud_fraction"]) == pytest.approx(float(told["prototype_cloud_fraction"]), abs=0.02)
        assert float(row["valid_fraction"]) == pytest.approx(float(told["valid_fraction"]), abs=0.02)
    page = (tmp_path / "report.html").read_text()
    assert "11 days asked for" in page
    assert page.count("<svg") >= 2


def test_a_calm_run_is_the_truth_and_lies_in_storage_as_documented(
    running_farm: RunningFarm, server: Server, tmp_path: Path
) -> None:
    days = days_from(FIRST, 12)
    done = run(arguments_for(server, tmp_path, FIRST, 12, "--connect", running_farm.address))
    assert done.code == 0
    assert done.statuses == {"used": 12}
    assert done.out[0] == "12 days: 12 used"
    assert done.out[-3:] == [str(tmp_path / name) for name in ("report.html", "series.csv", "series.json")]

    stored = blobs(running_farm.storage)
    prefix = f"clouds/{series_of(server, stored)}/"
    names = ("source.jpg", "source.json", *(f"F1/{name}" for name in ANALYSIS))
    assert {key for key in stored if key.startswith(prefix)} == {
        f"{prefix}{day}/{name}" for day in days for name in names
    }
    assert_nothing_false(stored)

    errors = []
    for day in days:
        facts = json.loads(stored[f"{prefix}{day}/source.json"])
        sent = server.get(facts["url"])
        assert hashlib.sha256(sent).hexdigest() == facts["sha256"], f"{day} is not what the server sends"
        truth = json.loads(server.get(facts["url"].replace("/api/v1/snapshot", "/truth") + "&AS=json"))
        row = done.series[day]
        assert float(row["valid_fraction"]) == pytest.approx(truth["valid"], abs=0.01)
        errors.append(abs(float(row["cloud_fraction"]) - truth["cloud"]))
        result = json.loads(stored[f"{prefix}{day}/F1/result.json"])
        assert (result["crs"], result["box"]) == ("EPSG:4326", [40.0, 5.0, 44.0, 10.0])
        assert result["snow_screen"] is False
        assert result["seconds"]["fetch"] > 0
    assert max(errors) < TRUTH_ERROR_MAX
    assert sum(errors) / len(errors) < TRUTH_ERROR_MEAN_MAX


ANALYSIS = ("overlay.jpg", "mask.png", "thumbnail.jpg", "fold.npz", "result.json")


def test_an_overlapping_run_brings_only_what_is_missing(running_farm: RunningFarm, tmp_path: Path) -> None:
    with serving("--seed", "2") as server:

        def ask(count: int) -> list[str]:
            return arguments_for(server, tmp_path, FIRST, count, "--connect", running_farm.address, seed=2)

        first = run(ask(4))
        assert first.err[0] == "4 days: 4 to download"
        assert server.stats()["requests"] == 4

        second = run(ask(7))
        assert second.err[0] == "7 days: 4 analysed before, 3 to download"
        stats = server.stats()
        assert (stats["requests"], stats["needless"]) == (7, 0)
        assert set(stats["by_day"]) == {day.isoformat() for day in days_from(FIRST, 7)}
        for day in days_from(FIRST, 4):
            # The mean over a week sees more days now; nothing else of a finished day changes.
            assert first.series[day] | {"cloud_fraction_7day": ""} == second.series[day] | {"cloud_fraction_7day": ""}

        page = (tmp_path / "report.html").read_text()
        third = run(ask(7))
        assert third.err == ["7 days: 7 analysed before"]
        assert third.series == second.series
        assert server.stats()["requests"] == 7
        assert "7 from earlier runs, 0 from this one" in (tmp_path / "report.html").read_text()
        assert "4 from earlier runs, 3 from this one" in page


def test_a_day_downloaded_before_is_only_analysed(running_farm: RunningFarm, tmp_path: Path) -> None:
    with serving("--seed", "3") as server:
        ask = arguments_for(server, tmp_path, FIRST, 2, "--connect", running_farm.address, seed=3)
        first = run(ask)
        stored = blobs(running_farm.storage)
        lost = [key for key in stored if key.startswith(f"clouds/{series_of(server, stored)}/") and "/F1/" in key]
        for key in lost:
            running_farm.storage.delete(key)
        second = run(ask)
        assert second.err[0] == "2 days: 2 downloaded before"
        assert second.series == first.series
        assert server.stats()["requests"] == 2


def test_what_an_earlier_attempt_has_stored_stands_and_the_rest_is_added(
    running_farm: RunningFarm, tmp_path: Path
) -> None:
    """It may have said the same in other bytes, those of another JPEG library say."""
    with serving("--seed", "13") as server:
        ask = arguments_for(server, tmp_path, FIRST, 1, "--connect", running_farm.address, seed=13)
        first = run(ask)
        series = f"clouds/{series_of(server, blobs(running_farm.storage))}/"
        folder = f"{series}{FIRST}/F1/"
        stored = blobs(running_farm.storage, folder)
        for key in stored.keys() - {f"{folder}mask.png"}:
            running_farm.storage.delete(key)
        overlay = stored[f"{folder}overlay.jpg"] + b"\0"
        running_farm.storage.put(f"{folder}overlay.jpg", overlay)
        assert run(ask).series == first.series
        again = blobs(running_farm.storage, folder)
        assert again.keys() == stored.keys()
        assert again[f"{folder}overlay.jpg"] == overlay


def test_a_result_that_is_lost_costs_its_day_and_not_the_report(running_farm: RunningFarm, tmp_path: Path) -> None:
    with serving("--seed", "4") as server:
        ask = arguments_for(server, tmp_path, FIRST, 3, "--connect", running_farm.address, seed=4)
        run(ask)
        second = FIRST + timedelta(days=1)
        running_farm.storage.delete(f"clouds/{series_of(server, blobs(running_farm.storage))}/{second}/F1/fold.npz")
        again = run(ask)
        assert again.code == 1
        assert again.statuses == {"used": 2, "failed": 1}
        assert again.series[second]["reason"].startswith("its analysis in Storage cannot be read")


def test_the_snow_screen_is_a_second_picture_of_the_same_day(running_farm: RunningFarm, tmp_path: Path) -> None:
    with serving("--seed", "5") as server:

        def ask(screen: str) -> list[str]:
            more = ("--connect", running_farm.address, "--snow-screen", screen)
            return arguments_for(server, tmp_path, FIRST, 2, *more, seed=5)

        plain = run(ask("off"))
        assert {row["snow_screen"] for row in plain.series.values()} == {"false"}
        screened = run(ask("on"))
        assert screened.err[0] == "2 days: 2 to download"  # a picture that was analysed without is not enough
        assert {row["snow_screen"] for row in screened.series.values()} == {"true"}
        assert server.stats()["requests"] == 4
        assert server.stats()["needless"] == 0
        assert run(ask("off")).series == plain.series
        assert run(ask("on")).series == screened.series
        assert server.stats()["requests"] == 4
    assert_nothing_false(blobs(running_farm.storage))


@pytest.mark.skipif(not TRADES.is_dir(), reason="the shared pictures are not beside the repository")
def test_a_day_without_its_second_picture_goes_on_without_and_is_not_asked_for_again(
    running_farm: RunningFarm, tmp_path: Path
) -> None:
    with serving("--dir", str(TRADES)) as server:
        ask = [
            *("--source", f"dir:{TRADES}", "--service-url", server.url, "--bbox", "10,-58,20,-48", "--size", "300x300"),
            *("--days", "2008-02-21", "--snow-screen", "on", "--out", str(tmp_path), "--connect", running_farm.address),
        ]
        first = run(ask)
        assert first.code == 0
        row = first.series[date(2008, 2, 21)]
        assert row["snow_screen"] == "false"
        assert "no snow screen: the service refused the request (HTTP 404): InvalidParameterValue" in row["warnings"]
        assert server.stats()["requests"] == 2
        assert run(ask).series == first.series
        assert server.stats()["requests"] == 2


@pytest.mark.parametrize("more", [("--format", "image/png"), ("--style", "wms")], ids=["png", "wms"])
def test_other_ways_to_ask_give_the_same_cloud(
    running_farm: RunningFarm, server: Server, tmp_path: Path, more: tuple[str, ...]
) -> None:
    given = arguments_for(server, tmp_path, FIRST, 1, "--connect", running_farm.address, *more)
    if "wms" in more:
        given[given.index("--service-url") + 1] = f"{server.root}/wms/epsg4326/best/wms.cgi"
    done = run(given)
    assert done.code == 0
    plain = run(arguments_for(server, tmp_path / "plain", FIRST, 1, "--connect", running_farm.address))
    other, usual = (float(ran.series[FIRST]["cloud_fraction"]) for ran in (done, plain))
    assert other == pytest.approx(usual, abs=0.02)
    assert_nothing_false(blobs(running_farm.storage))


def test_days_too_young_are_provisional_or_refused(running_farm: RunningFarm, server: Server, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    if now.hour == 23 and now.minute >= 58:
        pytest.skip("the day may end during the test")
    today = now.date()
    ask = arguments_for(server, tmp_path, today - timedelta(days=4), 5, "--connect", running_farm.address, seed=6)
    done = run(ask)
    assert done.code == 1
    assert done.series[today]["status"] == "failed"
    assert "is too new" in done.series[today]["reason"]
    assert [row["provisional"] for row in done.series.values()] == ["false", "false", "true", "true", ""]
    again = run(ask)
    assert again.err[0] == "5 days: 4 analysed before, 1 to download"
    young = {key for key in blobs(running_farm.storage) if ".provisional-" in key}
    assert {key.split("/")[2] for key in young} == {
        f"{today - timedelta(days=age)}.provisional-{today}" for age in (1, 2)
    }


class _Polar(BaseHTTPRequestHandler):
    """A service of projected pictures: half ice, half cloud, whatever is asked for."""

    asked: list[dict[str, list[str]]]

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        type(self).asked.append(query)
        width, height = int(query["WIDTH"][0]), int(query["HEIGHT"][0])
        image = Image.new("RGB", (width, height), (10, 30, 60))
        image.paste((230, 232, 235), (0, 0, width, height // 2))
        body = BytesIO()
        image.save(body, "JPEG", quality=95)
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", str(len(body.getvalue())))
        self.end_headers()
        self.wfile.write(body.getvalue())

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_polar_box_is_in_metres_and_has_no_areas(running_farm: RunningFarm, tmp_path: Path) -> None:
    _Polar.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), _Polar) as service:
        thread = threading.Thread(target=service.serve_forever)
        thread.start()
        try:
            done = run(
                [
                    *("--service-url", f"http://127.0.0.1:{service.server_port}/", "--crs", "EPSG:3413"),
                    *("--bbox", "-1234567.5,-2000000,565432.5,-200000", "--km", "20", "--snow-screen", "off"),
                    *("--days", "2021-06-01", "--out", str(tmp_path), "--connect", running_farm.address),
                ]
            )
        finally:
            service.shutdown()
            thread.join()
    assert done.code == 0
    (query,) = _Polar.asked
    assert query["BBOX"] == ["-1234567.5,-2000000,565432.5,-200000"]
    assert query["CRS"] == ["EPSG:3413"]
    row = done.series[date(2021, 6, 1)]
    assert float(row["cloud_fraction"]) == pytest.approx(0.5, abs=0.1)
    assert row["cloud_fraction_area"] == ""
    found = results(blobs(running_farm.storage))
    (result,) = [result for result in found if result["crs"] == "EPSG:3413"]
    assert result["box"] == [-1234567.5, -2000000.0, 565432.5, -200000.0]
    assert (result["width"], result["height"]) == (90, 90)


def test_a_layer_that_is_unknown_is_quoted_and_not_asked_for_for_ever(
    running_farm: RunningFarm, tmp_path: Path
) -> None:
    with serving("--seed", "7") as server:
        more = ("--connect", running_farm.address, "--layers", "MODIS_Terra_TrueColour")
        done = run(arguments_for(server, tmp_path, FIRST, 300, *more, seed=7))
        assert done.code == 1
        assert done.statuses == {"failed": 300}
        reasons = [row["reason"] for row in done.series.values()]
        quoted = [why for why in reasons if "LayerNotDefined: Unable to access -- invalid LAYER(s)" in why]
        assert 20 <= len(quoted) < 250
        assert len(set(quoted)) == 1
        (rest,) = {why for why in reasons if why not in quoted}
        assert rest.startswith("not asked for: each of the first")
        assert len(done.out) == 1 + 2 + 3, "one line a reason, not one a day"
    assert_nothing_false(blobs(running_farm.storage))
