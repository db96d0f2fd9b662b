"""The clouds and the snow of one day, anywhere on the globe, from a seed.

Responsible for how much of what lies over each pixel: opacity and brightness of cloud, depth of snow cover. Knows
nothing of the ground's colours, of layers or of pictures. The idea: what is wider than some pixels (systems, fronts,
clusters, gaps between them) is lattice noise on the globe, so that neighbouring boxes, sizes and days agree; what is
finer (single heaps and filaments) is a tile of pixels. Both are added up and cut at a threshold that follows the
climate, so that the share of cloud is about right for a place and a season.
"""

from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt
from PIL import Image

from clouds.box import Box
from clouds.standin.noise import F32, F64, fibres, grain, lattice, octaves, puffs, seed_number, tile_over

U8 = npt.NDArray[np.uint8]
I16 = npt.NDArray[np.int16]

CELL = 8
"""Pixels a side of the cells in which everything but the tiles is computed."""

UNIT = 32
"""Steps of the 8-bit fields to one deviation of the noise."""

_ZONES = ((-90, 0.60), (-75, 0.66), (-60, 0.86), (-45, 0.76), (-30, 0.50), (-20, 0.44), (-8, 0.48), (0, 0.56), (7, 0.62),
          (14, 0.48), (22, 0.36), (30, 0.42), (40, 0.56), (50, 0.66), (60, 0.68), (72, 0.72), (90, 0.66))  # fmt: skip
