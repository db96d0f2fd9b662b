"""The mean-cloud map and the clearest-pixel picture, as a fold over days.

Responsible for partial sums over days that can be made anywhere, stored, and merged in any order and grouping with
the same end. Must not know of files, the farm or how cloud is found.

The map is kept on a grid of at most GRID_SIDE_PX a side. A cell holds how many pixels of its part of the picture were
cloud and how many were valid, summed over days, so that cloud / valid is the mean cloud cover there however the days
were observed; nothing is interpolated. A picture of another size than the grid was made for is stretched onto it, so
a day that came some pixels wider than the others does no harm. The composite keeps, per cell, the day of lowest blue and its colour there: clouds raise
blue, so over days this is the ground. Of equal days the earliest wins, which makes merging independent of order.
"""

import io
import math
import zipfile
import zlib
from dataclasses import dataclass
from datetime import date
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from clouds.coverage import CLOUD, NO_DATA, Bytes2D
from clouds.errors import CloudsError

GRID_SIDE_PX: Final = 500
_VERSION: Final = 1
# RuntimeError: an archive that claims a password or a version of its own; the others are what bytes of any kind raise.
_BROKEN: Final = (OSError, ValueError, KeyError, EOFError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fold:
    """Sums over days on one grid of (rows, columns), north first. Treat the arrays as read-only."""

    days: int
    """How many days were folded in; a day folded in twice counts twice."""
    cloud: npt.NDArray[np.uint32]
    """Cloud pixels that fell into each cell."""
    valid: npt.NDArray[np.uint32]
    """Valid pixels that fell into each cell; never less than cloud."""
    clearest_day: npt.NDArray[np.int32]
    """The day of lowest blue that saw the cell whole, as a proleptic ordinal; 0 where there is none."""
    clearest: Bytes2D
    """The colour of the cell on that day, (rows, columns, 3); black where there is none."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        return self.cloud.shape[0], self.cloud.shape[1]

    def mean_cloud(self) -> npt.NDArray[np.float64]:
        """Return the mean cloud fraction of each cell, not-a-number where it was never seen."""
        with np.errstate(invalid="ignore"):
            mean: npt.NDArray[np.float64] = self.cloud / self.valid.astype(np.float64)
        return mean


def grid_shape(width: int, height: int) -> tuple[int, int]:
    """Return the (rows, columns) of the grid for pictures of a size: whole pixels a cell, at most GRID_SIDE_PX a side."""
    size = max(1, math.ceil(max(width, height) / GRID_SIDE_PX))
    return math.ceil(height / size), math.ceil(width / size)


def empty(shape: tuple[int, int]) -> Fold:
    """Return the fold over no days, which changes nothing when merged."""
    return Fold(
        days=0,
        cloud=np.zeros(shape, np.uint32),
        valid=np.zeros(shape, np.uint32),
        clearest_day=np.zeros(shape, np.int32),
        clearest=np.zeros((*shape, 3), np.uint8),
    )


def fold_day(rgb: Bytes2D, mask: Bytes2D, day: date, shape: tuple[int, int]) -> Fold:
    """Return the fold over one day, from its picture and its mask; the picture may be smaller than the mask."""
    cell_px, mask = _fitted(mask, shape)
    cloud = _sum_cells(mask == CLOUD, cell_px, shape)
    valid = _sum_cells(mask != NO_DATA, cell_px, shape)
    # The edge of a gap is smeared into its neighbours and would win as the darkest there.
    whole = _all_around(valid == _cell_pixels(mask.shape, cell_px))
    colour = np.asarray(Image.fromarray(rgb).resize((shape[1], shape[0]), Image.Resampling.BOX))
    return Fold(
        days=1,
        cloud=cloud,
        valid=valid,
        clearest_day=np.where(whole, day.toordinal(), 0).astype(np.int32),
        clearest=np.where(whole[..., np.newaxis], colour, 0).astype(np.uint8),
    )


def merge(first: Fold, second: Fold) -> Fold:
    """Return the fold over the days of both: associative, commutative, with `empty` as its neutral element."""
    if first.shape != second.shape:
        raise CloudsError(
            f"maps of {first.shape} and {second.shape} cells cannot be merged; fold all days onto one grid"
        )
    # A cell that only one has seen is taken from that one; equal blue is settled by the day, so that the order of
    # merging cannot show.
    blue, other = first.clearest[..., 2], second.clearest[..., 2]
    earlier = second.clearest_day < first.clearest_day
    takes_second = (second.clearest_day > 0) & (
        (first.clearest_day == 0) | (other < blue) | ((other == blue) & earlier)
    )
    return Fold(
        days=first.days + second.days,
        cloud=first.cloud + second.cloud,
        valid=first.valid + second.valid,
        clearest_day=np.where(takes_second, second.clearest_day, first.clearest_day),
        clearest=np.where(takes_second[..., np.newaxis], second.clearest, first.clearest),
    )


def to_bytes(fold: Fold) -> bytes:
    """Encode a fold as a compressed npz; equal folds give equal bytes."""
    arrays = {
        "version": np.int64(_VERSION),
        "days": np.int64(fold.days),
        "cloud": _narrowed(fold.cloud),
        "valid": _narrowed(fold.valid),
        "clearest_day": fold.clearest_day,
        "clearest": fold.clearest,
    }
    buffer = io.BytesIO()
    # NumPy's own writer compresses hard, which takes longer than the analysis of the picture.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    return buffer.getvalue()


def from_bytes(data: bytes) -> Fold:
    """Decode what `to_bytes` made; raises CloudsError for anything else. Never unpickles."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            if int(stored["version"]) != _VERSION:
                raise CloudsError(f"the map is of version {int(stored['version'])}, this program reads {_VERSION}")
            fold = Fold(
                days=int(stored["days"]),
                cloud=stored["cloud"].astype(np.uint32),
                valid=stored["valid"].astype(np.uint32),
                clearest_day=stored["clearest_day"],
                clearest=stored["clearest"],
            )
    except _BROKEN as error:
        raise CloudsError(f"these bytes are not a map of clouds: {error}") from error
    if fold.cloud.ndim != 2 or fold.clearest.shape != (*fold.shape, 3):
        raise CloudsError("these bytes are not a map of clouds: the arrays do not fit each other")
    return fold


def _narrowed(counts: npt.NDArray[np.uint32]) -> npt.NDArray[np.unsignedinteger]:
    """Return counts in the narrowest type that holds them: most folds are of one day."""
    return counts.astype(np.min_scalar_type(int(counts.max(initial=0))))


def _fitted(mask: Bytes2D, shape: tuple[int, int]) -> tuple[int, Bytes2D]:
    """Return the pixels a cell has to a side, and the mask in a size of which that makes the grid."""
    height, width = mask.shape
    cell_px = math.ceil(max(height / shape[0], width / shape[1]))
    if (math.ceil(height / cell_px), math.ceil(width / cell_px)) == shape:
        return cell_px, mask
    stretched = Image.fromarray(mask).resize((shape[1] * cell_px, shape[0] * cell_px), Image.Resampling.NEAREST)
    return cell_px, np.asarray(stretched)


def _sum_cells(plane: npt.NDArray[np.bool_], cell_px: int, shape: tuple[int, int]) -> npt.NDArray[np.uint32]:
    """Count the true pixels of each cell; the last row and column of cells may be cut by the picture's edge."""
    rows, columns = shape
    padded = np.zeros((rows * cell_px, columns * cell_px), np.uint8)
    padded[: plane.shape[0], : plane.shape[1]] = plane
    tall = np.add.reduce(padded.reshape(rows, cell_px, -1), axis=1, dtype=np.uint32)
    total: npt.NDArray[np.uint32] = tall[:, 0::cell_px].copy()
    for column in range(1, cell_px):
        total += tall[:, column::cell_px]
    return total


def _cell_pixels(shape: tuple[int, ...], cell_px: int) -> npt.NDArray[np.uint32]:
    """Return how many pixels of a picture of `shape` fall into each cell."""
    heights, widths = (np.minimum(cell_px, size - np.arange(0, size, cell_px)) for size in shape)
    return np.outer(heights, widths).astype(np.uint32)


def _all_around(cells: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Keep the cells whose eight neighbours hold too; what lies beyond the edge does not matter."""
    padded = np.pad(cells, 1, constant_values=True)
    tall = padded[:-2] & padded[1:-1] & padded[2:]
    return tall[:, :-2] & tall[:, 1:-1] & tall[:, 2:]
