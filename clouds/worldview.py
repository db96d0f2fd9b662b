"""NASA's snapshot service: the address of one day's picture of one box, and one attempt at fetching it.

Responsible for the URL scheme (the Worldview Snapshots service and, as a second style, GIBS WMS), for the settings
that go into it, and for one polite HTTP request. Judging the answer is `clouds.answer`; trying again, and how many
requests run at a time over the whole farm, is the business of whoever calls. The idea: everything that decides what
a picture shows is in `Service`, so its cache key says when two pictures are the same.

Known of the service (it publishes no formal description): EPSG:4326 boxes are latitude first; a box that names no
area brings a black picture and no error; AUTOSCALE=TRUE makes the server choose the width anew.
"""

import asyncio
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from urllib.parse import urlencode, urlsplit

import aiohttp

from clouds.answer import SIDE_MAX, Answer, Picture, Refused, ServiceDown, Throttled, check
from clouds.box import Box
from clouds.errors import CloudsError

__all__ = [
    "ACKNOWLEDGEMENT",
    "DayUnavailable",
    "Extent",
    "Refused",
    "Service",
    "ServiceDown",
    "Snapshot",
    "Throttled",
    "build_url",
    "cache_key",
    "check_day",
    "fetch",
    "open_session",
    "repeated_pictures",
]

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

BODY_BYTES_MAX = 64 * 1024 * 1024
"""A longer answer is refused while it is being read; the largest pictures are about 30 MiB."""

REDIRECTS_MAX = 5

_STATIC = ("Reference_", "Coastlines", "Graticule", "BlueMarble")


class DayUnavailable(CloudsError):
    """That day cannot be asked for: it is too new to be processed, or older than the layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """A rectangle in metres of a projected system (EPSG:3413, 3031, 3857), x first as the service wants it there."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float

    def __post_init__(self) -> None:
        if not (self.x_min < self.x_max and self.y_min < self.y_max):
            raise CloudsError(f"extent {self} has no area; give x_min,y_min,x_max,y_max in metres")

    def __str__(self) -> str:
        return ",".join(f"{value:g}" for value in (self.x_min, self.y_min, self.x_max, self.y_max))


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
        if self.crs not in ("EPSG:4326", "EPSG:3413", "EPSG:3031", "EPSG:3857"):
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One day's picture that passed every check, and where it came from."""

    day: date
    body: bytes
    """The bytes as received."""
    sha256: str
    """Of `body`, hexadecimal. A flipped bit in a JPEG decodes without a word; only this tells."""
    content_type: str
    width: int
    height: int
    """Pixels that came, which may not be those asked for."""
    url: str
    """The address asked, which anybody can ask again."""
    fetched_at: datetime
    provisional: bool
    """The day was so young that its picture may still change: fetch it again later."""
    all_black: bool
    """Nothing was observed that day. A result, not an error."""
    warnings: tuple[str, ...]
    seconds: float
    """From the request to the last byte."""


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


def repeated_pictures(digests: Mapping[date, str], *, no_data: Set[date] = frozenset()) -> list[tuple[date, ...]]:
    """Return the groups of two or more days that have the very same bytes, each group and the list in order of days.

    The service answers a day it lacks with the nearest one it has, so such days are suspicious, all of them. Days
    in `no_data` are left out: black pictures of one size are the same bytes by nature.
    """
    by_digest: dict[str, list[date]] = {}
    for day in sorted(set(digests) - no_data):
        by_digest.setdefault(digests[day], []).append(day)
    return sorted(tuple(days) for days in by_digest.values() if len(days) > 1)


def open_session(service: Service) -> aiohttp.ClientSession:
    """Return a session fit for `fetch`; the caller closes it. Proxies of the environment serve all but this machine."""
    host = urlsplit(service.url).hostname or ""
    local = host == "localhost" or host.startswith("127.") or host == "::1"
    return aiohttp.ClientSession(trust_env=not local, cookie_jar=aiohttp.DummyCookieJar())


