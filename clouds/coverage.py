"""Cloud cover of one picture: which pixels hold data, which of them are cloud, and what they amount to.

Responsible for the science, on arrays alone. Must not know of files, encodings, days, networks or the farm.

The imagery is MODIS corrected reflectance: stretched colours of 0..255 in which clouds are bright, nearly grey and
bluer than the ground. All thresholds below are in these shown values. With V and m the largest and smallest of red,
green and blue, a pixel is cloud when all of this holds:

* it has data (see `no_data`);
* its blue stands 20 over the *ground* around it, or m > 170 (thick cloud wherever it lies), and blue > 80;
* it is nearly grey: V - m < V // 4, a saturation below a quarter;
* haze-optimised difference blue - red // 2 >= 45, which turns down desert, dust and brown glint;
* its 8x8 cell is not flat and grey (mean blue 80..135 in a range below 24: smooth sun glint or haze);
* where a Bands 7-2-1 picture of the same pass is at hand: it is not snow or ice there (see `snow_or_ice`).

The ground is blue averaged over 8x8 cells, the least of 13x13 cells around, smoothed over 9x9 of them.

Everything stays in unsigned bytes and walks the picture in strips that fit the processor's cache; in floating point
the same costs twenty times the time. The saturation test written as `V // 4 > V - m` needs no division by V.
"""

from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from clouds.box import Box

Bytes2D = npt.NDArray[np.uint8]
Bools2D = npt.NDArray[np.bool_]
Scalar = TypeVar("Scalar", bound=np.generic)

CLEAR: Final = 0
CLOUD: Final = 1
NO_DATA: Final = 2

BLACK_MAX: Final = 6  # JPEG noise in gaps reaches 6, 98 % of it is 0
BLACK_PATCH_PX: Final = 5  # a gap is solid; dark sea and drawn lines are not
SMEAR_PX: Final = 4  # the compressed edge of a gap reaches this far from the centres of its patches
SMEAR_MAX: Final = 40

BLUE_MIN: Final = 80
RISE_MIN: Final = 20
HAZE_MIN: Final = 45
THICK_MIN: Final = 170
CELL_PX: Final = 8
GROUND_CELLS: Final = 13
SMOOTH_CELLS: Final = 9
FLAT_BLUE: Final = (80, 135)
FLAT_RANGE: Final = 24

VALID_MIN: Final = 0.5  # a picture observed less than this says little of its box and stays out of means

SNOW_THRESHOLD: Final = 0.5
UNSCREENED_MAX: Final = 0.05  # share of a picture that the snow screen may miss before it does not count as screened

_STRIP_ROWS: Final = 64  # strips of rows that fit the processor's cache
_GAP_STRIP_ROWS: Final = 256  # longer, for each looks at some rows of its neighbours too