"""Share of cloud by latitude, the mean over years and longitudes, roughly as MODIS sees it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """What covers each pixel of one box on one day."""

    opacity: U8
    """0 clear, 255 nothing of the ground shows."""
    brightness: U8
    """How white the cloud is, 0..255, where there is any."""
    height: U8
    """Greater over deep cloud, whose tops are ice."""


class Climate:
    """A planet's weather, all of it decided by `seed`. Made once; its methods may run in several threads."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.grain = grain(seed_number(seed, "grain"))
        self._puffs = _steps(puffs(seed_number(seed, "puffs")))
        self._fibres = _steps(fibres(seed_number(seed, "fibres")))
        self._grain = _steps(self.grain)

    def weather(self, box: Box, size: tuple[int, int], when: float, dry: U8) -> Weather:
        """Return the cloud over `box` at `size` (width, height) and `when`, in days since year 1.

        `dry` (255 over desert, any size) thins it out.
        """
        lat, lon = _cells(box, size)
        shape, heaps = self._systems(lat, lon, when)
        dryness = np.asarray(Image.fromarray(dry).resize((lon.size, lat.size)), np.float32) / 255
        share = _share(lat, when)[:, None] * (1 - 0.55 * dryness)
        # The tile adds its own spread, so the threshold of a share lies further out where heaps are strong.
        spread = np.sqrt(0.8 + 0.09 + heaps**2, dtype=np.float32)
        above = np.float32(0.9) * shape + spread * np.float32(0.56) * np.log(share / (1 - share))
        field = _stretched(above, size, Image.Resampling.BICUBIC)
        fine = _scaled_tile(self._fibres, size, 0.3, seed_number(self.seed, "f", int(when)))
        field += fine
        tile = tile_over(self._puffs, size, seed_number(self.seed, "p", int(when)) >> 8)
        field += (tile * _stretched_share(heaps / 2, size)) >> 7
        return _cover(field, fine)

    def snow(self, box: Box, size: tuple[int, int], day: date, cold: U8) -> tuple[U8 | None, U8 | None]:
        """Return snow over land and ice over sea, 0..255 for each pixel, None where the whole box has none that day.

        `cold` (a pixel's, 0..255) makes snow come earlier there.
        """
        lat, lon = _cells(box, size)
        winter = np.cos(2 * np.pi * (day.timetuple().tm_yday - 45) / 365) * np.sign(lat)
        line = np.where(lat >= 0, 65.0 - 12.0 * winter, 72.0 - 12.0 * winter).astype(np.float32)
        step = float(abs(lat[0] - lat[1]))
        when = day.toordinal() / 9
        chance = octaves(seed_number(self.seed, "snow"), lat, lon, when, step=step, longest=12, shortest=0.5, fall=0.6)
        depth = (np.abs(lat) - line)[:, None] / 3.5 + 0.8 * chance
        freeze = (np.abs(lat) - line - 13.0)[:, None] / 2.5 + 0.8 * chance
        land = sea = None
        rough = _scaled_tile(self._grain, size, 0.45, seed_number(self.seed, "s"))
        if depth.max() + int(cold.max()) * 3 / 8 / UNIT > -2:
            land = _look_up(_LIE, _stretched(depth, size) + rough + (cold.astype(np.int16) * 3 >> 3))
        if freeze.max() > -2:
            sea = _look_up(_LIE, _stretched(freeze, size) + rough)
        return land, sea

    def _systems(self, lat: F64, lon: F64, when: float) -> tuple[F32, F32]:
        """What lies wider than a cell: the shape of cloud, about N(0, 1), and the strength of heaps, 0..1.3."""
        step = float(max(abs(lat[0] - lat[1]), abs(lon[1] - lon[0])))
        tropical = 1 / (1 + np.exp((np.abs(lat) - 29) / 4)).astype(np.float32)
        regime = octaves(seed_number(self.seed, "regime"), lat, lon, when, step=step, longest=14, shortest=1, fall=0.6)
        shape = np.zeros_like(regime)
        if tropical.min() < 0.98:
            shape += (1 - tropical)[:, None] * self._westerlies(lat, lon, when, step)
        if tropical.max() > 0.02:
            shape += tropical[:, None] * self._trades(lat, lon, when, step)
        heaps = np.clip(0.12 + 0.72 * tropical[:, None] - 0.30 * regime - 0.14 * shape, 0.05, 1.3)
        return shape, heaps.astype(np.float32)

    def _westerlies(self, lat: F64, lon: F64, when: float, step: float) -> F32:
        """Systems that drift east, drawn out and wound up by the whirls they carry."""
        seed = seed_number(self.seed, "westerlies")
        margin = min(9.0, 60 * step)
        pad = int(margin / step) + 2
        wide_lat = _padded(lat, pad)
        wide_lon = _padded(lon, pad)
        east = wide_lon - 7.0 * (when % 3600)
        field = octaves(seed, wide_lat * 1.4, east, when, step=step, longest=12, shortest=0.12, fall=0.74)
        # Each pixel looks up the field at a place displaced by smoother noise; its curl winds, its slope draws out.
        inner_east = lon - 7.0 * (when % 3600)
        moves = [
            octaves(seed_number(seed, way), lat, inner_east, when, step=step, longest=9, shortest=1.5, fall=0.5)
            for way in ("along", "across")
        ]
        reach = margin * 0.28
        x = np.clip(moves[0] * reach, -margin, margin) / abs(lon[1] - lon[0])
        y = np.clip(moves[1] * reach, -margin, margin) / abs(lat[0] - lat[1])
        wound = _looked_up(field, pad, x.astype(np.float32), y.astype(np.float32))
        days = lattice(seed_number(seed, "spell"), lat / 16, inner_east / 26, when / 2.5)
        return (0.9 * wound + 0.42 * days).astype(np.float32)

    def _trades(self, lat: F64, lon: F64, when: float, step: float) -> F32:
        """Clusters that drift west between wide clear lanes."""
        seed = seed_number(self.seed, "trades")
        west = lon + 5.0 * (when % 3600)
        field = octaves(seed, lat, west, when, step=step, longest=9, shortest=0.2, fall=0.74)
        lanes = octaves(seed + 1, lat * 2, west * 0.7, when, step=step, longest=3, shortest=0.4, fall=0.7)
        return (0.85 * field + 0.5 * np.abs(lanes) - 0.4).astype(np.float32)


