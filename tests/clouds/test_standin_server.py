"""The stand-in speaks as the services do, counts its visitors, serves truth and folders of real pictures."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from PIL import Image

from clouds.box import Box
from clouds.errors import CloudsError, Refused, ServiceDown, Throttled
from clouds.service import Service
from clouds.standin import (
    FaultPlan,
    FolderSource,
    Planet,
    SceneSource,
    Settings,
    Source,
    Standin,
    View,
    parse_fault,
    start_standin,
)
from clouds.worldview import fetch, open_session

SHARED = Path(__file__).parents[3] / "shared" / "data" / "worldview"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared pictures are not beside the repository")

BOX = Box(lat_min=40, lon_min=5, lat_max=44, lon_max=10)
DAY = date(2021, 5, 3)
NOW = datetime(2021, 6, 1, 12, tzinfo=UTC)
GOOD = {
    "REQUEST": "GetSnapshot",
    "LAYERS": "MODIS_Terra_CorrectedReflectance_TrueColor",
    "CRS": "EPSG:4326",
    "BBOX": "40,5,44,10",
    "WIDTH": "50",
    "HEIGHT": "40",
    "FORMAT": "image/png",
    "TIME": "2021-05-03",
}


@pytest.fixture(scope="module")
def planet() -> Planet:
    """A planet with generated ground."""
    return Planet(7, marble=False)


@asynccontextmanager
async def serving(
    source: Source | Planet, faults: dict[date | None, str] | None = None, **more: float
) -> AsyncIterator[Standin]:
    """A stand-in with `faults` by day, several joined by +."""
    plan = FaultPlan(by_day={day: tuple(map(parse_fault, text.split("+"))) for day, text in (faults or {}).items()})
    if isinstance(source, Planet):
        source = SceneSource(source)
    async with start_standin(source, Settings(plan=plan, **more)) as standin:  # type: ignore[arg-type]
        yield standin


async def get(standin: Standin, path: str = "/api/v1/snapshot", **change: str | None) -> tuple[int, str, bytes]:
    """(status, content type, body) of one request like GOOD but for `change`, where None leaves a field out."""
    query = {key: value for key, value in (GOOD | change).items() if value is not None}
    async with aiohttp.ClientSession() as session, session.get(standin.root + path, params=query) as response:
        return response.status, response.content_type, await response.read()


def service_of(standin: Standin, **more: object) -> Service:
    return replace(Service(base_url=standin.url, km=4, timeout_s=20), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "content_type", "words"),
    [
        ({"REQUEST": None}, "text/html", b"No REQUEST parameter specified"),
        ({"REQUEST": "GetTile"}, "text/xml", b"OperationNotSupported"),
        ({"TIME": "yesterday"}, "text/xml", b"Invalid time format, must be YYYY-MM-DD"),
        ({"TIME": None}, "text/xml", b"InvalidParameterValue"),
        ({"TIME": "2021-02-30"}, "text/xml", b"InvalidParameterValue"),
        ({"LAYERS": "Nonsense"}, "text/xml", b"LayerNotDefined"),
        ({"LAYERS": "Coastlines"}, "text/xml", b"LayerNotDefined"),
        ({"LAYERS": None}, "text/xml", b"LayerNotDefined"),
        ({"FORMAT": "image/webp"}, "text/xml", b"InvalidFormat"),
        ({"CRS": "EPSG:32633"}, "text/xml", b"InvalidCRS"),
        ({"BBOX": "1,2,3"}, "text/xml", b"BBOX"),
        ({"WIDTH": "8201"}, "text/xml", b"8200"),
        ({"WIDTH": "0"}, "text/xml", b"WIDTH"),
        ({"HEIGHT": "-5"}, "text/xml", b"HEIGHT"),
        ({"HEIGHT": "9" * 40}, "text/xml", b"HEIGHT"),
    ],
)
@pytest.mark.parametrize("path", ["/api/v1/snapshot", "/wms/epsg4326/best/wms.cgi"])
async def test_bad_requests_get_words_under_status_200(
    planet: Planet, path: str, change: dict[str, str | None], content_type: str, words: bytes
) -> None:
    async with serving(planet) as standin:
        status, kind, body = await get(standin, path, **change)
        assert (status, kind) == (200, content_type)
        assert words in body


@pytest.mark.parametrize("bbox", ["5,40,10,44,", "44,5,40,10", "40,10,44,5", "40,5,95,10", "40,5,40,10"])
async def test_an_impossible_box_is_black_and_no_error(planet: Planet, bbox: str) -> None:
    async with serving(planet) as standin:
        status, kind, body = await get(standin, BBOX=bbox.rstrip(","))
        assert (status, kind) == (200, "image/png")
        image = Image.open(io.BytesIO(body))
        assert image.size == (50, 40)
        if bbox != "5,40,10,44,":
            assert image.getextrema() == ((0, 0),) * 3


async def test_longitude_first_is_for_wms_1_1_1_only(planet: Planet) -> None:
    async with serving(planet) as standin:
        path = "/wms/epsg4326/best/wms.cgi"
        new = await get(standin, path, REQUEST="GetMap", VERSION="1.3.0")
        old = await get(standin, path, REQUEST="GetMap", VERSION="1.1.1", BBOX="5,40,10,44", CRS=None, SRS="EPSG:4326")
        swapped = await get(standin, path, REQUEST="GetMap", VERSION="1.1.1", CRS=None, SRS="EPSG:4326")
        assert new == old
        assert swapped != new


async def test_wms_answers_a_good_request_with_a_308(planet: Planet) -> None:
    async with serving(planet) as standin, aiohttp.ClientSession() as session:
        query = GOOD | {"REQUEST": "GetMap"}
        async with session.get(standin.wms_url, params=query, allow_redirects=False) as response:
            assert response.status == 308
            assert response.headers["Location"].startswith("/wms-served/")


async def test_autoscale_shrinks_the_width(planet: Planet) -> None:
    async with serving(planet) as standin:
        _, _, body = await get(standin, AUTOSCALE="TRUE")
        assert Image.open(io.BytesIO(body)).size == (37, 40)  # 50 x cos 42


@pytest.mark.parametrize(
    "layers",
    [
        "BlueMarble_NextGeneration",
        "MODIS_Aqua_CorrectedReflectance_Bands721",
        "VIIRS_SNPP_CorrectedReflectance_TrueColor",
        "MODIS_Terra_CorrectedReflectance_TrueColor,Coastlines_15m,Reference_Features_15m",
    ],
)
async def test_layers(planet: Planet, layers: str) -> None:
    async with serving(planet) as standin:
        status, kind, _ = await get(standin, LAYERS=layers)
        assert (status, kind) == (200, "image/png")


async def test_the_truth_served_is_the_truth_of_the_picture(planet: Planet) -> None:
    faults = {date(2021, 5, 4): "gap", date(2021, 5, 5): "black", date(2021, 5, 6): "otherday:days=2"}
    async with serving(planet, faults) as standin:
        for day in (DAY, date(2021, 5, 4), date(2021, 5, 5), date(2021, 5, 6)):
            _, kind, body = await get(standin, "/truth", TIME=day.isoformat())
            assert kind == "image/png"
            served = np.asarray(Image.open(io.BytesIO(body)))
            _, _, shown = await get(standin, TIME=day.isoformat())
            black = np.asarray(Image.open(io.BytesIO(shown))).max(axis=2) == 0
            assert served.shape == (40, 50)
            assert set(np.unique(served).tolist()) <= {0, 1, 2, 255}
            assert np.array_equal(served == 255, black)
        plain = planet.truth(View(day=DAY, box=BOX, width=50, height=40))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO((await get(standin, "/truth"))[2]))), plain)


async def test_the_truth_in_figures(planet: Planet) -> None:
    async with serving(planet, {date(2021, 5, 5): "black"}) as standin, aiohttp.ClientSession() as session:
        values = planet.truth(View(day=DAY, box=BOX, width=50, height=40))
        async with session.get(standin.root + "/truth", params=GOOD | {"AS": "json"}) as response:
            told = await response.json()
        assert told == {
            "day": "2021-05-03",
            "valid": 1.0,
            "clear": np.mean(values == 0),
            "thin": np.mean(values == 1),
            "cloud": np.mean(values == 2),
        }
        black = GOOD | {"AS": "json", "TIME": "2021-05-05"}
        async with session.get(standin.root + "/truth", params=black) as response:
            assert await response.json() == {
                "day": "2021-05-05",
                "valid": 0,
                "clear": None,
                "thin": None,
                "cloud": None,
            }
        assert standin.stats.requests == 0, "asking for the truth is no visit"


async def test_the_same_request_brings_the_same_bytes_from_any_standin_of_the_seed(planet: Planet) -> None:
    async with (
        serving(planet) as one,
        serving(Planet(7, marble=False)) as two,
        serving(Planet(8, marble=False)) as other,
    ):
        assert (await get(one)) == (await get(one)) == (await get(two))
        assert (await get(other)) != (await get(one))


async def test_another_day_comes_with_its_own_flaws(planet: Planet) -> None:
    """The very bytes of that other day, gap and all, as the service would send them."""
    async with serving(planet, {DAY: "gap", date(2021, 5, 4): "otherday"}) as standin:
        assert (await get(standin, TIME="2021-05-04")) == (await get(standin, TIME="2021-05-03"))


async def test_concurrency_is_counted_as_it_was(planet: Planet) -> None:
    """Eight requests, three at a time, over a line with latency: at most three met, and three did meet."""
    async with serving(planet, latency_s=0.03) as standin:
        service = service_of(standin)
        gate = asyncio.Semaphore(3)
        async with open_session(service) as session:

            async def one(day: int) -> None:
                async with gate:
                    await fetch(session, service, BOX, date(2021, 5, day), now=lambda: NOW)

            async with asyncio.TaskGroup() as group:
                for day in range(1, 9):
                    group.create_task(one(day))
        stats = standin.stats
        assert (stats.requests, stats.concurrent_max, stats.concurrent) == (8, 3, 0)
        assert stats.answers == {"picture": 8}
        assert stats.needless == 0


async def test_repeats_are_counted_by_day_and_layer(planet: Planet) -> None:
    async with serving(planet, {DAY: "http503*1"}) as standin:
        service = service_of(standin)
        async with open_session(service) as session:
            with pytest.raises(ServiceDown):
                await fetch(session, service, BOX, DAY, now=lambda: NOW)
            await fetch(session, service, BOX, DAY, now=lambda: NOW)
            assert standin.stats.needless == 0, "asking again after a failure is no waste"
            await fetch(session, service, BOX, DAY, now=lambda: NOW)
            with pytest.raises(ServiceDown):  # the other layer has a history of its own
                await fetch(session, service.bands721(), BOX, DAY, now=lambda: NOW)
            async with session.get(standin.root + "/stats") as response:
                told = await response.json()
        assert told["by_day"] == {
            "2021-05-03": {
                "MODIS_Terra_CorrectedReflectance_TrueColor": 3,
                "MODIS_Terra_CorrectedReflectance_Bands721": 1,
            }
        }
        assert told["needless"] == 1
        assert told["answers"] == {"http503": 2, "picture": 2}
        assert list(told["user_agents"].values()) == [4]
        assert told["bytes_sent"] > 0


async def test_impatience_is_counted(planet: Planet) -> None:
    async with serving(planet, {DAY: "http429*2:retry_after=30+http503*1:retry_after=0"}) as standin:
        service = service_of(standin)
        async with open_session(service) as session:
            for error in (Throttled, Throttled, ServiceDown):
                with pytest.raises(error):
                    await fetch(session, service, BOX, DAY, now=lambda: NOW)
            await fetch(session, service, BOX, DAY, now=lambda: NOW)
        assert standin.stats.early == 2


async def test_a_client_that_goes_away_is_no_longer_counted(planet: Planet) -> None:
    async with serving(planet, {DAY: "drip:seconds=30"}) as standin:
        service = service_of(standin, timeout_s=0.2)
        async with open_session(service) as session:
            with pytest.raises(ServiceDown):
                await fetch(session, service, BOX, DAY, now=lambda: NOW)
        async with asyncio.timeout(10):
            while standin.stats.concurrent:  # noqa: ASYNC110 - a counter has nothing to wait on
                await asyncio.sleep(0.005)


async def test_ending_does_not_wait_for_slow_answers(planet: Planet) -> None:
    async with serving(planet, {DAY: "drip:seconds=3000"}) as standin:
        service = service_of(standin)
        session = open_session(service)
        asking = asyncio.create_task(fetch(session, service, BOX, DAY, now=lambda: NOW))
        async with asyncio.timeout(10):
            while not standin.stats.concurrent:  # noqa: ASYNC110 - a counter has nothing to wait on
                await asyncio.sleep(0.005)
    with pytest.raises(ServiceDown):
        await asking
    await session.close()


async def test_a_taken_port_is_said_in_one_line(planet: Planet) -> None:
    async with serving(planet) as standin:
        with pytest.raises(CloudsError, match=f"127.0.0.1:{standin.port} is in use; choose another --port"):
            async with start_standin(SceneSource(planet), Settings(port=standin.port)):
                pytest.fail("two servers on one port")


async def test_a_port_is_free_again_afterwards(planet: Planet) -> None:
    async with serving(planet) as standin:
        port = standin.port
        await get(standin)
    async with start_standin(SceneSource(planet), Settings(port=port)) as again:
        assert again.port == port


def folder_of(path: Path, *names: str, size: tuple[int, int] = (50, 40)) -> Path:
    """A folder with a picture under each name, all different."""
    for number, name in enumerate(names):
        (path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", size, (90, 10 + 40 * number, 60)).save(path / name, quality=90)
    return path


async def test_a_folder_of_pictures_is_served_byte_for_byte(tmp_path: Path) -> None:
    folder_of(tmp_path, "aqua_2021-05-03.jpg", "deep/x2021-05-04y.png", "aqua_2021-05-03_bands721.jpg")
    (tmp_path / "aqua_2021-05-05_truth.png").write_bytes(b"not a picture")
    source = FolderSource(tmp_path)
    assert source.days == [date(2021, 5, 3), date(2021, 5, 4)]
    async with serving(source) as standin:
        same = await get(standin, FORMAT="image/jpeg")
        assert same == (200, "image/jpeg", (tmp_path / "aqua_2021-05-03.jpg").read_bytes())
        other = await get(standin, FORMAT="image/jpeg", LAYERS="MODIS_Aqua_CorrectedReflectance_Bands721")
        assert other[2] == (tmp_path / "aqua_2021-05-03_bands721.jpg").read_bytes()
        changed = await get(standin, FORMAT="image/jpeg", TIME="2021-05-04")
        assert Image.open(io.BytesIO(changed[2])).format == "JPEG"


async def test_a_folders_pictures_are_resized_only_where_the_size_differs(tmp_path: Path) -> None:
    folder_of(tmp_path, "2021-05-03.jpg", size=(100, 80))
    untouched = (tmp_path / "2021-05-03.jpg").read_bytes()
    async with serving(FolderSource(tmp_path)) as standin:
        smaller = await get(standin, FORMAT="image/jpeg")
        assert Image.open(io.BytesIO(smaller[2])).size == (50, 40)
        asked = await get(standin, FORMAT="image/jpeg", WIDTH="100", HEIGHT="80", AUTOSCALE="TRUE")
        assert asked[2] == untouched, "the asked size is right even where the service would have scaled it"


async def test_days_a_folder_lacks_are_404_with_xml(tmp_path: Path) -> None:
    folder_of(tmp_path, "2021-05-03.jpg")
    async with serving(FolderSource(tmp_path)) as standin:
        status, kind, body = await get(standin, TIME="2021-05-09")
        assert (status, kind) == (404, "text/xml")
        assert b"TIME=2021-05-09 does not exist for this layer" in body
        assert (await get(standin, LAYERS="MODIS_Terra_CorrectedReflectance_Bands721"))[0] == 404
        assert (await get(standin, "/truth"))[0] == 404
        service = service_of(standin)
        async with open_session(service) as session:
            with pytest.raises(Refused, match=r"HTTP 404.*TIME=2021-05-09"):
                await fetch(session, service, BOX, date(2021, 5, 9), now=lambda: NOW)


async def test_faults_befall_a_folder_too(tmp_path: Path) -> None:
    folder_of(tmp_path, "2021-05-03.jpg")
    async with serving(FolderSource(tmp_path), {DAY: "http503*1+black"}) as standin:
        assert (await get(standin))[0] == 503
        status, _, body = await get(standin)
        assert status == 200
        assert Image.open(io.BytesIO(body)).getextrema() == ((0, 0),) * 3


@pytest.mark.parametrize("names", [(), ("notes.txt",), ("picture.jpg",), ("2021-05-03_bands721.jpg",)])
def test_a_folder_without_dated_pictures_is_said_in_one_line(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CloudsError, match="day"):
        FolderSource(tmp_path)
    with pytest.raises(CloudsError, match="not a folder"):
        FolderSource(tmp_path / "none")


@needs_shared
async def test_the_real_pictures_arrive_untouched() -> None:
    source = FolderSource(SHARED / "trades")
    assert len(source.days) == 11
    box = Box(lat_min=10, lon_min=-58, lat_max=20, lon_max=-48)
    async with serving(source) as standin:
        service = service_of(standin, width=1000, height=1000)
        async with open_session(service) as session:
            for day in source.days:
                shot = await fetch(session, service, box, day, now=lambda: NOW)
                assert shot.body == (SHARED / "trades" / f"aqua_{day}.jpg").read_bytes()
                assert (shot.width, shot.height) == (1000, 1000)


@needs_shared
async def test_the_arctic_folder_has_both_layers_and_no_derived_pictures() -> None:
    source = FolderSource(SHARED / "arctic")
    async with serving(source) as standin:
        for name in ("bands721", "truecolor"):
            layer = "MODIS_Terra_CorrectedReflectance_" + {"bands721": "Bands721", "truecolor": "TrueColor"}[name]
            answer = await get(
                standin, TIME="2022-09-13", LAYERS=layer, WIDTH="1078", HEIGHT="413", FORMAT="image/jpeg"
            )
            assert answer[2] == (SHARED / "arctic" / f"negreenland_2022-09-13_terra_{name}.jpg").read_bytes()
