"""No data, cloud, snow and the counting of them, on made pictures whose truth is exact."""

from datetime import date
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clouds import coverage
from clouds.box import SWEDEN, Box
from clouds.coverage import CLEAR, CLOUD, NO_DATA, Cover, find_cloud, measure, no_data, snow_or_ice
from clouds.method import snow_screen_wanted

SEA = (14, 24, 48)
LAND = (60, 70, 40)
DESERT = (214, 178, 130)
WHITE = (236, 238, 240)
GREY_CLOUD = (120, 124, 130)  # thin over sea: not thick, grey, risen over the ground


def scene(height, width, ground=SEA):
    picture = np.empty((height, width, 3), np.uint8)
    picture[:] = ground
    return picture


# --- no data ---------------------------------------------------------------------------------------------------


def test_an_all_black_picture_has_no_data_anywhere_and_no_fraction():
    found = find_cloud(scene(586, 893, (0, 0, 0)))
    assert (found.mask == NO_DATA).all()
    told = measure(found, SWEDEN)
    assert told.valid_fraction == 0
    assert told.pixels_valid == 0
    assert told.cloud_fraction is None
    assert told.cloud_fraction_area is None
    assert told.thick_fraction is None
    assert told.by_quadrant == (None, None, None, None)


def test_dark_sea_is_valid_and_clear():
    # V is 7: darker than any sea in daylight, and yet above the noise of a gap
    found = find_cloud(scene(64, 64, (3, 5, 7)))
    assert (found.mask == CLEAR).all()


def test_single_black_lines_stay_valid():
    picture = scene(100, 100)
    picture[50] = 0
    picture[:, 20] = 0
    picture[60:64] = 0  # four rows are still no patch of five
    assert (find_cloud(picture).mask == CLEAR).all()


def test_a_patch_of_five_is_no_data_and_one_pixel_less_is_not():
    value = np.full((40, 40), 50, np.uint8)
    value[10:15, 20:25] = 6
    expected = np.zeros((40, 40), bool)
    expected[10:15, 20:25] = True  # what lies around is brighter than the smear reaches
    assert (no_data(value) == expected).all()
    value[12, 22] = 7
    assert not no_data(value).any()


def test_the_smeared_edge_of_a_gap_is_taken_in_up_to_four_pixels_from_the_patch_centres_and_no_brighter_than_40():
    value = np.full((60, 60), 200, np.uint8)
    value[20:40, 20:40] = 0
    value[18:20, 20:40] = 40  # two pixels beyond the gap are four from the centres of its patches
    value[40:42, 20:40] = 41
    value[20:40, 16:20] = 30
    expected = np.zeros((60, 60), bool)
    expected[18:40, 18:40] = True
    expected[18:20, 18:20] = False  # these corners are bright
    assert (no_data(value) == expected).all()


@pytest.mark.parametrize("corner", [(0, 0), (0, 35), (35, 0), (35, 35)])
def test_a_gap_in_a_corner_of_the_picture_is_found_whole(corner):
    value = np.full((40, 40), 200, np.uint8)
    rows, columns = slice(corner[0], corner[0] + 5), slice(corner[1], corner[1] + 5)
    value[rows, columns] = 0
    expected = np.zeros((40, 40), bool)
    expected[rows, columns] = True
    assert (no_data(value) == expected).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(5, 60), st.integers(5, 60), st.sampled_from([5, 16, 256]), st.integers(0, 2**32 - 1))
def test_no_data_equals_its_definition(height, width, strip_rows, seed):
    """The quick way, by strips, grid and windows, finds what the rule says, patch by patch."""
    rng = np.random.default_rng(seed)
    value = rng.choice(
        np.array([0, 3, 6, 7, 40, 41, 200], np.uint8), (height, width), p=[0.5, 0.2, 0.2, 0.02, 0.04, 0.02, 0.02]
    )
    for _gap in range(3):
        top, left = rng.integers(0, height), rng.integers(0, width)
        value[top : top + rng.integers(1, 20), left : left + rng.integers(1, 20)] = rng.integers(0, 7)
    expected = np.zeros((height, width), bool)
    for y in range(2, height - 2):
        for x in range(2, width - 2):
            if (value[y - 2 : y + 3, x - 2 : x + 3] <= 6).all():
                around = (slice(max(0, y - 4), y + 5), slice(max(0, x - 4), x + 5))
                expected[around] |= value[around] <= 40
    with mock.patch.object(coverage, "_GAP_STRIP_ROWS", strip_rows):
        assert (no_data(value) == expected).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (3, 3), (7, 9), (8, 8), (50, 1), (65, 130)])
def test_any_size_is_measured(shape):
    assert (find_cloud(scene(*shape, (0, 0, 0))).mask == NO_DATA).all()
    assert (find_cloud(scene(*shape, WHITE)).mask == CLOUD).all()
    assert (find_cloud(scene(*shape, LAND)).mask == CLEAR).all()


# --- cloud -----------------------------------------------------------------------------------------------------