def _cells(box: Box, size: tuple[int, int]) -> tuple[F64, F64]:
    """Latitudes and longitudes of the centres of the cells, at least two each way."""
    columns, rows = (max(2, -(-side // CELL)) for side in size)
    lat_edges = np.linspace(box.lat_max, box.lat_min, rows + 1)
    lon_edges = np.linspace(box.lon_min, box.lon_max, columns + 1)
    lat, lon = ((edges[:-1] + edges[1:]) / 2 for edges in (lat_edges, lon_edges))
    return lat, lon


def _share(lat: F64, when: float) -> F32:
    """The mean share of cloud at each latitude in the season: belts follow the sun, winters are duller."""
    season = np.cos(2 * np.pi * (when % 365.2425 - 200) / 365.2425)  # 1 in July
    places, shares = zip(*_ZONES, strict=True)
    follow = lat - np.float32(5.0 * season) * np.exp(-((lat / 30) ** 2))
    winter = -season * np.sign(lat) * np.clip(np.abs(lat) / 50, 0, 1)
    return np.asarray(np.clip(np.interp(follow, places, shares) + 0.07 * winter, 0.05, 0.95), np.float32)


def _padded(at: F64, pad: int) -> F64:
    """`at`, which is evenly spaced, gone on with for `pad` places at both ends."""
    return np.asarray(at[0] + (at[1] - at[0]) * np.arange(-pad, at.size + pad))


def _looked_up(field: F32, pad: int, x: F32, y: F32) -> F32:
    """`field`, wider by `pad` all round, at each inner cell displaced by x, y cells; bilinear."""
    rows, columns = x.shape
    at_y = np.clip(np.arange(rows, dtype=np.float32)[:, None] + pad + y, 0, field.shape[0] - 1.001)
    at_x = np.clip(np.arange(columns, dtype=np.float32)[None, :] + pad + x, 0, field.shape[1] - 1.001)
    whole_y, whole_x = at_y.astype(np.int64), at_x.astype(np.int64)
    part_y, part_x = at_y - whole_y, at_x - whole_x
    top = field[whole_y, whole_x] * (1 - part_x) + field[whole_y, whole_x + 1] * part_x
    low = field[whole_y + 1, whole_x] * (1 - part_x) + field[whole_y + 1, whole_x + 1] * part_x
    return np.asarray(top * (1 - part_y) + low * part_y, np.float32)


def _steps(tile: F32) -> npt.NDArray[np.int8]:
    """A tile in 8-bit steps, cut at four deviations."""
    return np.clip(tile * UNIT, -127, 127).astype(np.int8)


def _stretched(cells: F32, size: tuple[int, int], resample: Image.Resampling = Image.Resampling.BILINEAR) -> I16:
    """Cells over all pixels in steps, cut at about four deviations."""
    image = Image.fromarray(np.clip(cells * UNIT + 128, 0, 255).astype(np.uint8))
    return np.asarray(image.resize(size, resample)).astype(np.int16) - np.int16(128)


def _stretched_share(cells: npt.NDArray[np.floating], size: tuple[int, int]) -> I16:
    """Cells of 0..1 over all pixels as 0..128, linearly."""
    image = Image.fromarray(np.clip(cells * 128, 0, 128).astype(np.uint8))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR)).astype(np.int16) * np.int16(2)


def _scaled_tile(tile: npt.NDArray[np.int8], size: tuple[int, int], strength: float, choice: int) -> I16:
    return (tile_over(tile, size, choice >> 8) * np.int16(strength * 128)) >> np.int16(7)


def _ramp(low: float, high: float, power: float = 1.0) -> npt.NDArray[np.float64]:
    """256 steps -> 0..255, rising smoothly between two numbers of deviations; 128 is none."""
    part = np.clip(((np.arange(256) - 128) / UNIT - low) / (high - low), 0, 1)
    return np.asarray(255 * (part * part * (3 - 2 * part)) ** power)


_OPACITY = [round(value) for value in _ramp(-0.20, 0.75)]
_WHITE = [round(value) for value in 158 + 0.23 * _ramp(-0.3, 1.2) + 0.12 * _ramp(0.5, 3.9)]
_HEIGHT = [round(value) for value in _ramp(1.6, 3.9)]
_LIE = [round(value) for value in _ramp(-0.6, 1.2)]


def _cover(field: I16, fine: I16) -> Weather:
    """Cut the field: opacity, and brightness with filaments and a little light from the upper left on heaps."""
    brightness = _look_up(_WHITE, field) + (fine >> 1)
    brightness[1:, 1:] += np.clip((field[1:, 1:] - field[:-1, :-1]) >> 1, -34, 22)
    return Weather(
        opacity=_look_up(_OPACITY, field),
        brightness=np.clip(brightness, 0, 248).astype(np.uint8),
        height=_look_up(_HEIGHT, field),
    )


def _look_up(table: list[int], field: I16) -> U8:
    """`table` at each step of `field`, -128..127. Pillow does it five times faster than NumPy's indexing."""
    steps = np.clip(field + np.int16(128), 0, 255).astype(np.uint8)
    return np.asarray(Image.fromarray(steps).point(table))
