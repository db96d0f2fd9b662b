"""The map as a fold: any order and grouping of days gives the same sums and the same clearest picture."""

import io
from datetime import date, timedelta
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clouds import fold
from clouds.errors import CloudsError
from clouds.fold import Fold

SHAPE = (5, 7)
FIELDS = ("cloud", "valid", "clearest_day", "clearest")


def same(first, second):
    return first.days == second.days and all((getattr(first, f) == getattr(second, f)).all() for f in FIELDS)


def made_day(number, shape=SHAPE, cell_px=3):
    rng = np.random.default_rng(number)
    height, width = shape[0] * cell_px - number % cell_px, shape[1] * cell_px
    mask = rng.choice(np.array([0, 1, 2], np.uint8), (height, width), p=[0.55, 0.43, 0.02])
    # few shades of blue, so that days often tie
    pixels = np.repeat(np.repeat(rng.integers(1, 4, (shape[0], shape[1], 3)), cell_px, 0), cell_px, 1).astype(np.uint8)
    return fold.fold_day(pixels[:height], mask, date(2021, 1, 1) + timedelta(days=number), shape)


days = st.lists(st.integers(0, 60), unique=True, min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(days, st.randoms(use_true_random=False))
def test_any_order_and_grouping_gives_the_same(numbers, random):
    parts = [made_day(number) for number in numbers]
    straight = reduce(fold.merge, parts)
    random.shuffle(parts)
    while len(parts) > 1:
        place = random.randrange(len(parts) - 1)
        parts[place : place + 2] = [fold.merge(parts[place], parts[place + 1])]
    assert same(straight, parts[0])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 60))
def test_merging_no_days_changes_nothing(number):
    one = made_day(number)
    assert same(fold.merge(one, fold.empty(SHAPE)), one)
    assert same(fold.merge(fold.empty(SHAPE), one), one)


@settings(max_examples=30, deadline=None)
@given(days)
def test_a_fold_survives_its_bytes_and_equal_folds_have_equal_bytes(numbers):
    whole = reduce(fold.merge, [made_day(number) for number in numbers])
    data = fold.to_bytes(whole)
    assert same(fold.from_bytes(data), whole)
    assert fold.to_bytes(reduce(fold.merge, [made_day(number) for number in numbers])) == data


def test_sums_and_means_are_exact():
    clear, cloud, gone = (np.full((4, 4), value, np.uint8) for value in (0, 1, 2))
    half = clear.copy()
    half[:, :2] = 1
    black = np.zeros((4, 4, 3), np.uint8)
    parts = [
        fold.fold_day(black, mask, date(2021, 1, n + 1), (2, 2)) for n, mask in enumerate([clear, cloud, gone, half])
    ]
    whole = reduce(fold.merge, parts)
    assert whole.days == 4
    assert whole.valid.tolist() == [[12, 12], [12, 12]]
    assert whole.cloud.tolist() == [[8, 4], [8, 4]]
    assert whole.mean_cloud().tolist() == [[8 / 12, 4 / 12]] * 2


def test_a_place_never_seen_has_no_mean():
    mask = np.zeros((6, 6), np.uint8)
    mask[:, :2] = 2
    one = fold.fold_day(np.full((6, 6, 3), 90, np.uint8), mask, date(2021, 1, 1), (3, 3))
    assert np.isnan(one.mean_cloud()[:, 0]).all()
    assert (one.mean_cloud()[:, 1:] == 0).all()
    assert (one.clearest_day[:, 0] == 0).all()


def test_the_clearest_picture_takes_the_day_of_lowest_blue_and_of_equal_ones_the_earliest():
    seen = np.zeros((2, 2), np.uint8)
    shades = [(1, (200, 200, 200)), (2, (30, 60, 20)), (3, (90, 10, 20)), (4, (31, 61, 21))]
    parts = [
        fold.fold_day(np.full((2, 2, 3), colour, np.uint8), seen, date(2021, 1, n), (2, 2)) for n, colour in shades
    ]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 1, 3, 0]):
        whole = reduce(fold.merge, [parts[place] for place in order])
        assert (whole.clearest == (30, 60, 20)).all()
        assert (whole.clearest_day == date(2021, 1, 2).toordinal()).all()


def test_the_smeared_neighbourhood_of_a_gap_is_never_the_clearest():
    mask = np.zeros((6, 6), np.uint8)
    mask[0, 0] = 2
    one = fold.fold_day(np.full((6, 6, 3), 9, np.uint8), mask, date(2021, 1, 1), (6, 6))
    assert (one.clearest_day[:2, :2] == 0).all()
    assert (one.clearest_day > 0).sum() == 32


@pytest.mark.parametrize(
    ("width", "height", "shape"),
    [
        (764, 1721, (431, 191)),
        (1642, 1721, (431, 411)),
        (500, 500, (500, 500)),
        (501, 10, (5, 251)),
        (8200, 8200, (483, 483)),
        (1, 1, (1, 1)),
    ],
)
def test_the_grid_has_whole_pixels_a_cell_and_at_most_500_a_side(width, height, shape):
    assert fold.grid_shape(width, height) == shape


@pytest.mark.parametrize(
    "size", [(1721, 764), (1720, 764), (1723, 765), (1719, 762), (860, 382), (300, 100), (2000, 900)]
)
def test_a_day_of_another_size_falls_onto_the_same_grid(size):
    mask = np.zeros(size, np.uint8)
    mask[: size[0] // 2] = 1
    one = fold.fold_day(np.zeros((*size, 3), np.uint8), mask, date(2021, 1, 1), (431, 191))
    assert one.shape == (431, 191)
    assert one.cloud.sum() / one.valid.sum() == pytest.approx(0.5, abs=0.005)
    assert np.nanmean(one.mean_cloud()[:210]) == 1
    assert np.nanmean(one.mean_cloud()[220:]) == 0


def test_maps_of_two_grids_are_not_merged():
    with pytest.raises(CloudsError, match="cannot be merged"):
        fold.merge(fold.empty((2, 2)), fold.empty((2, 3)))


def test_other_bytes_are_refused_and_nothing_is_unpickled():
    harmful = io.BytesIO()
    np.savez(harmful, version=np.array([{"a": 1}], dtype=object))
    wrong = io.BytesIO()
    np.savez(wrong, version=np.int64(9))
    odd = fold.empty((2, 2))
    odd = Fold(
        days=0,
        cloud=odd.cloud,
        valid=odd.valid,
        clearest_day=odd.clearest_day,
        clearest=np.zeros((3, 3, 3), np.uint8),
    )
    whole = fold.to_bytes(fold.empty((2, 2)))
    for data in (
        b"",
        b"nothing",
        whole[: len(whole) // 2],
        harmful.getvalue(),
        wrong.getvalue(),
        fold.to_bytes(odd),
    ):
        with pytest.raises(CloudsError, match="map"):
            fold.from_bytes(data)


def test_a_flipped_byte_is_told_or_does_no_harm():
    whole = made_day(3)
    data = fold.to_bytes(whole)
    told = 0
    for place in range(len(data)):
        spoilt = bytearray(data)
        spoilt[place] ^= 0xFF
        try:
            assert same(fold.from_bytes(bytes(spoilt)), whole)
        except CloudsError:
            told += 1
    assert told > len(data) / 2