def test_white_cloud_over_sea_is_found_to_the_pixel():
    picture = scene(120, 200)
    picture[30:57, 41:90] = WHITE
    expected = np.zeros((120, 200), np.uint8)
    expected[30:57, 41:90] = CLOUD
    found = find_cloud(picture)
    assert (found.mask == expected).all()
    assert (found.thick == (expected == CLOUD)).all()


def test_grey_cloud_is_cloud_but_not_thick():
    picture = scene(120, 200)
    picture[30:57, 41:90] = GREY_CLOUD
    found = find_cloud(picture)
    # cells that the cloud fills evenly are dropped as glint or haze: those at its rim and a rough top are not
    assert found.mask[30, 41] == CLOUD
    assert not found.thick.any()


def test_an_even_grey_cell_is_glint_or_haze_and_a_rough_one_is_cloud():
    picture = scene(160, 160)
    picture[40:80, 40:80] = GREY_CLOUD
    assert (find_cloud(picture).mask[40:80, 40:80] == CLEAR).all()
    rough = np.random.default_rng(1).integers(-25, 26, (40, 40, 1))
    picture[40:80, 40:80] = np.clip(np.array(GREY_CLOUD) + rough, 0, 255)
    assert (find_cloud(picture).mask[40:80, 40:80] == CLOUD).mean() > 0.9


@pytest.mark.parametrize(
    "ground",
    [SEA, LAND, DESERT, (230, 60, 60), (90, 140, 230), (110, 112, 116), (79, 79, 79)],
    ids=["sea", "land", "desert", "red", "blue", "even haze", "dark grey"],
)
def test_clear_ground_is_clear(ground):
    assert (find_cloud(scene(96, 96, ground)).mask == CLEAR).all()


def test_thick_cloud_is_cloud_though_all_around_it_is_as_bright():
    assert (find_cloud(scene(300, 300, (171, 171, 171))).mask == CLOUD).all()
    # one less is not thick and does not rise over the ground, which is as bright
    assert (find_cloud(scene(300, 300, (170, 170, 170))).mask == CLEAR).all()


def test_cloud_beside_a_gap_is_judged_against_the_ground_that_was_seen():
    picture = scene(200, 200)
    picture[:, :100] = 0
    picture[90:110, 104:120] = (150, 152, 156)
    picture[90:110:2, 104:120] = (120, 122, 126)
    found = find_cloud(picture)
    assert (found.mask[:, :100] == NO_DATA).all()
    assert (found.mask[90:110, 104:120] == CLOUD).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32 - 1))
