"""The snapshot service: where and how a day's picture of a box is asked for.

Responsible for the settings and the URL scheme (the Worldview Snapshots service and, as a second style, GIBS WMS). Knows nothing of HTTP. The idea:
everything that decides what a picture shows is in `Service`, so its cache key says when two pictures are the same.

Known of the service (it publishes no formal description): EPSG:4326 boxes are latitude first; a box that names no area brings a black picture
and no error; AUTOSCALE=TRUE makes the server choose the width anew.
"""

import hashlib
import json
import math
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from urllib.parse import urlencode, urlsplit

from clouds.box import Box, number
from clouds.errors import CloudsError, DayUnavailable

SIDE_MAX = 8200
"""The most pixels a picture may have on a side; NASA's own client asks for no more."""

ACKNOWLEDGEMENT = "We acknowledge the use of imagery provided by NASA Worldview / GIBS, part of NASA ESDIS."
"""Belongs in everything shown to people."""

TRUE_COLOUR = "MODIS_Terra_CorrectedReflectance_TrueColor"
BANDS_721_SUFFIX = "CorrectedReflectance_Bands721"

PUBLIC_URL = {
    "snapshot": "https://wvs.earthdata.nasa.gov/api/v1/snapshot",
    "wms": "https://gibs.earthdata.nasa.gov/wms/epsg4326/best/wms.cgi",
}
"""Where each style of request is answered by NASA."""

LAYER_SINCE = {
    "MODIS_Terra_": date(2000, 2, 24),
    "MODIS_Aqua_": date(2002, 7, 3),
    "VIIRS_SNPP_": date(2015, 11, 24),
}
"""The first day of a family of layers. A day before it is answered with another day's picture, so we refuse it."""

PIXELS_PER_DEGREE = 113.7775
"""Pixels of 1 km that the service counts to a degree."""

CRS_NAMES = ("EPSG:4326", "EPSG:3413", "EPSG:3031", "EPSG:3857")
"""The first takes a Box in degrees, the others an Extent in metres."""

_EXTENT_ORDER = "x_min,y_min,x_max,y_max in metres"
_STATIC = ("Reference_", "Coastlines", "Graticule", "BlueMarble")


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """A rectangle in metres of a projected system (EPSG:3413, 3031, 3857), x first as the service wants it there."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(side) for side in self.as_tuple()):
            raise CloudsError(f"extent {self} holds something that is not a finite number; give {_EXTENT_ORDER}")
        if not (self.x_min < self.x_max and self.y_min < self.y_max):
            raise CloudsError(f"extent {self} has no area; give {_EXTENT_ORDER}")

    @classmethod
    def parse(cls, text: str) -> "Extent":
        """Read "x_min,y_min,x_max,y_max" (commas or white space between); raises CloudsError."""
        try:
            x_min, y_min, x_max, y_max = (float(part) for part in text.replace(",", " ").split())
        except ValueError:
            raise CloudsError(f"extent {text!r} is not four numbers; give {_EXTENT_ORDER}") from None
        return cls(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max)

    def __str__(self) -> str:
        """The form that `parse` reads and that the service's BBOX takes."""
        return ",".join(number(value) for value in self.as_tuple())

    def as_tuple(self) -> tuple[float, float, float, float]:
        """Return (x_min, y_min, x_max, y_max)."""
        return (self.x_min, self.y_min, self.x_max, self.y_max)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Where and how pictures are asked for; raises CloudsError where the settings contradict each other."""

    base_url: str = ""
    """Address of the service, without query. Empty: NASA's for the style."""
    style: str = "snapshot"
    """`snapshot` (Worldview Snapshots) or `wms` (GIBS WMS 1.3.0, the fallback with the same imagery)."""
    name: str = ""
    """What cache keys call the service; empty: its address. Set it where the address changes from run to run."""
    layers: tuple[str, ...] = (TRUE_COLOUR,)
    """Drawn bottom to top. Imagery alone: lines drawn into a picture would be analysed as ground."""
    crs: str = "EPSG:4326"
    """EPSG:4326 takes a Box in degrees; EPSG:3413, EPSG:3031 and EPSG:3857 an Extent in metres."""
    format: str = "image/jpeg"
    """`image/jpeg` or `image/png`. Default JPEG: a fifth of the bytes, and the cloud fraction moves by under .005."""
    km: float = 1.0
    """Kilometres a pixel, where `width` and `height` are not given."""
    width: int | None = None
    """Pixels, 1 to 8200, given together with `height`; overrides `km`."""
    height: int | None = None
    autoscale: bool = True
    """Let the width shrink with the cosine of the middle latitude, so that a pixel is about as wide as it is high."""
    timeout_s: float = 120.0
    """For one whole request. Default 120 because the service composes large pictures for tens of seconds."""
    user_agent: str = "antfarm-clouds/0.1 (daily cloud cover of a box; contact: the operator of this farm)"
    """Must name a contact; put an address of yours here when you ask NASA."""
    age_days_min: int = 1
    """Younger days are not asked for: today's picture is mostly black until its passes are processed."""
    provisional_days: int = 3
    """Pictures of younger days are marked provisional, and wanted again later."""

    def __post_init__(self) -> None:
        if self.style not in PUBLIC_URL:
            raise CloudsError(f"style {self.style!r} is unknown; use {' or '.join(PUBLIC_URL)}")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise CloudsError(f"service address {self.base_url!r} is not a plain http:// or https:// address")
        if not self.layers or not all(layer and not set(layer) & set(", &=?#") for layer in self.layers):
            raise CloudsError(f"layers {self.layers!r}: give at least one layer name, without commas or spaces")
        if self.format not in ("image/jpeg", "image/png"):
            raise CloudsError(f"format {self.format!r} cannot be analysed; use image/jpeg or image/png")
        if self.crs not in CRS_NAMES:
            raise CloudsError(f"crs {self.crs!r} is not served; use EPSG:4326, EPSG:3413, EPSG:3031 or EPSG:3857")
        if (self.width is None) != (self.height is None):
            raise CloudsError("give both width and height, or neither and the kilometres a pixel")
        if not self.km > 0:
            raise CloudsError(f"{self.km} kilometres a pixel make no picture; give a positive number")
        if not self.timeout_s > 0:
            raise CloudsError(f"a timeout of {self.timeout_s} s lets no picture through; give a positive number")

    @property
    def url(self) -> str:
        """The address without query."""
        return self.base_url or PUBLIC_URL[self.style]

    def size(self, area: Box | Extent) -> tuple[int, int]:
        """Return the (width, height) to ask for; raises CloudsError where a side is not within 1..8200 pixels."""
        if self.width is not None and self.height is not None:
            width, height = self.width, self.height
        elif isinstance(area, Box):
            width = round((area.lon_max - area.lon_min) * PIXELS_PER_DEGREE / self.km)
            height = round((area.lat_max - area.lat_min) * PIXELS_PER_DEGREE / self.km)
        else:
            width = round((area.x_max - area.x_min) / 1000 / self.km)
            height = round((area.y_max - area.y_min) / 1000 / self.km)
        if self.style == "wms" and self.autoscale and isinstance(area, Box):
            width = _scaled(width, area)  # WMS does not scale by itself, so we ask for what the other would choose
        if not (1 <= width <= SIDE_MAX and 1 <= height <= SIDE_MAX):
            raise CloudsError(
                f"a picture of {width}x{height} cannot be had, 1 to {SIDE_MAX} pixels a side can; "
                f"change the box, the kilometres a pixel or the size"
            )
        return width, height

    def sizes(self, area: Box | Extent) -> tuple[tuple[int, int], ...]:
        """Return the sizes a right answer may have: the asked one and, with autoscale, the one the server chooses."""
        width, height = self.size(area)
        if self.style == "snapshot" and self.autoscale and isinstance(area, Box):
            return ((width, height), (_scaled(width, area), height))
        return ((width, height),)

    def bands721(self) -> "Service":
        """Return the same service asked for the 7-2-1 picture of the same pass, which tells snow from cloud."""
        family = "_".join(self.layers[0].split("_")[:2])
        return replace(self, layers=(f"{family}_{BANDS_721_SUFFIX}",))