PARAMETERS: Final[dict[str, object]] = {
    "black_max": BLACK_MAX,
    "black_patch_px": BLACK_PATCH_PX,
    "smear_px": SMEAR_PX,
    "smear_max": SMEAR_MAX,
    "blue_min": BLUE_MIN,
    "rise_min": RISE_MIN,
    "haze_min": HAZE_MIN,
    "saturation_max": 0.25,
    "thick_min": THICK_MIN,
    "cell_px": CELL_PX,
    "ground_cells": GROUND_CELLS,
    "smooth_cells": SMOOTH_CELLS,
    "flat_blue": list(FLAT_BLUE),
    "flat_range": FLAT_RANGE,
}
"""What a result records beside the method and its version so that it can be told from another."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cover:
    """What was found in one picture, as arrays of its height and width."""

    mask: Bytes2D
    """CLEAR, CLOUD or NO_DATA for every pixel."""
    thick: Bools2D
    """The cloud pixels with m > THICK_MIN, a subset of mask == CLOUD."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """The numbers of one picture. A fraction is of valid pixels and None where there are none, never 0."""

    pixels_total: int
    pixels_valid: int
    pixels_cloud: int
    valid_fraction: float
    cloud_fraction: float | None
    cloud_fraction_area: float | None
    """Each row weighted by its area on the globe; None also where the box is not known."""
    thick_fraction: float | None
    by_quadrant: tuple[float | None, float | None, float | None, float | None]
    """Cloud fraction of the north-west, north-east, south-west and south-east quarter."""


def find_cloud(rgb: Bytes2D, bands721: Bytes2D | None = None, *, snow_threshold: float = SNOW_THRESHOLD) -> Cover:
    """Find no data and cloud in a true-colour picture of shape (height, width, 3).

    `bands721` is the Bands 7-2-1 picture of the same pass, box and size: what is snow or ice there is not cloud.
    """
    height, width = rgb.shape[:2]
    if rgb.shape != (height, width, 3) or rgb.dtype != np.uint8 or not height or not width:
        raise ValueError("a picture is an array of bytes, (height, width, 3), with at least one pixel")
    if bands721 is not None and bands721.shape != rgb.shape:
        raise ValueError("the Bands 7-2-1 picture has another size than the true-colour one")

    red, green, blue = (_padded_to_cells(rgb[..., band]) for band in range(3))
    absent = _padded_to_cells(no_data(_largest(red, green, blue)[:height, :width]))
    cover = _bright_grey_and_risen(red, green, blue, absent, (height, width))
    if bands721 is not None:
        snow = snow_or_ice(bands721, snow_threshold).view(np.uint8)
        cover.mask[...] ^= cover.mask & snow  # 1 becomes 0 where there is snow; 0 and 2 stay
        np.greater(cover.thick, snow, out=cover.thick)
    return cover


def no_data(value: Bytes2D) -> Bools2D:
    """Tell where a picture was never observed, from the largest of its three bands.

    Black alone does not say so: sea in shadow and drawn lines are black too. No data is black in a solid patch of
    5x5 pixels; the centres of such patches grow by 4 pixels wherever it is dark, which takes in their smeared edge.
    """
    found = np.zeros(value.shape, np.bool_)
    halo = BLACK_PATCH_PX // 2 + SMEAR_PX  # how far off a black pixel still matters
    for top in range(0, len(value), _GAP_STRIP_ROWS):
        first = max(0, top - halo)
        strip = value[first : top + _GAP_STRIP_ROWS + halo]
        # Every patch holds exactly one pixel of a grid as wide as itself: most strips are done after looking at those,
        # and the others need looking at only around them.
        columns = np.flatnonzero((strip[::BLACK_PATCH_PX, ::BLACK_PATCH_PX] <= BLACK_MAX).any(axis=0)) * BLACK_PATCH_PX
        if columns.size:
            reach = halo + BLACK_PATCH_PX
            part = slice(max(0, int(columns[0]) - reach), int(columns[-1]) + reach)
            found[top : top + _GAP_STRIP_ROWS, part] = _gap(strip[:, part])[top - first :][:_GAP_STRIP_ROWS]
    return found


def snow_or_ice(bands721: Bytes2D, threshold: float = SNOW_THRESHOLD) -> Bools2D:
    """Tell snow and ice from cloud in a Bands 7-2-1 picture: there blue - red > threshold x (blue + red).

    Snow and ice swallow light at 2.1 um (shown as red) and give back that of 0.6 um (blue); clouds of water return both.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"the snow threshold is {threshold}; it lies in 0..1, 1 excluded")
    # Rewritten as blue (1 - threshold) > red (1 + threshold), in hundredths: 199 x 255 still fits 16 bits.
    red_weight = round(100 * (1 + threshold))
    snow = np.empty(bands721.shape[:2], np.bool_)
    for top in range(0, len(snow), _STRIP_ROWS):
        strip = bands721[top : top + _STRIP_ROWS]
        red = strip[..., 0] * np.uint16(red_weight)
        np.greater(strip[..., 2] * np.uint16(200 - red_weight), red, out=snow[top : top + _STRIP_ROWS])
    return snow


def unscreened_fraction(cover: Cover, bands721: Bytes2D) -> float:
    """Return the share of valid pixels for which the Bands 7-2-1 picture has no data, so that snow there stays cloud."""
    valid = cover.mask != NO_DATA
    unseen = no_data(_largest(bands721[..., 0], bands721[..., 1], bands721[..., 2]))
    return _ratio(int(np.count_nonzero(valid & unseen)), int(np.count_nonzero(valid))) or 0.0


