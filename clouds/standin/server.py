"""The stand-in's HTTP: speaks as NASA's snapshot service and GIBS WMS do, and misbehaves where it is told to.

Responsible for routes, for acting out faults, for counting visitors, and for starting and stopping. Knows nothing of
how a picture is made: `Source` does. Pictures are made in threads, so that a slow one delays no other answer.

Paths: `/api/v1/snapshot` (Worldview Snapshots), `/wms/epsg4326/best/wms.cgi` (GIBS WMS, which redirects a good
request with 308, as the real one does), `/stats` (counters, JSON), `/truth` (the query of a picture; PNG of 0 clear,
1 thin, 2 cloud, 255 no data, or with `AS=json` the fractions).
"""

import asyncio
import errno
import gzip
import io
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import date, timedelta

import numpy as np
from aiohttp import web
from PIL import Image

from clouds.errors import CloudsError
from clouds.standin.ask import Ask, BadAsk, NotAsked, exception_report, read_ask, service_report
from clouds.standin.fault import FLAWS, Fault, FaultPlan, Kind, mishap
from clouds.standin.source import NoSuchPicture, Source
from clouds.standin.stats import Stats

SNAPSHOT_PATH = "/api/v1/snapshot"
WMS_PATH = "/wms/epsg4326/best/wms.cgi"
WMS_SERVED_PATH = "/wms-served/epsg4326/best/wms.cgi"

CUT_SHARE = 0.6
KEPT_BODIES = 8
"""Encoded pictures kept for requests that come again after a mishap."""

RENDER_THREADS = 2

_HOP = "redirected"

