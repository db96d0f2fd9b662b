"""The addresses asked for, the settings behind them, and what counts as the same picture."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from urllib.parse import parse_qsl, urlsplit

import pytest

from clouds.box import SWEDEN, Box
from clouds.errors import CloudsError, DayUnavailable
from clouds.service import Extent, Service, build_url, cache_key, check_day

DAY = date(2021, 2, 16)
TROPICS = Box(lat_min=10, lon_min=-58, lat_max=20, lon_max=-48)
ARCTIC = Extent(x_min=-1000000, y_min=-2000000, x_max=500000, y_max=0)


def test_snapshot_address_is_the_documented_one() -> None:
    assert build_url(Service(), SWEDEN, DAY) == (
        "https://wvs.earthdata.nasa.gov/api/v1/snapshot?REQUEST=GetSnapshot"
        "&LAYERS=MODIS_Terra_CorrectedReflectance_TrueColor&CRS=EPSG:4326&BBOX=54.6985,10.3525,69.8203,24.7862"
        "&WRAP=DAY&WIDTH=1642&HEIGHT=1721&FORMAT=image/jpeg&TIME=2021-02-16&AUTOSCALE=TRUE"
    )


def test_wms_address_is_latitude_first_and_asks_for_the_scaled_width() -> None:
    assert build_url(Service(style="wms"), SWEDEN, DAY) == (
        "https://gibs.earthdata.nasa.gov/wms/epsg4326/best/wms.cgi?SERVICE=WMS&REQUEST=GetMap&VERSION=1.3.0"
        "&LAYERS=MODIS_Terra_CorrectedReflectance_TrueColor&STYLES=&CRS=EPSG:4326"
        "&BBOX=54.6985,10.3525,69.8203,24.7862&WIDTH=764&HEIGHT=1721&FORMAT=image/jpeg&TIME=2021-02-16"
    )


def test_wrap_has_one_entry_for_each_layer() -> None:
    service = Service(layers=("MODIS_Aqua_CorrectedReflectance_TrueColor", "Coastlines_15m", "Reference_Labels_15m"))
    assert dict(parse_qsl(urlsplit(build_url(service, SWEDEN, DAY)).query))["WRAP"] == "DAY,X,X"


def test_host_path_size_format_and_autoscale_are_settings() -> None:
    service = Service(
        base_url="http://127.0.0.1:8000/other/path", width=800, height=600, format="image/png", autoscale=False
    )
    parts = urlsplit(build_url(service, TROPICS, DAY))
    query = dict(parse_qsl(parts.query))
    assert (parts.netloc, parts.path) == ("127.0.0.1:8000", "/other/path")
    assert (query["WIDTH"], query["HEIGHT"], query["FORMAT"]) == ("800", "600", "image/png")
    assert "AUTOSCALE" not in query


def test_projected_systems_take_metres_x_first_and_no_autoscale() -> None:
    query = dict(parse_qsl(urlsplit(build_url(Service(crs="EPSG:3413"), ARCTIC, DAY)).query))
    assert query["CRS"] == "EPSG:3413"
    assert query["BBOX"] == "-1e+06,-2e+06,500000,0" or query["BBOX"] == "-1000000,-2000000,500000,0"
    assert (query["WIDTH"], query["HEIGHT"]) == ("1500", "2000")
    assert "AUTOSCALE" not in query


@pytest.mark.parametrize(("crs", "area"), [("EPSG:3413", SWEDEN), ("EPSG:4326", ARCTIC)])
def test_degrees_and_metres_are_not_mixed_up(crs: str, area: Box | Extent) -> None:
    with pytest.raises(CloudsError, match=crs):
        build_url(Service(crs=crs), area, DAY)


@pytest.mark.parametrize(
    ("area", "service", "sizes"),
    [
        (SWEDEN, Service(), ((1642, 1721), (764, 1721))),
        (SWEDEN, Service(autoscale=False), ((1642, 1721),)),
        (SWEDEN, Service(km=2), ((821, 860), (382, 860))),
        (TROPICS, Service(width=1000, height=1000), ((1000, 1000), (966, 1000))),
        # The one size seen in saved pictures: 114 pixels asked at 51 degrees north, 72 got.
        (Box(lat_min=50.5, lon_min=4, lat_max=51.5, lon_max=5), Service(), ((114, 114), (72, 114))),
    ],
)
def test_expected_sizes(area: Box, service: Service, sizes: tuple[tuple[int, int], ...]) -> None:
    assert service.sizes(area) == sizes


@pytest.mark.parametrize("service", [Service(km=0.2), Service(width=8201, height=10), Service(km=100000)])
def test_sizes_the_service_does_not_serve_are_refused_before_asking(service: Service) -> None:
    with pytest.raises(CloudsError, match="8200"):
        build_url(service, SWEDEN, DAY)


@pytest.mark.parametrize(
    "settings",
    [
        {"base_url": "ftp://example.org/x"},
        {"base_url": "example.org"},
        {"base_url": "http://example.org/x?REQUEST=1"},
        {"style": "wmts"},
        {"layers": ()},
        {"layers": ("a,b",)},
        {"layers": ("a&TIME=2000-01-01",)},
        {"format": "image/tiff"},
        {"crs": "EPSG:32633"},
        {"width": 100},
        {"km": 0},
        {"timeout_s": 0},
    ],
)
def test_contradicting_settings_are_one_clear_line(settings: dict[str, object]) -> None:
    with pytest.raises(CloudsError) as caught:
        Service(**settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"base_url": "http://127.0.0.1:1/api/v1/snapshot"},
        {"style": "wms"},
        {"layers": ("MODIS_Aqua_CorrectedReflectance_TrueColor",)},
        {"format": "image/png"},
        {"km": 2.0},
        {"width": 100, "height": 100},
        {"autoscale": False},
    ],
)
def test_cache_key_differs_where_pictures_differ(change: dict[str, object]) -> None:
    assert cache_key(replace(Service(), **change), SWEDEN) != cache_key(Service(), SWEDEN)  # type: ignore[arg-type]


def test_cache_key_is_the_same_where_pictures_are_the_same() -> None:
    key = cache_key(Service(), SWEDEN)
    assert key == cache_key(Service(timeout_s=5, user_agent="x (a@b.org)", provisional_days=9), SWEDEN)
    assert key == cache_key(Service(width=1642, height=1721), SWEDEN)
    assert key != cache_key(Service(), TROPICS)
    assert len(key) == 20
    assert set(key) <= set("0123456789abcdef")


def test_a_named_service_keeps_its_key_when_its_address_changes() -> None:
    one, two = (Service(base_url=f"http://127.0.0.1:{port}/api/v1/snapshot", name="stand-in-42") for port in (1, 2))
    assert cache_key(one, SWEDEN) == cache_key(two, SWEDEN)


@pytest.mark.parametrize(
    ("layer", "other"),
    [
        ("MODIS_Terra_CorrectedReflectance_TrueColor", "MODIS_Terra_CorrectedReflectance_Bands721"),
        ("MODIS_Aqua_CorrectedReflectance_TrueColor", "MODIS_Aqua_CorrectedReflectance_Bands721"),
    ],
)
def test_bands721_come_from_the_same_satellite(layer: str, other: str) -> None:
    assert Service(layers=(layer, "Coastlines")).bands721().layers == (other,)


@pytest.mark.parametrize(
    ("age_days", "fine"),
    [(-1, False), (0, False), (1, True), (2, True), (4000, True)],
)
def test_days_too_new_are_not_asked_for(age_days: int, fine: bool) -> None:
    now = datetime(2021, 6, 1, 0, 30, tzinfo=UTC)
    day = now.date() - timedelta(days=age_days)
    if fine:
        check_day(Service(), day, now)
    else:
        with pytest.raises(DayUnavailable, match=f"{day} is too new"):
            check_day(Service(), day, now)


def test_age_counts_in_utc_wherever_the_clock_hangs() -> None:
    late_evening_in_america = datetime.fromisoformat("2021-05-31T22:00:00-06:00")  # 1 June in UTC
    check_day(Service(), date(2021, 5, 31), late_evening_in_america)


def test_days_before_a_layer_are_not_asked_for_because_another_day_would_come() -> None:
    now = datetime(2021, 6, 1, tzinfo=UTC)
    check_day(Service(), date(2000, 2, 24), now)
    with pytest.raises(DayUnavailable, match="2000-02-24"):
        check_day(Service(), date(2000, 2, 23), now)
    with pytest.raises(DayUnavailable, match="2002-07-03"):
        check_day(Service(layers=("MODIS_Aqua_CorrectedReflectance_TrueColor",)), date(2001, 1, 1), now)
