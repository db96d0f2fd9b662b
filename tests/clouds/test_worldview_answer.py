"""Every answer a downloader meets is judged rightly: kept, refused for good, or worth another attempt."""

import io
import pickle
import random
import struct
import zlib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image

from clouds.answer import Answer, Picture, check, retry_after_s, service_words
from clouds.errors import Refused, ServiceDown, Throttled

NOW = datetime(2021, 6, 1, 12, 0, tzinfo=UTC)
SHARED = Path(__file__).parents[3] / "shared" / "data" / "worldview"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared pictures are not beside the repository")

SIZE = (120, 90)


def picture(kind: str = "JPEG", size: tuple[int, int] = SIZE, seed: int = 1) -> bytes:
    """An encoded picture with something on it."""
    small = Image.frombytes("RGB", (12, 9), random.Random(seed).randbytes(12 * 9 * 3))
    stream = io.BytesIO()
    small.resize(size).save(stream, kind)
    return stream.getvalue()


def judge(body: bytes, *, status: int = 200, format: str = "image/jpeg", **headers: str) -> Picture:
    """Put an answer through the check; the keyword `content_type` is the field Content-Type, and so on."""
    fields = {"Content-Type": format} | {name.replace("_", "-").title(): value for name, value in headers.items()}
    return check(Answer(status=status, headers=fields, body=body), format=format, sizes=(SIZE, (76, 90)), now=NOW)


@pytest.mark.parametrize(("kind", "format"), [("JPEG", "image/jpeg"), ("PNG", "image/png")])
def test_a_whole_picture_passes(kind: str, format: str) -> None:
    body = picture(kind)
    found = judge(body, format=format, content_length=str(len(body)))
    assert found == Picture(content_type=format, width=120, height=90, all_black=False)


def test_content_type_may_carry_parameters_and_capitals() -> None:
    assert judge(picture(), content_type="Image/JPEG; charset=binary").content_type == "image/jpeg"


@pytest.mark.parametrize("size", [(120, 90), (122, 88), (76, 90), (74, 92)])
def test_asked_and_scaled_sizes_pass_and_are_recorded(size: tuple[int, int]) -> None:
    found = judge(picture(size=size))
    assert (found.width, found.height) == size


@pytest.mark.parametrize("size", [(123, 90), (117, 90), (73, 90), (98, 90), (120, 87), (76, 93), (1, 1)])
def test_other_sizes_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(Refused, match=f"the picture is {size[0]}x{size[1]}, asked for was 120x90 or 76x90"):
        judge(picture(size=size))


def test_an_all_black_picture_is_a_result() -> None:
    stream = io.BytesIO()
    Image.new("RGB", SIZE).save(stream, "JPEG")
    assert judge(stream.getvalue()).all_black is True


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 204, 206, 302])
def test_other_statuses_are_permanent_and_quote_the_body(status: int) -> None:
    body = b"<html>no, not that " + b"x" * 600
    with pytest.raises(Refused, match=f"HTTP {status}.*no, not that") as caught:
        judge(body, status=status, content_type="text/html")
    assert caught.value.status == status
    assert caught.value.body == body[:500].decode()


@pytest.mark.parametrize("status", [500, 502, 503, 504, 520, 408])
def test_a_server_that_is_not_well_is_worth_another_attempt(status: int) -> None:
    with pytest.raises(ServiceDown, match=f"HTTP {status}") as caught:
        judge(picture(), status=status)
    assert not isinstance(caught.value, Throttled)
    assert caught.value.retry_after_s is None


def test_throttling_says_how_long_to_wait() -> None:
    with pytest.raises(Throttled) as caught:
        judge(b"", status=429, retry_after="17")
    assert caught.value.retry_after_s == 17.0
    with pytest.raises(ServiceDown) as down:
        judge(b"", status=503, retry_after="5")
    assert down.value.retry_after_s == 5.0


