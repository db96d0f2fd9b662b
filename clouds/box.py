"""The box: a rectangle of latitudes and longitudes, and the areas of a picture's rows in it.

Responsible for reading, checking and printing a box. Knows nothing of pictures but their height. The idea: an
impossible box brings a valid, wholly black picture from the service and no error, so it must be refused here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clouds.errors import BadBox

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_ORDER = "lat_min,lon_min,lat_max,lon_max in degrees, latitude first"


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A rectangle in EPSG:4326, degrees, latitude first; raises BadBox when it has no area or leaves the globe.

    A box does not cross the date line: ask for its two halves.
    """

    lat_min: float
    lon_min: float
    lat_max: float
    lon_max: float

    def __post_init__(self) -> None:
        for name in ("lat_min", "lon_min", "lat_max", "lon_max"):
            if not math.isfinite(getattr(self, name)):
                raise BadBox(f"box {self}: {name} is not a finite number; give {_ORDER}")
        if not (-90 <= self.lat_min <= 90 and -90 <= self.lat_max <= 90):
            # Longitude given first is the usual mistake, and it shows here when it shows at all.
            raise BadBox(f"box {self}: a latitude is outside -90..90; give {_ORDER}")
        if not (-180 <= self.lon_min <= 180 and -180 <= self.lon_max <= 180):
            raise BadBox(f"box {self}: a longitude is outside -180..180; give {_ORDER}")
        if self.lat_min == self.lat_max or self.lon_min == self.lon_max:
            raise BadBox(f"box {self} has no area; give {_ORDER}")
        if self.lat_min > self.lat_max:
            raise BadBox(f"box {self}: lat_min is north of lat_max, swap them; give {_ORDER}")
        if self.lon_min > self.lon_max:
            raise BadBox(
                f"box {self}: lon_min is east of lon_max, swap them, or split a box that crosses the date line; "
                f"give {_ORDER}"
            )

    @classmethod
    def parse(cls, text: str) -> Box:
        """Read "lat_min,lon_min,lat_max,lon_max" (commas or white space between); raises BadBox."""
        parts = text.replace(",", " ").split()
        if len(parts) != 4:
            raise BadBox(f"box {text!r} has {len(parts)} numbers, not 4; give {_ORDER}")
        try:
            lat_min, lon_min, lat_max, lon_max = (float(part) for part in parts)
        except ValueError:
            raise BadBox(f"box {text!r} holds something that is not a number; give {_ORDER}") from None
        return cls(lat_min=lat_min, lon_min=lon_min, lat_max=lat_max, lon_max=lon_max)

    def __str__(self) -> str:
        """The form that `parse` reads and that the service's BBOX takes for EPSG:4326."""
        return ",".join(number(value) for value in self.as_tuple())

    def as_tuple(self) -> tuple[float, float, float, float]:
        """Return (lat_min, lon_min, lat_max, lon_max)."""
        return (self.lat_min, self.lon_min, self.lat_max, self.lon_max)

    @property
    def lat_mid(self) -> float:
        """The middle latitude in degrees."""
        return (self.lat_min + self.lat_max) / 2

    @property
    def aspect(self) -> float:
        """Its width over its height on the ground, at its middle latitude."""
        narrowed: float = max(math.cos(math.radians(self.lat_mid)), 0.01)
        return (self.lon_max - self.lon_min) * narrowed / (self.lat_max - self.lat_min)

    def row_weights(self, height: int) -> npt.NDArray[np.float64]:
        """Return the area of one pixel in each of `height` rows, north first, on a unit sphere and degree of longitude.

        sin(top) - sin(bottom) is exact where cos(middle) is not; the sum telescopes to sin(lat_max) - sin(lat_min).
        """
        if height < 1:
            raise ValueError("a picture has at least one row")
        import numpy as np  # whoever names a box, as every worker of a farm does, need not wait for it

        edges = np.sin(np.radians(np.linspace(self.lat_max, self.lat_min, height + 1)))
        return edges[:-1] - edges[1:]


SWEDEN = Box(lat_min=54.6985, lon_min=10.3525, lat_max=69.8203, lon_max=24.7862)
"""The application's default box."""


def number(value: float) -> str:
    """Return the shortest text that reads back to the same number, without exponent or a needless `.0`."""
    text = repr(float(value))
    if "e" in text:
        text = f"{value:.12f}".rstrip("0")
    return text.removesuffix(".0").removesuffix(".")
