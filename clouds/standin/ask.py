"""What a request asks the stand-in for, read as forgivingly and as strictly as the real services read it.

Responsible for turning a query into an `Ask`, or into the words with which NASA's servers refuse one: most often
HTTP 200 with an XML report. Knows nothing of scenes or of connections.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Literal
from xml.sax.saxutils import escape, quoteattr

from clouds.box import Box
from clouds.errors import BadBox

SIDE_MAX = 8200

Product = Literal["true_colour", "bands721", "blue_marble"]

_IMAGERY = re.compile(r"(MODIS_Terra|MODIS_Aqua|VIIRS_SNPP|VIIRS_NOAA20|VIIRS_NOAA21)_CorrectedReflectance_(\w+)")
_PRODUCTS: dict[str, Product] = {"TrueColor": "true_colour", "Bands721": "bands721", "BandsM11-I2-I1": "bands721"}
_LINES = ("Coastlines", "Reference_Features", "Reference_Labels")
_TIME = re.compile(r"(\d{4}-\d{2}-\d{2})(T\d{2}:\d{2}:\d{2}Z)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request that the services would answer with a picture."""

    day: date
    box: Box | None
    """None: an impossible or swapped box, which brings a black picture."""
    width: int
    height: int
    """Pixels, as asked."""
    autoscale: bool
    layers: tuple[str, ...]
    platform: str
    product: Product
    format: Literal["image/jpeg", "image/png"]

    @property
    def size(self) -> tuple[int, int]:
        """The (width, height) that is served: with autoscale the width shrinks with the middle latitude's cosine."""
        if not self.autoscale or self.box is None:
            return self.width, self.height
        return max(1, round(self.width * math.cos(math.radians(self.box.lat_mid)))), self.height


class NotAsked(Exception):
    """The query asks for nothing at all; the services say so in HTML, with status 200."""


class BadAsk(Exception):
    """The query cannot be served; `str()` says why, `code` and `locator` as the services name it."""

    def __init__(self, code: str, locator: str, text: str) -> None:
        super().__init__(text)
        self.code, self.locator = code, locator

    def xml(self) -> str:
        """The report the services would send."""
        if self.code == "LayerNotDefined":
            return service_report(self.code, str(self))
        return exception_report(self.code, self.locator, str(self))


def exception_report(code: str, locator: str, text: str) -> str:
    """An OWS exception report, as GIBS sends it."""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<ExceptionReport xmlns="http://www.opengis.net/ows/1.1" version="1.1.0" xml:lang="en">\n'
        f"  <Exception exceptionCode={quoteattr(code)} locator={quoteattr(locator)}>\n"
        f"    <ExceptionText>{escape(text)}</ExceptionText>\n  </Exception>\n</ExceptionReport>\n"
    )


def service_report(code: str, text: str) -> str:
    """A WMS 1.3.0 service exception report, as GIBS sends it."""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<ServiceExceptionReport version="1.3.0" xmlns="http://www.opengis.net/ogc">\n'
        f"  <ServiceException code={quoteattr(code)}>\n{escape(text)}\n  </ServiceException>\n"
        "</ServiceExceptionReport>\n"
    )


def read_ask(query: Mapping[str, str]) -> Ask:
    """Return what `query` asks for, by either style of request; raises NotAsked or BadAsk."""
    given = {key.upper(): value for key, value in query.items()}
    request = given.get("REQUEST", "")
    if not request:
        raise NotAsked
    if request not in ("GetSnapshot", "GetMap"):
        raise BadAsk("OperationNotSupported", "REQUEST", f"{request} is not supported")
    layers = tuple(layer for layer in given.get("LAYERS", "").split(",") if layer)
    platform, product = _imagery(layers)
    crs = given.get("CRS", given.get("SRS", ""))
    if crs != "EPSG:4326":
        raise BadAsk("InvalidCRS", "CRS", f"{crs or 'no CRS'} is not served here, EPSG:4326 is")
    longitude_first = request == "GetMap" and given.get("VERSION") == "1.1.1"
    return Ask(
        day=_day(given.get("TIME", "")),
        box=_box(given.get("BBOX", ""), longitude_first=longitude_first),
        width=_side("WIDTH", given.get("WIDTH", "")),
        height=_side("HEIGHT", given.get("HEIGHT", "")),
        autoscale=request == "GetSnapshot" and given.get("AUTOSCALE", "").upper() == "TRUE",
        layers=layers,
        platform=platform,
        product=product,
        format=_format(given.get("FORMAT", "image/jpeg")),
    )


def _imagery(layers: tuple[str, ...]) -> tuple[str, Product]:
    """The topmost imagery decides what is seen; lines over it are accepted and not drawn."""
    found: tuple[str, Product] | None = None
    for layer in layers:
        match = _IMAGERY.fullmatch(layer)
        if match and match[2] in _PRODUCTS:
            found = match[1], _PRODUCTS[match[2]]
        elif layer.startswith("BlueMarble"):
            found = "", "blue_marble"
        elif not layer.startswith(_LINES):
            raise BadAsk("LayerNotDefined", "LAYERS", f"Unable to access -- invalid LAYER(s): {layer}")
    if found is None:
        raise BadAsk("LayerNotDefined", "LAYERS", "Unable to access -- no imagery among the LAYERS")
    return found


def _day(text: str) -> date:
    match = _TIME.fullmatch(text)
    try:
        return date.fromisoformat(match[1] if match else text)
    except ValueError:
        words = "Invalid time format, must be YYYY-MM-DD or YYYY-MM-DDThh:mm:ssZ"
        raise BadAsk("InvalidParameterValue", "TIME", words) from None


def _box(text: str, *, longitude_first: bool) -> Box | None:
    try:
        numbers = [float(part) for part in text.split(",")]
        if len(numbers) != 4:
            raise ValueError
    except ValueError:
        raise BadAsk("InvalidParameterValue", "BBOX", f"BBOX={text} is not four numbers") from None
    if longitude_first:
        numbers = [numbers[1], numbers[0], numbers[3], numbers[2]]
    try:
        return Box(lat_min=numbers[0], lon_min=numbers[1], lat_max=numbers[2], lon_max=numbers[3])
    except BadBox:
        return None


def _side(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= SIDE_MAX):
        raise BadAsk("InvalidParameterValue", name, f"{name}={text} is not 1 to {SIDE_MAX} pixels")
    return int(text)


def _format(text: str) -> Literal["image/jpeg", "image/png"]:
    if text == "image/jpeg":
        return "image/jpeg"
    if text == "image/png":
        return "image/png"
    raise BadAsk("InvalidFormat", "FORMAT", f"{text} is not served here, image/jpeg and image/png are")