def build_url(service: Service, area: Box | Extent, day: date) -> str:
    """Return the address of `day`'s picture of `area`; raises CloudsError where area and crs do not go together."""
    if isinstance(area, Box) != (service.crs == "EPSG:4326"):
        raise CloudsError(f"{service.crs} takes {'a box in degrees' if service.crs == 'EPSG:4326' else 'metres'}")
    width, height = service.size(area)
    layers = ",".join(service.layers)
    common = {"WIDTH": str(width), "HEIGHT": str(height), "FORMAT": service.format, "TIME": day.isoformat()}
    if service.style == "wms":
        query = {"SERVICE": "WMS", "REQUEST": "GetMap", "VERSION": "1.3.0", "LAYERS": layers, "STYLES": ""}
        query |= {"CRS": service.crs, "BBOX": str(area)} | common
    else:
        wrap = ",".join("X" if layer.startswith(_STATIC) else "DAY" for layer in service.layers)
        query = {"REQUEST": "GetSnapshot", "LAYERS": layers, "CRS": service.crs, "BBOX": str(area), "WRAP": wrap}
        query |= common
        if service.autoscale and service.crs == "EPSG:4326":
            query["AUTOSCALE"] = "TRUE"
    # Commas and colons stay readable, as in the addresses the service's own users paste.
    return f"{service.url}?{urlencode(query, safe=',:/')}"


def cache_key(service: Service, area: Box | Extent) -> str:
    """Return 20 hexadecimal digits that two settings share only if they ask for the same pictures, day by day.

    Covers service, layers, crs, box, size and format; not timeouts, contact or ages, which change no picture.
    """
    width, height = service.size(area)
    scaled = service.autoscale and service.style == "snapshot"
    parts = [service.name or service.url, service.style, list(service.layers), service.crs, str(area)]
    text = json.dumps([*parts, width, height, scaled, service.format])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def check_day(service: Service, day: date, now: datetime) -> None:
    """Raise DayUnavailable where `day` is younger than `age_days_min` days (UTC) or older than one of the layers."""
    age_days = (now.astimezone(UTC).date() - day).days
    if age_days < service.age_days_min:
        raise DayUnavailable(
            f"{day} is too new: its picture is complete {service.age_days_min} day(s) later; ask again then"
        )
    for layer in service.layers:
        for family, since in LAYER_SINCE.items():
            if layer.startswith(family) and day < since:
                raise DayUnavailable(f"{day} is before {since}, the first day of {layer}")


def _scaled(width: int, box: Box) -> int:
    return max(1, round(width * math.cos(math.radians(box.lat_mid))))
