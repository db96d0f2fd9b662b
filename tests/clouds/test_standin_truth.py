"""The cloud analysis finds the cloud that the stand-in is known to have blended, and misses where real ones miss."""

import io
from datetime import date, timedelta

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from clouds.box import Box
from clouds.coverage import find_cloud, measure
from clouds.standin import Planet, View
from clouds.standin.source import encode


@pytest.fixture(scope="module")
def planet() -> Planet:
    """A planet with generated ground."""
    return Planet(7, marble=False)


def as_served(image: Image.Image) -> npt.NDArray[np.uint8]:
    """The pixels a client decodes."""
    with Image.open(io.BytesIO(encode(image, "image/jpeg"))) as picture:
        return np.asarray(picture.convert("RGB"))


def errors(planet: Planet, box: Box, first: date, *, with_721: bool) -> npt.NDArray[np.float64]:
    """By how much the measured fraction of cloud differs from the true one on eight days, five days apart."""
    found = []
    for number in range(8):
        view = View(day=first + timedelta(days=5 * number), box=box, width=320, height=280)
        truth = planet.truth(view)
        bands = as_served(planet.bands721(view)) if with_721 else None
        measured = measure(find_cloud(as_served(planet.true_colour(view)), bands), box)
        valid = truth != 255
        assert measured.valid_fraction == pytest.approx(valid.mean(), abs=0.01)
        assert measured.cloud_fraction is not None
        found.append(measured.cloud_fraction - np.mean(truth[valid] == 2))
    return np.array(found)


@pytest.mark.slow
@pytest.mark.parametrize("lat", [10, 22, 40, 52])
def test_without_snow_the_measured_fraction_is_the_true_one(planet: Planet, lat: int) -> None:
    box = Box(lat_min=lat, lon_min=0, lat_max=lat + 8, lon_max=10)
    found = errors(planet, box, date(2021, 7, 1), with_721=False)
    assert np.abs(found).mean() < 0.04
    assert np.abs(found).max() < 0.08


@pytest.mark.slow
def test_winter_snow_is_taken_for_cloud_without_bands_721_and_not_with_them(planet: Planet) -> None:
    box = Box(lat_min=56, lon_min=60, lat_max=64, lon_max=75)  # land, on this planet
    alone = errors(planet, box, date(2021, 1, 15), with_721=False)
    screened = errors(planet, box, date(2021, 1, 15), with_721=True)
    assert alone.mean() > 0.2
    assert np.abs(screened).mean() < 0.07  # thin edges of cloud over snow are screened with it