async def fetch(
    session: aiohttp.ClientSession,
    service: Service,
    area: Box | Extent,
    day: date,
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Snapshot:
    """Make one attempt at `day`'s picture, following redirects, and return it only if it passes every check.

    Raises DayUnavailable (nothing was sent), Refused (permanent), Throttled or ServiceDown (try again later, after
    `retry_after_s` if the server named a pause). Nothing of a refused answer is returned.
    """
    check_day(service, day, now())
    url = build_url(service, area, day)
    began = time.monotonic()
    try:
        answer, redirected = await _get(session, service, url)
    except TimeoutError as error:
        raise ServiceDown(f"{_host(url)} did not finish within {service.timeout_s:g} s") from error
    except (aiohttp.TooManyRedirects, aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
        raise Refused(f"{_host(url)} redirects to nowhere: {_words(error)}") from error
    except (aiohttp.ClientError, OSError) as error:
        if isinstance(error.__cause__, aiohttp.ClientConnectorCertificateError):
            raise Refused(f"{_host(url)} shows a certificate that is not trusted: {error}") from error
        raise ServiceDown(f"{_host(url)} gave no whole answer: {_words(error)}") from error
    seconds = time.monotonic() - began
    fetched_at = now()
    # A large picture decodes for seconds: not on the loop.
    picture = await asyncio.to_thread(check, answer, format=service.format, sizes=service.sizes(area), now=fetched_at)
    provisional = (fetched_at.astimezone(UTC).date() - day).days < service.provisional_days
    return Snapshot(
        day=day,
        body=answer.body,
        sha256=hashlib.sha256(answer.body).hexdigest(),
        content_type=picture.content_type,
        width=picture.width,
        height=picture.height,
        url=url,
        fetched_at=fetched_at,
        provisional=provisional,
        all_black=picture.all_black,
        # GIBS WMS redirects every good request; of the snapshot service it would be news.
        warnings=tuple(_warnings(answer, picture, redirected and service.style == "snapshot", provisional)),
        seconds=seconds,
    )


async def _get(session: aiohttp.ClientSession, service: Service, url: str) -> tuple[Answer, bool]:
    """The answer after redirects, its body read no further than the bound; and whether there was a redirect."""
    async with session.get(
        url,
        headers={"User-Agent": service.user_agent, "Accept": f"{service.format}, */*;q=0.1"},
        timeout=aiohttp.ClientTimeout(total=service.timeout_s),
        max_redirects=REDIRECTS_MAX,
        middlewares=(_once,),
    ) as response:
        body = bytearray()
        async for chunk in response.content.iter_chunked(1 << 16):
            body += chunk
            if len(body) > BODY_BYTES_MAX:
                raise Refused(f"the answer exceeds {BODY_BYTES_MAX >> 20} MiB", status=response.status)
        answer = Answer(status=response.status, headers=response.headers, body=bytes(body))
        return answer, bool(response.history)


class _Dropped(aiohttp.ClientError):
    """The connection ended without an answer."""


async def _once(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Keep aiohttp from repeating a request whose connection was dropped: how often we ask is for our caller to say."""
    try:
        return await send(request)
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _Dropped(_words(error)) from error


def _warnings(answer: Answer, picture: Picture, redirected: bool, provisional: bool) -> list[str]:
    found = []
    if picture.all_black:
        found.append("no data: the picture is wholly black")
    if provisional:
        found.append("provisional: the day is so young that its picture may still change")
    if redirected:
        found.append("redirected by the service")
    if not answer.header("Content-Length"):
        found.append("the service did not say how long the picture is")
    return found


def _scaled(width: int, box: Box) -> int:
    return max(1, round(width * math.cos(math.radians(box.lat_mid))))


def _host(url: str) -> str:
    return urlsplit(url).netloc


def _words(error: Exception) -> str:
    if isinstance(error, _Dropped):
        return str(error)
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect ({error.os_error.strerror or error.os_error})"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