@pytest.mark.parametrize(
    ("field", "seconds"),
    [
        ("", None),
        ("0", 0.0),
        ("2.5", 2.5),
        ("-3", 0.0),
        ("999999", 3600.0),
        ("nan", None),
        ("soon", None),
        ("Tue, 01 Jun 2021 12:00:30 GMT", 30.0),
        ("Tue, 01 Jun 2021 11:00:00 GMT", 0.0),
        ("Fri, 01 Jun 2091 12:00:00 GMT", 3600.0),
    ],
)
def test_retry_after_in_all_its_forms(field: str, seconds: float | None) -> None:
    assert retry_after_s(field, NOW) == seconds


def test_a_status_speaks_before_the_content() -> None:
    with pytest.raises(Throttled):
        judge(b"<html>", status=429, content_type="text/html")


@pytest.mark.parametrize("content_type", ["text/html", "text/xml", "application/json", ""])
def test_a_picture_under_another_content_type_is_not_taken(content_type: str) -> None:
    with pytest.raises(Refused):
        judge(picture(), content_type=content_type)


@pytest.mark.parametrize("body", [b"<?xml version='1.0'?><x/>", b'\n {"error": 1}', b"\xef\xbb\xbf<ExceptionReport/>"])
def test_words_under_an_image_type_are_not_taken(body: bytes) -> None:
    with pytest.raises(Refused, match="in place of a picture"):
        judge(body)


def test_a_gateways_page_under_200_is_worth_another_attempt() -> None:
    with pytest.raises(ServiceDown, match="gateway"):
        judge(b"<html><title>504 Gateway Time-out</title></html>", content_type="text/html")


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF"])
def test_magic_bytes_must_agree_with_the_format(kind: str) -> None:
    with pytest.raises(Refused, match=kind):
        judge(picture(kind))


def test_bytes_of_no_known_kind_are_refused() -> None:
    with pytest.raises(Refused, match="no known picture"):
        judge(b"\x00" * 1000)


def test_another_image_type_than_asked_is_refused() -> None:
    with pytest.raises(Refused, match="image/png, asked for was image/jpeg"):
        judge(picture("PNG"), content_type="image/png")


def test_an_empty_body_is_worth_another_attempt() -> None:
    with pytest.raises(ServiceDown, match="empty"):
        judge(b"")


def test_a_length_other_than_announced_is_worth_another_attempt() -> None:
    body = picture()
    with pytest.raises(ServiceDown, match="announced"):
        judge(body, content_length=str(len(body) + 1))


def test_the_length_under_a_content_encoding_counts_other_bytes() -> None:
    judge(picture(), content_length="7", content_encoding="gzip")


@pytest.mark.parametrize(("kind", "format"), [("JPEG", "image/jpeg"), ("PNG", "image/png")])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.9, 0.99])
def test_no_cut_picture_passes_even_with_a_length_to_match(kind: str, format: str, share: float) -> None:
    body = picture(kind, size=SIZE)
    cut = body[: int(len(body) * share)]
    with pytest.raises(ServiceDown, match="does not decode"):
        judge(cut, format=format, content_length=str(len(cut)))


def test_a_png_without_its_last_chunk_does_not_pass() -> None:
    body = picture("PNG")
    assert body[-12:-4] == b"\x00\x00\x00\x00IEND"
    with pytest.raises(ServiceDown, match="does not decode"):
        judge(body[:-12], format="image/png")


@pytest.mark.parametrize("size", [(8201, 10), (10, 9000), (9600, 9600), (30000, 30000)])
def test_a_monstrous_picture_is_refused_before_it_is_decoded(size: tuple[int, int]) -> None:
    header = struct.pack(">II5B", *size, 8, 2, 0, 0, 0)
    stream = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    stream.seek(0, io.SEEK_END)
    for name, content in ((b"IHDR", header), (b"IDAT", b"")):
        stream.write(struct.pack(">I", len(content)) + name + content)
        stream.write(struct.pack(">I", zlib.crc32(name + content)))
    with pytest.raises(Refused, match=f"{size[0]}x{size[1]}|too large"):
        judge(stream.getvalue(), format="image/png")


