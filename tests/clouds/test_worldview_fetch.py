"""The client against the stand-in over loopback: every fault gives the right class, and nothing bad is accepted."""

import asyncio
import hashlib
import io
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image

from clouds import service, worldview
from clouds.box import Box
from clouds.errors import DayUnavailable, Refused, ServiceDown, Throttled
from clouds.service import Service
from clouds.standin import FaultPlan, Kind, Planet, SceneSource, Settings, Standin, parse_fault, start_standin
from clouds.worldview import Snapshot, fetch, open_session

BOX = Box(lat_min=40, lon_min=5, lat_max=44, lon_max=10)
DAY = date(2021, 5, 3)
NOW = datetime(2021, 6, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def planet() -> Planet:
    """A planet with generated ground, so that nothing depends on what else is installed."""
    return Planet(7, marble=False)


@dataclass
class Line:
    """A client and the stand-in it talks to."""

    standin: Standin
    service: Service
    session: aiohttp.ClientSession

    async def fetch(self, day: date = DAY, *, box: Box = BOX, now: datetime = NOW, **change: object) -> Snapshot:
        service = replace(self.service, **change)  # type: ignore[arg-type]
        return await fetch(self.session, service, box, day, now=lambda: now)


@asynccontextmanager
async def line(planet: Planet, *faults: str, style: str = "snapshot", latency_s: float = 0.0) -> AsyncIterator[Line]:
    """A stand-in where `faults` befall DAY, and a client for it."""
    plan = FaultPlan(by_day={DAY: tuple(parse_fault(fault) for fault in faults)})
    async with start_standin(SceneSource(planet), Settings(plan=plan, latency_s=latency_s)) as standin:
        url = standin.url if style == "snapshot" else standin.wms_url
        service = Service(base_url=url, style=style, km=4, timeout_s=20)
        async with open_session(service) as session:
            yield Line(standin, service, session)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a plain value to change, for at most ten seconds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a counter has nothing to wait on
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("style", ["snapshot", "wms"])
async def test_a_good_day(planet: Planet, style: str) -> None:
    async with line(planet, style=style) as to:
        shot = await to.fetch()
        assert (shot.day, shot.content_type) == (DAY, "image/jpeg")
        assert (shot.width, shot.height) == (106, 114)  # 142 asked, scaled by the cosine of 42 degrees
        with Image.open(io.BytesIO(shot.body)) as image:
            assert (image.size, image.format) == ((106, 114), "JPEG")
        assert shot.sha256 == hashlib.sha256(shot.body).hexdigest()
        assert shot.url == service.build_url(to.service, BOX, DAY)
        assert shot.fetched_at == NOW
        assert (shot.provisional, shot.all_black) == (False, False)
        assert shot.warnings == (), "that GIBS redirects every good request is no news"
        assert shot.seconds > 0
        assert to.standin.stats.requests == 1


async def test_both_styles_bring_the_same_picture(planet: Planet) -> None:
    async with line(planet) as to:
        one = await to.fetch()
        two = await to.fetch(base_url=to.standin.wms_url, style="wms")
        assert one.body == two.body


async def test_png_and_unscaled_sizes_can_be_asked_for(planet: Planet) -> None:
    async with line(planet) as to:
        shot = await to.fetch(format="image/png", autoscale=False)
        assert (shot.content_type, shot.width, shot.height) == ("image/png", 142, 114)


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("xml200", Refused, "InvalidParameterValue at TIME: TIME=2021-05-03 does not exist"),
        ("layer200", Refused, "LayerNotDefined"),
        ("html200", Refused, "No REQUEST parameter specified"),
        ("json200", Refused, "no imagery"),
        ("http400", Refused, "HTTP 400.*InvalidParameterValue"),
        ("http404", Refused, "HTTP 404.*InvalidParameterValue"),
        ("wrongsize", Refused, "the picture is 53x57, asked for was 142x114 or 106x114"),
        ("png", Refused, "the bytes are PNG"),
        ("gateway200", ServiceDown, "gateway"),
        ("http429", Throttled, "HTTP 429"),
        ("http500", ServiceDown, "HTTP 500"),
        ("http502", ServiceDown, "HTTP 502"),
        ("http503", ServiceDown, "HTTP 503"),
        ("cut", ServiceDown, "gave no whole answer"),
        ("cutmatch", ServiceDown, "does not decode"),
        ("drop", ServiceDown, "gave no whole answer"),
        ("empty", ServiceDown, "empty"),
    ],
)
async def test_no_fault_is_taken_for_a_picture(planet: Planet, fault: str, error: type[Exception], words: str) -> None:
    async with line(planet, fault) as to:
        with pytest.raises(error, match=words) as caught:
            await to.fetch()
        assert type(caught.value) is error
        assert "\n" not in str(caught.value)
        assert to.standin.stats.requests == 1, "one call is one attempt"
        assert to.standin.stats.answers == {fault: 1}


