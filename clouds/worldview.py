"""One attempt at fetching one day's picture from the snapshot service.

Responsible for one polite HTTP request. What is asked for is `clouds.service`, judging the answer is `clouds.answer`; trying again, and how many
requests run at a time over the whole farm, is the business of whoever calls.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from urllib.parse import urlsplit

import aiohttp

from clouds.answer import Answer, Picture, check
from clouds.box import Box
from clouds.errors import Refused, ServiceDown
from clouds.service import Extent, Service, build_url, check_day

BODY_BYTES_MAX = 64 * 1024 * 1024
"""A longer answer is refused while it is being read; the largest pictures are about 30 MiB."""

REDIRECTS_MAX = 5


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


def _host(url: str) -> str:
    return urlsplit(url).netloc


def _words(error: Exception) -> str:
    if isinstance(error, _Dropped):
        return str(error)
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect ({error.os_error.strerror or error.os_error})"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