def test_codes_and_texts_of_both_report_forms() -> None:
    ows = b'<r xmlns="n"><Exception exceptionCode="C" locator="TIME"><ExceptionText> a\n b</ExceptionText></Exception></r>'
    wms = b'<ServiceExceptionReport><ServiceException code="LayerNotDefined">\nno\n</ServiceException></ServiceExceptionReport>'
    assert service_words(ows) == ("C at TIME", "a b")
    assert service_words(wms) == ("LayerNotDefined", "no")
    assert service_words(b"<html>") == ("", "")
    assert service_words(b"\xff\xd8\xff") == ("", "")


def test_errors_are_one_line_whatever_the_body_holds() -> None:
    with pytest.raises(Refused) as caught:
        judge(b"<a>\n\x00\x07 \r\n" * 300, content_type="text/xml")
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_errors_keep_what_they_know_across_processes() -> None:
    throttled = pickle.loads(pickle.dumps(Throttled("wait", retry_after_s=3.0)))
    assert (type(throttled), str(throttled), throttled.retry_after_s) == (Throttled, "wait", 3.0)
    refused = pickle.loads(pickle.dumps(Refused("no", status=404, code="C", body="b")))
    assert (str(refused), refused.status, refused.code, refused.body) == ("no", 404, "C", "b")


def test_only_the_weather_is_an_os_error() -> None:
    assert issubclass(ServiceDown, OSError)
    assert issubclass(Throttled, ServiceDown)
    assert not issubclass(Refused, OSError)


@needs_shared
@pytest.mark.parametrize(
    ("name", "status", "content_type", "error", "words"),
    [
        ("time_invalid_http200.xml", 200, "text/xml", Refused, "InvalidParameterValue at TIME: Invalid time format"),
        ("layer_unknown_http200.xml", 200, "text/xml", Refused, "LayerNotDefined: .*invalid LAYER"),
        ("request_missing_http200.html", 200, "text/html", Refused, "No REQUEST parameter specified"),
        ("wmts_time_http400.xml", 400, "text/xml", Refused, "HTTP 400.*InvalidParameterValue at TIME: TIME does not"),
        ("gateway_http503.html", 503, "text/html", ServiceDown, "HTTP 503.*Temporarily Unavailable"),
        ("truncated_http200.jpg", 200, "image/jpeg", ServiceDown, "does not decode"),
    ],
)
def test_the_collected_bodies(name: str, status: int, content_type: str, error: type[Exception], words: str) -> None:
    body = (SHARED / "special" / "errors" / name).read_bytes()
    with pytest.raises(error, match=words) as caught:
        judge(body, status=status, content_type=content_type, content_length=str(len(body)))
    assert type(caught.value) is error


@needs_shared
@pytest.mark.parametrize("content_type", ["image/jpeg", "image/png"])
def test_no_collected_body_passes_under_any_disguise(content_type: str) -> None:
    for path in sorted((SHARED / "special" / "errors").iterdir()):
        with pytest.raises((Refused, ServiceDown)):
            judge(path.read_bytes(), content_type=content_type)


@needs_shared
def test_the_services_own_black_picture_is_a_result() -> None:
    body = (SHARED / "special" / "nodata_all-black.jpg").read_bytes()
    answer = Answer(status=200, headers={"content-type": "image/jpeg", "content-length": str(len(body))}, body=body)
    assert check(answer, format="image/jpeg", sizes=((893, 586),), now=NOW).all_black is True


@needs_shared
def test_every_real_picture_passes() -> None:
    count = 0
    for path in sorted(SHARED.rglob("*.jpg")):
        if path.parent.name == "errors":
            continue
        body = path.read_bytes()
        with Image.open(path) as image:
            size = image.size
        answer = Answer(status=200, headers={"Content-Type": "image/jpeg"}, body=body)
        assert check(answer, format="image/jpeg", sizes=(size,), now=NOW).width == size[0]
        count += 1
    assert count > 20