def test_every_fault_of_the_standin_is_met_by_a_test_here() -> None:
    marks = test_no_fault_is_taken_for_a_picture.pytestmark  # type: ignore[attr-defined]
    refused = {case[0] for mark in marks for case in mark.args[1]}
    assert refused | {"gap", "night", "black", "otherday", "redirect308", "drip", "gzip"} == set(Kind)


@pytest.mark.parametrize(
    "fault", ["http503*2", "http429*2:retry_after=0", "cut*2", "cutmatch*2", "drop*2", "http502*2"]
)
async def test_weather_passes(planet: Planet, fault: str) -> None:
    async with line(planet, fault) as to:
        for _ in range(2):
            with pytest.raises(ServiceDown):
                await to.fetch()
        shot = await to.fetch()
        assert (shot.width, shot.height) == (106, 114)
        assert to.standin.stats.answers["picture"] == 1


async def test_the_pause_the_server_asks_for_reaches_the_caller(planet: Planet) -> None:
    async with line(planet, "http429*1:retry_after=7", "http503*1:retry_after=3") as to:
        with pytest.raises(Throttled) as throttled:
            await to.fetch()
        with pytest.raises(ServiceDown) as down:
            await to.fetch()
        assert (throttled.value.retry_after_s, down.value.retry_after_s) == (7.0, 3.0)


async def test_a_black_day_is_a_result(planet: Planet) -> None:
    async with line(planet, "black") as to:
        shot = await to.fetch()
        assert shot.all_black is True
        assert shot.warnings == ("no data: the picture is wholly black",)


async def test_gaps_and_night_are_ordinary_pictures(planet: Planet) -> None:
    async with line(planet, "gap") as to:
        shot = await to.fetch()
        assert shot.all_black is False
        assert shot.warnings == ()


async def test_another_days_picture_shows_in_the_digests(planet: Planet) -> None:
    async with line(planet, "otherday") as to:
        before, after = DAY - timedelta(days=1), DAY + timedelta(days=1)
        digests = {day: (await to.fetch(day)).sha256 for day in (before, DAY, after)}
        assert digests[before] == digests[DAY] != digests[after]


async def test_a_308_is_followed(planet: Planet) -> None:
    async with line(planet) as plain, line(planet, "redirect308") as redirecting:
        direct, followed = await plain.fetch(), await redirecting.fetch()
        assert followed.body == direct.body
        assert followed.warnings == ("redirected by the service",)


async def test_gzip_is_undone_and_its_content_length_not_held_against_it(planet: Planet) -> None:
    async with line(planet) as plain, line(planet, "gzip") as packing:
        assert (await packing.fetch()).body == (await plain.fetch()).body


async def test_a_slow_body_arrives_whole(planet: Planet) -> None:
    async with line(planet, "drip:seconds=0.2") as to:
        shot = await to.fetch()
        assert shot.seconds >= 0.15
        assert not shot.all_black


async def test_a_body_slower_than_the_timeout_is_the_weather(planet: Planet) -> None:
    async with line(planet, "drip:seconds=30") as to:
        with pytest.raises(ServiceDown, match=r"did not finish within 0\.3 s"):
            await to.fetch(timeout_s=0.3)


async def test_an_address_where_nobody_listens_is_the_weather(planet: Planet) -> None:
    async with line(planet) as to:
        port = to.standin.port
        service = to.service
    async with open_session(service) as session:
        with pytest.raises(ServiceDown, match=f"127.0.0.1:{port} gave no whole answer: cannot connect"):
            await fetch(session, service, BOX, DAY, now=lambda: NOW)