def measure(cover: Cover, box: Box | None = None) -> Measure:
    """Count a mask; `box` gives the areas of its rows and is None where they are not known (another projection)."""
    height, width = cover.mask.shape
    halves = (slice(0, (width + 1) // 2), slice((width + 1) // 2, width))
    # Rows of the western and the eastern half, from which everything else is summed.
    cloud = [_count_rows(cover.mask[:, half] == CLOUD) for half in halves]
    valid = [_count_rows(cover.mask[:, half] != NO_DATA) for half in halves]
    cloud_rows, valid_rows = cloud[0] + cloud[1], valid[0] + valid[1]
    pixels_valid = int(valid_rows.sum())
    area = None
    if box is not None and pixels_valid:
        weights = box.row_weights(height)
        area = float(weights @ cloud_rows / (weights @ valid_rows))
    middle = (height + 1) // 2
    quarters = [
        _ratio(int(cloud[side][rows].sum()), int(valid[side][rows].sum()))
        for rows in (slice(0, middle), slice(middle, height))
        for side in (0, 1)
    ]
    return Measure(
        pixels_total=height * width,
        pixels_valid=pixels_valid,
        pixels_cloud=int(cloud_rows.sum()),
        valid_fraction=pixels_valid / (height * width),
        cloud_fraction=_ratio(int(cloud_rows.sum()), pixels_valid),
        cloud_fraction_area=area,
        thick_fraction=_ratio(int(np.count_nonzero(cover.thick)), pixels_valid),
        by_quadrant=(quarters[0], quarters[1], quarters[2], quarters[3]),
    )


def _gap(value: Bytes2D) -> Bools2D:
    """Tell the no data of a part of a picture; true for what is at least a halo away from where the part was cut."""
    centres = _windowed(np.logical_and, value <= BLACK_MAX, BLACK_PATCH_PX)
    # A patch that touches the picture's edge has its centre two pixels inside: growing by four takes in the edge.
    around = np.zeros((value.shape[0] + 2 * SMEAR_PX, value.shape[1] + 2 * SMEAR_PX), np.bool_)
    top, left = ((whole - part) // 2 for whole, part in zip(around.shape, centres.shape, strict=True))
    around[top : top + centres.shape[0], left : left + centres.shape[1]] = centres
    return _windowed(np.logical_or, around, 2 * SMEAR_PX + 1) & (value <= SMEAR_MAX)


def _bright_grey_and_risen(
    red: Bytes2D, green: Bytes2D, blue: Bytes2D, absent: Bools2D, shape: tuple[int, int]
) -> Cover:
    """Apply the colour tests to padded planes of a picture of `shape`."""
    height, width = shape
    limit = _blue_limit(blue, absent).repeat(CELL_PX, axis=1)
    cover = Cover(mask=np.empty(shape, np.uint8), thick=np.empty(shape, np.bool_))
    # Every step writes into the same few strips: fresh arrays would cost more than the arithmetic.
    byte_strips = [np.empty((_STRIP_ROWS, blue.shape[1]), np.uint8) for _ in range(3)]
    bool_strips = [np.empty((_STRIP_ROWS, blue.shape[1]), np.bool_) for _ in range(2)]
    for top in range(0, len(blue), _STRIP_ROWS):
        rows = slice(top, min(top + _STRIP_ROWS, len(blue)))
        r, g, b, gone, n = red[rows], green[rows], blue[rows], absent[rows], rows.stop - top
        most, least, other = (strip[:n] for strip in byte_strips)
        grey, test = (strip[:n] for strip in bool_strips)
        np.maximum(np.maximum(r, g, out=most), b, out=most)
        np.minimum(np.minimum(r, g, out=least), b, out=least)
        np.greater(most >> 2, np.subtract(most, least, out=other), out=grey)
        # Where a pixel is grey, blue >= least > 3/4 most > red // 2: the difference does not wrap, and wherever it
        # does wrap the pixel is out already.
        grey &= np.greater_equal(np.subtract(b, r >> 1, out=other), HAZE_MIN, out=test)
        np.greater(grey, gone, out=grey)  # grey and not gone
        # Cells: every eight rows share one row of limits.
        cells = (n // CELL_PX, CELL_PX, blue.shape[1])
        np.greater(b.reshape(cells), limit[top // CELL_PX : rows.stop // CELL_PX, np.newaxis], out=test.reshape(cells))
        thick = np.logical_and(grey, least > THICK_MIN)
        cloud = np.logical_and(grey, np.logical_or(test, thick, out=test), out=test)
        np.add(np.left_shift(gone.view(np.uint8), 1, out=other), cloud.view(np.uint8), out=other)  # 2, 1 or 0
        kept = min(rows.stop, height) - top
        cover.mask[rows], cover.thick[rows] = other[:kept, :width], thick[:kept, :width]
    return cover


def _blue_limit(blue: Bytes2D, absent: Bools2D) -> Bytes2D:
    """Return, per cell, the blue a pixel must exceed to be cloud; 255 where nothing there may be."""
    cells = (blue.shape[0] // CELL_PX, blue.shape[1] // CELL_PX)
    mean, span = np.empty(cells, np.uint8), np.empty(cells, np.uint8)
    for top in range(0, blue.shape[0], _STRIP_ROWS):
        rows = slice(top, top + _STRIP_ROWS)
        seen = blue[rows] | -absent[rows].view(np.uint8)  # no data counts as 255 and so never lowers the ground
        stacked = seen.reshape(-1, CELL_PX, seen.shape[1])
        into = slice(top // CELL_PX, (top + _STRIP_ROWS) // CELL_PX)
        mean[into] = _across(np.add, np.add.reduce(stacked, axis=1, dtype=np.uint16)) // CELL_PX**2
        most, least = np.maximum.reduce(stacked, axis=1), np.minimum.reduce(stacked, axis=1)
        span[into] = _across(np.maximum, most) - _across(np.minimum, least)

    ground = _windowed(np.minimum, np.pad(mean, GROUND_CELLS // 2, constant_values=255), GROUND_CELLS)
    limit = np.clip(_smoothed(ground) + RISE_MIN, BLUE_MIN, 255).astype(np.uint8)
    limit[(mean >= FLAT_BLUE[0]) & (mean <= FLAT_BLUE[1]) & (span < FLAT_RANGE)] = 255
    return limit


def _across(combine: np.ufunc, rows: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
    """Combine each run of CELL_PX values along the rows; whole columns at a time, for short runs are slow."""
    total = rows[:, 0::CELL_PX].copy()
    for column in range(1, CELL_PX):
        combine(total, rows[:, column::CELL_PX], out=total)
    return total


def _smoothed(cells: Bytes2D) -> npt.NDArray[np.uint16]:
    """Return the mean of SMOOTH_CELLS x SMOOTH_CELLS cells around each, the outermost repeated beyond the edge."""
    total = np.pad(cells, SMOOTH_CELLS // 2, mode="edge").astype(np.uint16)
    for _axis in (0, 1):  # transposed twice, so both directions are summed and the shape is kept
        kept = len(total) - SMOOTH_CELLS + 1
        total = np.add.reduce([total[shift : shift + kept] for shift in range(SMOOTH_CELLS)], dtype=np.uint16).T
    return total // SMOOTH_CELLS**2


def _windowed(combine: np.ufunc, plane: npt.NDArray[Scalar], size: int) -> npt.NDArray[Scalar]:
    """Combine each `size` x `size` window that lies wholly in the plane: the result is `size` - 1 smaller.

    The ufunc must not mind a value taken twice (and, or, minimum). A plane narrower than the window is combined over
    all it has.
    """
    for axis in (0, 1):
        plane = plane.swapaxes(0, axis)
        wanted, have = min(size, len(plane)), 1
        while have < wanted:  # windows of 1, 2, 4, ... and a last, overlapping step to the size wanted
            step = min(have, wanted - have)
            plane = combine(plane[: len(plane) - step], plane[step:])
            have += step
        plane = plane.swapaxes(0, axis)
    return plane


def _largest(first: Bytes2D, second: Bytes2D, third: Bytes2D) -> Bytes2D:
    largest = np.maximum(first, second)
    return np.maximum(largest, third, out=largest)


def _padded_to_cells(plane: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
    """Copy a plane into whole cells, repeating its last row and column."""
    height, width = plane.shape
    padded = np.empty((-(-height // CELL_PX) * CELL_PX, -(-width // CELL_PX) * CELL_PX), plane.dtype)
    padded[:height, :width] = plane
    padded[height:, :width] = plane[-1:]
    padded[:, width:] = padded[:, width - 1 : width]
    return padded


def _count_rows(plane: Bools2D) -> npt.NDArray[np.uint32]:
    counts: npt.NDArray[np.uint32] = np.add.reduce(plane.view(np.uint8), axis=1, dtype=np.uint32)
    return counts


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