def test_byte_arithmetic_equals_the_definition_in_wide_numbers(height, width, seed):
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    greyish = rng.random((height, width)) < 0.7
    picture[greyish] = (picture[greyish][:, :1] + rng.integers(-20, 21, (int(greyish.sum()), 3))).clip(0, 255)
    if seed % 3 == 0:
        picture[: height // 2, : width // 2] = 0
    found = find_cloud(picture)
    expected, thick = defined(picture, no_data(picture.max(axis=2)))
    assert (found.mask == expected).all()
    assert (found.thick == thick).all()


def defined(picture, absent):
    """Method F as it is written down, in wide integers, cell by cell."""
    height, width = absent.shape
    rows, columns = -(-height // 8), -(-width // 8)
    fill = ((0, rows * 8 - height), (0, columns * 8 - width))
    red, green, blue = (np.pad(picture[..., band].astype(int), fill, mode="edge") for band in range(3))
    inside = np.pad(absent, fill, mode="edge")
    seen = np.where(inside, 255, blue)
    cells = [[seen[8 * i : 8 * i + 8, 8 * j : 8 * j + 8] for j in range(columns)] for i in range(rows)]
    mean = np.array([[cell.sum() // 64 for cell in line] for line in cells])
    span = np.array([[cell.max() - cell.min() for cell in line] for line in cells])
    lowest = np.array(
        [[mean[max(0, i - 6) : i + 7, max(0, j - 6) : j + 7].min() for j in range(columns)] for i in range(rows)]
    )
    wide = np.pad(lowest, 4, mode="edge")
    ground = np.array([[wide[i : i + 9, j : j + 9].sum() // 81 for j in range(columns)] for i in range(rows)])
    flat = (mean >= 80) & (mean <= 135) & (span < 24)
    ground, flat = (np.kron(plane, np.ones((8, 8), int)) for plane in (ground, flat))
    most, least = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    grey = (most // 4 > most - least) & (blue - red // 2 >= 45) & ~inside
    cloud = grey & (blue > 80) & ((blue > ground + 20) | (least > 170)) & ~(flat == 1)
    mask = np.where(absent, NO_DATA, cloud[:height, :width])
    return mask, (cloud & (least > 170))[:height, :width]


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), float),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_what_is_no_picture_is_refused(wrong):
    with pytest.raises(ValueError, match="array of bytes"):
        find_cloud(wrong)


# --- snow ------------------------------------------------------------------------------------------------------


def test_snow_in_bands_721_is_not_cloud_and_cloud_stays():
    picture = scene(80, 80, WHITE)
    bands = scene(80, 80, (230, 232, 235))  # water cloud is white there
    bands[:, 40:] = (10, 200, 210)  # snow is cyan
    found = find_cloud(picture, bands)
    assert (found.mask[:, :40] == CLOUD).all()
    assert (found.mask[:, 40:] == CLEAR).all()
    assert (found.thick == (found.mask == CLOUD)).all()
    assert measure(found).cloud_fraction == 0.5


def test_the_screen_makes_no_data_of_nothing():
    picture = scene(40, 40, (0, 0, 0))
    assert (find_cloud(picture, scene(40, 40, (10, 200, 210))).mask == NO_DATA).all()


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 99))
def test_the_snow_rule_is_exact_in_hundredths(red, blue, hundredths):
    bands = np.array([[[red, 99, blue]]], np.uint8)
    expected = 100 * (blue - red) > hundredths * (blue + red)
    assert bool(snow_or_ice(bands, hundredths / 100)[0, 0]) == expected


@pytest.mark.parametrize("threshold", [-0.1, 1, 1.5])
def test_a_threshold_outside_its_range_is_refused(threshold):
    with pytest.raises(ValueError, match="snow threshold"):
        snow_or_ice(scene(2, 2), threshold)


def test_pictures_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match="another size"):
        find_cloud(scene(8, 8), scene(8, 9))


@pytest.mark.parametrize(
    ("box", "month", "wanted"),
    [
        ("54.6985,10.3525,69.8203,24.7862", 2, True),
        ("54.6985,10.3525,69.8203,24.7862", 3, True),
        ("54.6985,10.3525,69.8203,24.7862", 4, False),
        ("54.6985,10.3525,69.8203,24.7862", 9, False),
        ("54.6985,10.3525,69.8203,24.7862", 10, True),
        ("40,0,45,10", 1, False),
        ("40,0,45.1,10", 1, True),
        ("-10,0,10,10", 1, False),
        ("-60,-70,-50,-60", 7, True),
        ("-60,-70,-50,-60", 3, False),
        ("-60,-70,-50,-60", 4, True),
        ("-60,-70,-50,-60", 10, False),
        ("-90,-180,90,180", 1, True),
        ("-90,-180,90,180", 7, True),
    ],
)
def test_the_screen_is_wanted_beyond_45_degrees_in_the_cold_half_of_the_year(box, month, wanted):
    assert snow_screen_wanted(Box.parse(box), date(2021, month, 15)) is wanted


# --- counting --------------------------------------------------------------------------------------------------


def cover_of(mask, thick=None):
    mask = np.asarray(mask, np.uint8)
    return Cover(mask=mask, thick=np.zeros(mask.shape, bool) if thick is None else np.asarray(thick, bool))


def test_everything_is_counted_over_valid_pixels():
    told = measure(cover_of([[1, 1, 0, 2], [1, 0, 0, 2], [0, 0, 2, 2]], [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))
    assert (told.pixels_total, told.pixels_valid, told.pixels_cloud) == (12, 8, 3)
    assert told.valid_fraction == 8 / 12
    assert told.cloud_fraction == 3 / 8
    assert told.thick_fraction == 1 / 8
    assert told.cloud_fraction_area is None


def test_quadrants_are_nw_ne_sw_se_and_none_where_nothing_was_seen():
    mask = np.zeros((10, 10), np.uint8)
    mask[:5, :5] = 1
    mask[0, 5] = 1
    mask[5:, 5:] = 2
    assert measure(cover_of(mask)).by_quadrant == (1.0, 1 / 25, 0.0, None)


def test_area_weights_are_exact():
    # the northern of two rows over a hemisphere: sin 90 - sin 30 against sin 30 - sin -30 and so on
    box = Box.parse("-90,0,90,1")
    north, middle, south = (
        measure(cover_of([[1], [0], [0]]), box),
        measure(cover_of([[0], [1], [0]]), box),
        measure(cover_of([[0], [0], [1]]), box),
    )
    assert north.cloud_fraction_area == pytest.approx(0.25, abs=1e-12)
    assert middle.cloud_fraction_area == pytest.approx(0.5, abs=1e-12)
    assert south.cloud_fraction_area == pytest.approx(0.25, abs=1e-12)
    # no data leaves both sides of the fraction
    assert measure(cover_of([[1], [2], [0]]), box).cloud_fraction_area == pytest.approx(0.5, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_the_parts_make_the_whole(height, width, seed):
    mask = np.random.default_rng(seed).integers(0, 3, (height, width)).astype(np.uint8)
    told = measure(cover_of(mask), SWEDEN)
    assert told.pixels_valid == (mask != 2).sum()
    assert told.pixels_cloud == (mask == 1).sum()
    if told.pixels_valid:
        weights = np.broadcast_to(SWEDEN.row_weights(height)[:, None], mask.shape)
        assert told.cloud_fraction_area == pytest.approx(weights[mask == 1].sum() / weights[mask != 2].sum())
    middle, centre = (height + 1) // 2, (width + 1) // 2
    quarters = [mask[:middle, :centre], mask[:middle, centre:], mask[middle:, :centre], mask[middle:, centre:]]
    for quarter, fraction in zip(quarters, told.by_quadrant, strict=True):
        valid = (quarter != 2).sum()
        assert fraction == ((quarter == 1).sum() / valid if valid else None)