async def test_provisional_until_three_days_old(planet: Planet) -> None:
    async with line(planet) as to:
        for age_days, provisional in ((1, True), (2, True), (3, False)):
            now = datetime(2021, 5, 3, 12, tzinfo=UTC) + timedelta(days=age_days)
            shot = await to.fetch(now=now)
            assert shot.provisional is provisional
            assert any("provisional" in warning for warning in shot.warnings) is provisional


async def test_a_day_too_new_is_not_even_asked_for(planet: Planet) -> None:
    async with line(planet) as to:
        with pytest.raises(DayUnavailable, match="too new"):
            await to.fetch(now=datetime(2021, 5, 3, 23, tzinfo=UTC))
        assert to.standin.stats.requests == 0


async def test_cancelling_ends_the_request(planet: Planet) -> None:
    async with line(planet, "drip:seconds=30") as to:
        asking = asyncio.create_task(to.fetch())
        await until(lambda: to.standin.stats.concurrent == 1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await until(lambda: to.standin.stats.concurrent == 0)


async def test_the_user_agent_is_sent(planet: Planet) -> None:
    async with line(planet) as to:
        await to.fetch(user_agent="my-clouds/1 (me@example.org)")
        assert to.standin.stats.user_agents == {"my-clouds/1 (me@example.org)": 1}


@asynccontextmanager
async def odd_server(
    handler: Callable[[web.Request], web.StreamResponse], tls: ssl.SSLContext | None = None
) -> AsyncIterator[Service]:
    """A server with one answer of its own."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return handler(request)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        port = runner.addresses[0][1]
        yield Service(base_url=f"{'https' if tls else 'http'}://127.0.0.1:{port}/snapshot", km=4, timeout_s=20)
    finally:
        await runner.cleanup()


async def test_redirects_in_a_circle_are_refused() -> None:
    def circle(request: web.Request) -> web.StreamResponse:
        return web.Response(status=308, headers={"Location": str(request.rel_url)})

    async with odd_server(circle) as service, open_session(service) as session:
        with pytest.raises(Refused, match="redirects"):
            await fetch(session, service, BOX, DAY, now=lambda: NOW)


async def test_a_redirect_away_from_http_is_refused() -> None:
    def away(request: web.Request) -> web.StreamResponse:
        return web.Response(status=308, headers={"Location": "ftp://127.0.0.1/picture.jpg"})

    async with odd_server(away) as service, open_session(service) as session:
        with pytest.raises(Refused, match="redirects"):
            await fetch(session, service, BOX, DAY, now=lambda: NOW)


def self_signed(folder: Path) -> ssl.SSLContext:
    """The context of a server whose certificate nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "stand-in")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(datetime(2020, 1, 1)).not_valid_after(datetime(2099, 1, 1))
    certificate = builder.sign(key, hashes.SHA256())
    plain = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "both.pem"
    path.write_bytes(plain + certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


async def test_a_certificate_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    def answer(request: web.Request) -> web.StreamResponse:
        raise AssertionError("nothing should be sent over such a line")

    async with odd_server(answer, self_signed(tmp_path)) as service, open_session(service) as session:
        with pytest.raises(Refused, match="certificate that is not trusted"):
            await fetch(session, service, BOX, DAY, now=lambda: NOW)


async def test_an_endless_body_is_refused_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worldview, "BODY_BYTES_MAX", 1 << 20)

    def huge(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"\xff\xd8\xff" + bytes(2 << 20), content_type="image/jpeg")

    async with odd_server(huge) as service, open_session(service) as session:
        with pytest.raises(Refused, match="exceeds 1 MiB"):
            await fetch(session, service, BOX, DAY, now=lambda: NOW)


async def test_a_picture_without_length_is_taken_with_a_warning(planet: Planet) -> None:
    async with line(planet) as to:
        body = (await to.fetch()).body

    class Chunked(web.Response):
        async def prepare(self, request: web.BaseRequest) -> object:  # type: ignore[override]
            self.enable_chunked_encoding()
            return await super().prepare(request)

    def chunked(request: web.Request) -> web.StreamResponse:
        return Chunked(body=body, content_type="image/jpeg")

    async with odd_server(chunked) as service, open_session(service) as session:
        shot = await fetch(session, service, BOX, DAY, now=lambda: NOW)
        assert shot.body == body
        assert shot.warnings == ("the service did not say how long the picture is",)
