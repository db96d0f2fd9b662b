"""One day's scene of one box: the picture of each layer, and the truth about it.

Responsible for putting ground, snow, cloud and missing data together, the same for every layer of a day, so that the
7-2-1 picture shows the clouds of the true-colour one. Knows nothing of HTTP or of faults in transport.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops

from clouds.box import Box
from clouds.standin.ground import Ground, find_marble, make_ground
from clouds.standin.noise import seed_number
from clouds.standin.weather import Climate, Weather

U8 = npt.NDArray[np.uint8]

THIN, CLOUD = 0.1, 0.3
"""Opacity from which a pixel's truth is thin cloud, and cloud."""

CLEAR_VALUE, THIN_VALUE, CLOUD_VALUE, NO_DATA_VALUE = 0, 1, 2, 255

GROUNDS_MAX = 6
"""Grounds kept, the least recently used goes first; one of 764x1721 takes 17 MB."""

WEATHERS_MAX = 4
"""Weathers kept; one of 764x1721 takes 4 MB."""

SPACING_DEG = 24.7
"""Between two orbits of one day, on the equator."""
SWATH_KM = 2330.0
"""Width of what MODIS sees in one orbit."""
TILT = float(np.tan(np.radians(12)))
"""Degrees of longitude that an orbit's edge moves in a degree of latitude."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What of a scene is asked for."""

    day: date
    box: Box
    width: int
    height: int
    platform: str = "MODIS_Terra"
    """Terra in the morning, Aqua in the afternoon; a VIIRS leaves no gaps between its orbits."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.width, self.height


@dataclass(frozen=True, slots=True, kw_only=True)
class Flaws:
    """What keeps the satellite from seeing, beyond night and the gaps between orbits."""

    gap: bool = False
    """A black swath gap through the box, inclined 12 degrees."""
    black: bool = False
    """Nothing was received that day."""
    night: bool = False
    """Rows where the noon sun is down are black, also on a planet made without night."""


NO_FLAWS = Flaws()


class Planet:
    """All scenes of one seed. Its methods block for tens of milliseconds and may run in several threads."""

    def __init__(self, seed: int, *, orbit_gaps: bool = True, night: bool = True, marble: bool = True) -> None:
        self.seed = seed
        self._orbit_gaps, self._night = orbit_gaps, night
        self._folder: Path | None = find_marble() if marble else None
        self._climate = Climate(seed)
        self._grounds: OrderedDict[tuple[Box, tuple[int, int]], Ground] = OrderedDict()
        self._weathers: OrderedDict[View, Weather] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def real_ground(self) -> bool:
        """Whether the ground is the Earth's (Blue Marble) and not made up."""
        return self._folder is not None

    def true_colour(self, view: View, flaws: Flaws = NO_FLAWS) -> Image.Image:
        """Return the picture a person would take for a photograph."""
        ground, weather = self._parts(view)
        image = ground.colour.copy()
        self._paint_snow(image, view, ground, (224, 229, 232), 210)
        grey = Image.fromarray(weather.brightness)
        reddish = grey.point([round(value * 0.985) for value in range(256)])
        image.paste(Image.merge("RGB", (reddish, grey, grey)), mask=Image.fromarray(weather.opacity))
        return self._unseen(image, view, flaws)

    def bands721(self, view: View, flaws: Flaws = NO_FLAWS) -> Image.Image:
        """Return the same scene in bands 7, 2, 1: snow and ice cyan, water cloud white, deep cloud between."""
        ground, weather = self._parts(view)
        image = ground.bands721.copy()
        self._paint_snow(image, view, ground, (15, 194, 214), 255)
        red = (weather.brightness.astype(np.uint16) * (240 - (weather.height >> 1)) >> 8).astype(np.uint8)
        planes = (red, weather.brightness, weather.brightness)
        cloud = Image.merge("RGB", [Image.fromarray(plane) for plane in planes])
        image.paste(cloud, mask=Image.fromarray(weather.opacity))
        return self._unseen(image, view, flaws)

    def blue_marble(self, view: View) -> Image.Image:
        """Return the static, cloud-free mosaic, which is the same every day."""
        return self._ground(view).marble

    def truth(self, view: View, flaws: Flaws = NO_FLAWS) -> U8:
        """Return for each pixel of that day's pictures 0 clear, 1 thin, 2 cloud or 255 no data."""
        _, weather = self._parts(view)
        values = np.full(weather.opacity.shape, CLEAR_VALUE, np.uint8)
        values[weather.opacity >= round(THIN * 255)] = THIN_VALUE
        values[weather.opacity > round(CLOUD * 255)] = CLOUD_VALUE
        values[self.no_data(view, flaws)] = NO_DATA_VALUE
        return values

    def no_data(self, view: View, flaws: Flaws = NO_FLAWS) -> npt.NDArray[np.bool_]:
        """Return where the satellite saw nothing that day."""
        missing = np.full((view.height, view.width), flaws.black)
        lat, lon = _centres(view)
        if self._night or flaws.night:
            missing |= dark_rows(lat, view.day)[:, None]
        if self._orbit_gaps and view.platform.startswith("MODIS"):
            missing |= _between_orbits(lat, lon, view)
        if flaws.gap:
            missing |= _gap_through(lat, lon, view, seed_number(self.seed, "gap", view.day))
        return missing

    def _parts(self, view: View) -> tuple[Ground, Weather]:
        ground = self._ground(view)
        when = view.day.toordinal() + {"MODIS_Terra": 0.44, "MODIS_Aqua": 0.56}.get(view.platform, 0.55)
        # The 7-2-1 picture is mostly asked for just after the true-colour one.
        with self._lock:
            weather = self._weathers.get(view)
        if weather is None:
            weather = self._climate.weather(view.box, view.size, when, ground.dry)
            with self._lock:
                self._weathers[view] = weather
                while len(self._weathers) > WEATHERS_MAX:
                    self._weathers.popitem(last=False)
        return ground, weather

    def _ground(self, view: View) -> Ground:
        key = (view.box, view.size)
        with self._lock:  # held while a ground is made, so that it is made once
            ground = self._grounds.pop(key, None)
            if ground is None:
                ground = make_ground(self._folder, self.seed, self._climate.grain, view.box, view.size)
            self._grounds[key] = ground
            while len(self._grounds) > GROUNDS_MAX:
                self._grounds.popitem(last=False)
        return ground

    def _paint_snow(
        self, image: Image.Image, view: View, ground: Ground, colour: tuple[int, int, int], opacity_max: int
    ) -> None:
        """Cover land and sea where snow and ice lie; lasting ice is in the ground's colours already."""
        land, sea = self._climate.snow(view.box, view.size, view.day, np.asarray(ground.cold))
        strength = [value * opacity_max // 255 for value in range(256)]
        for lying, where in ((land, ground.land), (sea, ImageChops.invert(ground.land))):
            if lying is not None and lying.any():
                image.paste(colour, mask=ImageChops.multiply(Image.fromarray(lying), where).point(strength))

    def _unseen(self, image: Image.Image, view: View, flaws: Flaws) -> Image.Image:
        missing = self.no_data(view, flaws)
        if missing.any():
            image.paste((0, 0, 0), mask=Image.fromarray(missing.astype(np.uint8) * np.uint8(255)))
        return image


def dark_rows(lat: npt.NDArray[np.floating], day: date) -> npt.NDArray[np.bool_]:
    """Tell for each latitude whether the sun stays down at noon: |lat - declination| > 90."""
    declination = 23.44 * np.sin(np.radians(360 / 365 * (day.timetuple().tm_yday + 284)))
    return np.asarray(np.abs(lat - declination) > 90)


def _centres(view: View) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Latitude of each row and longitude of each column, at the pixels' centres."""
    rows = (np.arange(view.height) + 0.5) / view.height
    columns = (np.arange(view.width) + 0.5) / view.width
    box = view.box
    return box.lat_max - rows * (box.lat_max - box.lat_min), box.lon_min + columns * (box.lon_max - box.lon_min)


def _between_orbits(lat: npt.NDArray[np.float64], lon: npt.NDArray[np.float64], view: View) -> npt.NDArray[np.bool_]:
    """The lenses that two neighbouring orbits leave unseen in the tropics; they wander from day to day."""
    seen = SWATH_KM / (111.3 * np.cos(np.radians(np.clip(lat, -80, 80))))
    half = (SPACING_DEG - seen) / 2
    if half.max() <= 0:
        return np.zeros((lat.size, lon.size), bool)
    lean = TILT if view.platform == "MODIS_Terra" else -TILT
    start = view.day.toordinal() * 8.97 + (0.0 if view.platform == "MODIS_Terra" else 11.3)
    away = (lon[None, :] - lat[:, None] * lean - start + SPACING_DEG / 2) % SPACING_DEG - SPACING_DEG / 2
    return np.asarray(np.abs(away) < half[:, None])


def _gap_through(
    lat: npt.NDArray[np.float64], lon: npt.NDArray[np.float64], view: View, choice: int
) -> npt.NDArray[np.bool_]:
    """A stripe of 5 to 12 % of the width somewhere in the middle half, inclined 12 degrees."""
    width = view.box.lon_max - view.box.lon_min
    middle = view.box.lon_min + width * (0.25 + 0.5 * (choice & 0xFFFF) / 0xFFFF)
    half = width * (0.025 + 0.035 * (choice >> 16 & 0xFFFF) / 0xFFFF)
    # On the ground, not on the picture: a degree of longitude is shorter up north.
    lean = TILT / np.cos(np.radians(view.box.lat_mid)) * (1 if view.platform == "MODIS_Terra" else -1)
    return np.asarray(np.abs(lon[None, :] - middle - (lat[:, None] - view.box.lat_mid) * lean) < half)
