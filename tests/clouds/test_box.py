"""The box: what it accepts, what it refuses and how, and the areas of its rows."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clouds.box import SWEDEN, Box
from clouds.errors import BadBox, CloudsError


@pytest.mark.parametrize(
    "text",
    ["54.6985,10.3525,69.8203,24.7862", "54.6985 10.3525 69.8203 24.7862", " 54.6985, 10.3525 ,69.8203,24.7862 "],
)
def test_parse_reads_commas_and_spaces(text):
    assert Box.parse(text) == SWEDEN


def test_the_printed_form_reads_back():
    assert str(SWEDEN) == "54.6985,10.3525,69.8203,24.7862"
    assert str(Box.parse("-90,-180,90,180")) == "-90,-180,90,180"
    tiny = Box(lat_min=-1e-7, lon_min=0, lat_max=1e-7, lon_max=1)
    assert "e" not in str(tiny)
    assert Box.parse(str(tiny)) == tiny


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1,2,3", "3 numbers, not 4"),
        ("", "0 numbers, not 4"),
        ("a,2,3,4", "not a number"),
        ("nan,2,3,4", "not a finite number"),
        ("inf,2,3,4", "not a finite number"),
        ("69,10,54,24", "swap them"),
        ("54,24,69,10", "split a box that crosses the date line"),
        ("-100,0,10,10", "latitude is outside"),
        ("120,54,140,69", "latitude is outside"),
        ("10,-190,20,0", "longitude is outside"),
        ("10,10,10,20", "no area"),
        ("10,10,20,10", "no area"),
    ],
)
def test_an_impossible_box_is_refused_with_one_line_that_says_the_order(text, says):
    with pytest.raises(BadBox) as caught:
        Box.parse(text)
    assert isinstance(caught.value, CloudsError)
    message = str(caught.value)
    assert says in message
    assert "latitude first" in message
    assert "\n" not in message


@given(st.integers(1, 2000), st.floats(-90, 89.9), st.floats(0.05, 180))
def test_row_weights_sum_to_the_exact_area(height, lat_min, span):
    lat_max = min(90.0, lat_min + span)
    weights = Box(lat_min=lat_min, lon_min=0, lat_max=lat_max, lon_max=1).row_weights(height)
    assert weights.shape == (height,)
    assert (weights > 0).all()
    assert math.isclose(weights.sum(), math.sin(math.radians(lat_max)) - math.sin(math.radians(lat_min)), abs_tol=1e-12)


def test_the_first_row_is_the_north():
    weights = SWEDEN.row_weights(1721)
    assert (np.diff(weights) > 0).all()
    # clouds.md's figures for the ends: cos(lat) .58 in the south, .35 in the north
    per_degree = weights / math.radians((69.8203 - 54.6985) / 1721)
    assert per_degree[0] == pytest.approx(0.345, abs=0.001)
    assert per_degree[-1] == pytest.approx(0.578, abs=0.001)


def test_the_globe_is_symmetric():
    weights = Box.parse("-90,-180,90,180").row_weights(600)
    assert np.allclose(weights, weights[::-1])
    assert weights.sum() == pytest.approx(2)


def test_no_rows_have_no_weights():
    with pytest.raises(ValueError, match="at least one row"):
        SWEDEN.row_weights(0)


def test_an_error_message_stays_one_bounded_line():
    message = str(CloudsError("a\nb" + "x" * 5000))
    assert message.startswith("a bxx")
    assert len(message) <= 600