_HTML = "<html><body>No REQUEST parameter specified</body></html>\n"
_GATEWAY = "<html>\n<head><title>{0} {1}</title></head>\n<body><center><h1>{0} {1}</h1></center></body>\n</html>\n"
_GATEWAY_WORDS = {500: "Internal Server Error", 502: "Bad Gateway", 503: "Service Temporarily Unavailable"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the stand-in behaves."""

    host: str = "127.0.0.1"
    port: int = 0
    """0: any free one."""
    plan: FaultPlan = field(default_factory=FaultPlan)
    latency_s: float = 0.0
    """Waited before every answer, so that requests overlap as they do over a long line."""


class Standin:
    """A running stand-in: where it is, and what it has counted."""

    def __init__(self, source: Source, settings: Settings) -> None:
        self.stats = Stats()
        self.port = 0
        self._source, self._settings = source, settings
        self._threads = ThreadPoolExecutor(RENDER_THREADS, thread_name_prefix="stand-in")
        self._kept: OrderedDict[tuple[Ask, tuple[Fault, ...]], bytes] = OrderedDict()

    @property
    def root(self) -> str:
        """http://HOST:PORT, without a path."""
        return f"http://{self._settings.host}:{self.port}"

    @property
    def url(self) -> str:
        """What a client takes for the snapshot service's address."""
        return self.root + SNAPSHOT_PATH

    @property
    def wms_url(self) -> str:
        """What a client takes for the address of GIBS WMS."""
        return self.root + WMS_PATH

    def application(self) -> web.Application:
        """Return the routes, to be served once."""
        app = web.Application()
        app.router.add_get(SNAPSHOT_PATH, self._snapshot)
        app.router.add_get(WMS_PATH, self._wms_redirect)
        app.router.add_get(WMS_SERVED_PATH, self._snapshot)
        app.router.add_get("/truth", self._truth)
        app.router.add_get("/stats", self._stats)
        return app

    def close(self) -> None:
        """Give up pictures not yet begun."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _wms_redirect(self, request: web.Request) -> web.StreamResponse:
        try:
            read_ask(request.query)
        except (NotAsked, BadAsk) as error:
            return _refusal(error)
        raise web.HTTPPermanentRedirect(request.rel_url.with_path(WMS_SERVED_PATH, keep_query=True))

    async def _snapshot(self, request: web.Request) -> web.StreamResponse:
        try:
            ask = read_ask(request.query)
        except (NotAsked, BadAsk) as error:
            return _refusal(error)
        layers = ",".join(ask.layers)
        faults = self._settings.plan.for_day(ask.day)
        hop = _HOP in request.query
        if not hop:
            now_s = time.monotonic()
            earlier = self.stats.enter(ask.day, layers, request.headers.get("User-Agent", ""), now_s)
        else:
            earlier = self.stats.resume(ask.day, layers)
        fault = mishap(faults, earlier)
        outcome = "dropped by the client"
        try:
            await asyncio.sleep(self._settings.latency_s)
            if fault is not None and not (hop and fault.kind is Kind.REDIRECT):
                outcome = fault.kind.value
                return await self._misbehave(request, ask, faults, fault)
            response = _picture(await self._body(ask, faults), ask.format)
            outcome = "picture"
            return response
        except NoSuchPicture as error:
            outcome = "http404"
            return _xml(exception_report("InvalidParameterValue", "TIME", str(error)), status=404)
        finally:
            self.stats.leave(ask.day, layers, outcome)

    async def _body(self, ask: Ask, faults: tuple[Fault, ...]) -> bytes:
        """The good picture of the day that the day's flaws lead to."""
        ask, flaws = self._resolved(ask, faults)
        key = (ask, flaws)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        loop = asyncio.get_running_loop()
        body = await loop.run_in_executor(self._threads, self._source.picture, ask, flaws)
        self._kept[key] = body
        while len(self._kept) > KEPT_BODIES:
            self._kept.popitem(last=False)
        self.stats.bytes_sent += len(body)
        return body

    def _resolved(self, ask: Ask, faults: tuple[Fault, ...]) -> tuple[Ask, tuple[Fault, ...]]:
        """The day whose picture is served, and its lasting flaws: another day comes with its own."""
        for fault in faults:
            if fault.kind is Kind.OTHER_DAY:
                day = ask.day - timedelta(days=int(1 if fault.option is None else fault.option))
                ask, faults = replace(ask, day=day), self._settings.plan.for_day(day)
                break
        return ask, tuple(fault for fault in faults if fault.kind in FLAWS and fault.kind is not Kind.OTHER_DAY)

    async def _misbehave(
        self, request: web.Request, ask: Ask, faults: tuple[Fault, ...], fault: Fault
    ) -> web.StreamResponse:
        match fault.kind:
            case Kind.DROP:
                return _hang_up(request)
            case Kind.REDIRECT:
                raise web.HTTPPermanentRedirect(request.rel_url.update_query({_HOP: "1"}))
            case Kind.CUT | Kind.CUT_MATCHING | Kind.DRIP | Kind.WRONG_SIZE | Kind.PNG | Kind.GZIP:
                return await self._spoilt(request, ask, faults, fault)
            case Kind.THROTTLED | Kind.DOWN:
                pause_s = fault.option if fault.option is not None else 1.0 if fault.kind is Kind.THROTTLED else None
                if pause_s is not None:
                    self.stats.asked_to_wait(ask.day, ",".join(ask.layers), time.monotonic() + pause_s)
                return _unwell(fault.kind, pause_s)
            case _:
                return _words(fault.kind, ask.day)

    async def _spoilt(
        self, request: web.Request, ask: Ask, faults: tuple[Fault, ...], fault: Fault
    ) -> web.StreamResponse:
        """A good picture, spoilt on its way."""
        if fault.kind is Kind.WRONG_SIZE:
            ask = replace(ask, width=max(1, ask.width // 2), height=max(1, ask.height // 2))
        asked_for = ask.format
        if fault.kind is Kind.PNG:
            ask = replace(ask, format="image/png")
        body = await self._body(ask, faults)
        match fault.kind:
            case Kind.CUT:
                return await _cut(request, body, asked_for)
            case Kind.CUT_MATCHING:
                return _picture(body[: int(len(body) * CUT_SHARE)], asked_for)
            case Kind.DRIP:
                return await _drip(request, body, asked_for, 2.0 if fault.option is None else fault.option)
            case Kind.GZIP:
                packed = await asyncio.to_thread(gzip.compress, body, 1, mtime=0)
                return _picture(packed, asked_for, {"Content-Encoding": "gzip"})
            case _:
                return _picture(body, asked_for)

    async def _truth(self, request: web.Request) -> web.StreamResponse:
        try:
            asked = read_ask({"REQUEST": "GetSnapshot", "CRS": "EPSG:4326"} | dict(request.query))
            ask, flaws = self._resolved(asked, self._settings.plan.for_day(asked.day))
            loop = asyncio.get_running_loop()
            values = await loop.run_in_executor(self._threads, self._source.truth, ask, flaws)
        except (NotAsked, BadAsk) as error:
            return _refusal(error)
        except NoSuchPicture as error:
            return _xml(exception_report("InvalidParameterValue", "TIME", str(error)), status=404)
        if request.query.get("AS") == "json":
            valid = int(np.count_nonzero(values != 255))
            counts = {name: int(np.count_nonzero(values == value)) for name, value in _CLASSES.items()}
            shares = {name: count / valid if valid else None for name, count in counts.items()}
            return web.json_response({"day": ask.day.isoformat(), "valid": valid / values.size, **shares})
        stream = io.BytesIO()
        Image.fromarray(values).save(stream, "PNG", compress_level=1)
        return web.Response(body=stream.getvalue(), content_type="image/png")

    async def _stats(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self.stats.as_json())


_CLASSES = {"clear": 0, "thin": 1, "cloud": 2}


@asynccontextmanager
async def start_standin(source: Source, settings: Settings | None = None) -> AsyncIterator[Standin]:
    """Serve `source` until the block ends; raises CloudsError where the port is taken or the host is not ours."""
    settings = settings or Settings()
    standin = Standin(source, settings)
    runner = web.AppRunner(standin.application(), access_log=None, shutdown_timeout=0.05, handler_cancellation=True)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, settings.host, settings.port).start()
        except OSError as error:
            raise _no_port(settings, error) from None
        standin.port = runner.addresses[0][1]
        yield standin
    finally:
        await runner.cleanup()
        standin.close()


def _no_port(settings: Settings, error: OSError) -> CloudsError:
    where = f"{settings.host}:{settings.port}"
    if error.errno == errno.EADDRINUSE:
        return CloudsError(f"stand-in: {where} is in use; choose another --port, or 0 for any free one")
    return CloudsError(f"stand-in: cannot listen on {where}: {error.strerror or error}")


def _picture(body: bytes, format: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=body, headers={"Content-Type": format} | (headers or {}))


def _xml(text: str, *, status: int = 200) -> web.Response:
    return web.Response(text=text, status=status, content_type="text/xml", charset="UTF-8")


def _refusal(error: NotAsked | BadAsk) -> web.Response:
    if isinstance(error, BadAsk):
        return _xml(error.xml())
    return web.Response(text=_HTML, content_type="text/html")


def _unwell(kind: Kind, pause_s: float | None) -> web.Response:
    headers = {} if pause_s is None else {"Retry-After": f"{pause_s:g}"}
    if kind is Kind.THROTTLED:
        return web.Response(text="Too many requests\n", status=429, headers=headers)
    page = _GATEWAY.format(503, _GATEWAY_WORDS[503])
    return web.Response(text=page, status=503, content_type="text/html", headers=headers)


def _words(kind: Kind, day: date) -> web.Response:
    """Words in place of a picture."""
    report = exception_report("InvalidParameterValue", "TIME", f"TIME={day} does not exist for this layer")
    match kind:
        case Kind.XML:
            return _xml(report)
        case Kind.LAYER_XML:
            return _xml(
                service_report("LayerNotDefined", "msWMSLoadGetMapParams(): Unable to access -- invalid LAYER(s)")
            )
        case Kind.HTML:
            return web.Response(text=_HTML, content_type="text/html")
        case Kind.GATEWAY:
            return web.Response(text=_GATEWAY.format(504, "Gateway Time-out"), content_type="text/html")
        case Kind.JSON:
            return web.Response(body=b'{"error": "no imagery"}', content_type="image/jpeg")
        case Kind.EMPTY:
            return web.Response(body=b"", content_type="image/jpeg")
        case Kind.BAD_REQUEST | Kind.NOT_FOUND:
            return _xml(report, status=int(kind.value[4:]))
        case _:
            status = int(kind.value[4:])
            page = _GATEWAY.format(status, _GATEWAY_WORDS[status])
            return web.Response(text=page, status=status, content_type="text/html")


def _hang_up(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def _cut(request: web.Request, body: bytes, format: str) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": format, "Content-Length": str(len(body))})
    response.force_close()
    await response.prepare(request)
    await response.write(body[: int(len(body) * CUT_SHARE)])
    if request.transport is not None:
        request.transport.close()  # sends what was written, then ends
    return response


async def _drip(request: web.Request, body: bytes, format: str, seconds: float) -> web.StreamResponse:
    drops = 20
    response = web.StreamResponse(headers={"Content-Type": format, "Content-Length": str(len(body))})
    await response.prepare(request)
    size = -(-len(body) // drops)
    for start in range(0, len(body), size):
        await asyncio.sleep(seconds / drops)
        await response.write(body[start : start + size])
    return response
