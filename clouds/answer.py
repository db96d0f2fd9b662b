"""What the snapshot service answered: is it the picture we asked for, and if not, is it worth asking again?

Responsible for judging one HTTP answer given as plain values. Knows nothing of sockets, clocks or retries; the idea
is that every body a server may send can be put through `check` in a test. An answer is a `Picture`, or it raises:
`Refused` (the same request will be refused again), or `ServiceDown` and `Throttled` (another attempt may succeed).
A wholly black picture is a result: the satellite saw nothing that day.
"""

import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from PIL import Image

from clouds.errors import CloudsError, Refused, ServiceDown, Throttled
from clouds.service import SIDE_MAX

SIZE_SLACK = 2
"""By how many pixels a picture may miss the size asked for: the server rounds in its own way."""

QUOTE_CHARS = 500
"""How much of a refused body an error quotes."""

BLACK_MAX = 6
"""No channel of a picture without data exceeds this: JPEG noise in black reaches 6."""

RETRY_AFTER_MAX_S = 3600.0
"""A longer Retry-After is cut to this; a day's picture is not worth an attempt that sleeps for a week."""

_MAGIC = {"image/jpeg": b"\xff\xd8\xff", "image/png": b"\x89PNG\r\n\x1a\n"}
_NAMED = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG", "GIF": b"GIF8", "TIFF": b"II*\x00", "ZIP": b"PK\x03\x04"}
_PASSING = re.compile(r"gateway|temporar|unavailable|maintenance|try again|too many|overload|timed? ?out", re.I)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One HTTP answer as it came, its body whole and with any content encoding undone."""

    status: int
    headers: Mapping[str, str]
    """Header fields; looked up without regard to case."""
    body: bytes

    def header(self, name: str) -> str:
        """Return the field of that name, "" where there is none."""
        wanted = name.lower()
        return next((value.strip() for key, value in self.headers.items() if key.lower() == wanted), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What passed every check."""

    content_type: str
    width: int
    height: int
    all_black: bool
    """Nothing was observed: a result with no valid pixel, not an error."""


def check(answer: Answer, *, format: str, sizes: Sequence[tuple[int, int]], now: datetime) -> Picture:
    """Return what `answer` shows if it is a whole picture of `format` in one of `sizes` (width, height), each +-2.

    Raises Refused, Throttled or ServiceDown. The order of the checks is part of the contract: a status speaks before
    a content type, and a content type before the bytes. `now` (with a zone) gives a Retry-After date its length.
    """
    _check_status(answer, now)
    content_type = answer.header("Content-Type").partition(";")[0].strip().lower()
    start = answer.body.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if not content_type.startswith("image/") or start in (b"<", b"{"):
        raise _words_for_picture(answer, content_type)
    _check_magic(answer, format, content_type)
    _check_length(answer)
    image = decode(answer.body)
    _check_size(image.size, sizes)
    return Picture(content_type=content_type, width=image.size[0], height=image.size[1], all_black=is_all_black(image))


def decode(body: bytes) -> Image.Image:
    """Return the decoded picture; raises ServiceDown where it is not whole, Refused where it is monstrously large.

    Both of Pillow's checks are needed, on two openings: `verify` accepts a JPEG cut in half and only `load` raises,
    `load` accepts a PNG without its last chunk and only `verify` raises.
    """
    try:
        image = Image.open(io.BytesIO(body))
        if max(image.size) > SIDE_MAX:
            raise Refused(f"the picture is {_by(image.size)}; at most {SIDE_MAX} pixels a side can be asked for")
        image.verify()
        image = Image.open(io.BytesIO(body))
        image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Refused(f"the picture is too large to decode: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ServiceDown(f"the picture of {len(body)} bytes does not decode: {error}") from error
    return image


def is_all_black(image: Image.Image) -> bool:
    """Tell whether no pixel was observed (every channel of every pixel at most 6)."""
    extrema = image.convert("RGB").getextrema()
    return all(isinstance(band, tuple) and band[1] <= BLACK_MAX for band in extrema)


def retry_after_s(value: str, now: datetime) -> float | None:
    """Read a Retry-After field, seconds or a date, as seconds from `now` within 0..3600; None where it says nothing."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = ((when if when.tzinfo else when.replace(tzinfo=UTC)) - now).total_seconds()
    return min(max(seconds, 0.0), RETRY_AFTER_MAX_S) if seconds == seconds else None


def service_words(body: bytes) -> tuple[str, str]:
    """Return (code, text) of an OGC exception report, ("", "") where the body is none."""
    try:
        root = ElementTree.fromstring(body[:65536])
    except (ElementTree.ParseError, ValueError, LookupError):
        return "", ""
    # Namespaces differ between the services and their versions; the local names do not.
    for element in root.iter():
        name = element.tag.rpartition("}")[2]
        if name in ("Exception", "ServiceException"):
            code = element.get("exceptionCode") or element.get("code") or ""
            if locator := element.get("locator"):
                code = f"{code} at {locator}".strip()
            return code, " ".join("".join(element.itertext()).split())
    return "", ""


def _check_status(answer: Answer, now: datetime) -> None:
    status = answer.status
    if status == 200:
        return
    pause = retry_after_s(answer.header("Retry-After"), now)
    if status == 429:
        raise Throttled(f"the service asks for fewer requests (HTTP 429){_pause(pause)}", retry_after_s=pause)
    if status >= 500 or status in (408, 425):
        raise ServiceDown(
            f"the service is not well (HTTP {status}){_pause(pause)}: {quote(answer.body, 120)}", retry_after_s=pause
        )
    raise _refusal(answer, f"the service refused the request (HTTP {status})")


def _words_for_picture(answer: Answer, content_type: str) -> CloudsError:
    """The error for words in place of a picture: a gateway's page passes, the service's own words stand."""
    kind = content_type or "an answer without Content-Type"
    code, _ = service_words(answer.body)
    text = answer.body[:4096].decode("utf-8", "replace")
    if not code and "<html" in text.lower() and _PASSING.search(text):
        return ServiceDown(f"a gateway's page came in place of a picture (HTTP 200): {quote(answer.body, 120)}")
    return _refusal(answer, f"the service sent {kind} in place of a picture (HTTP {answer.status})")


def _refusal(answer: Answer, what: str) -> Refused:
    code, text = service_words(answer.body)
    body = answer.body[: 4 * QUOTE_CHARS].decode("utf-8", "replace")[:QUOTE_CHARS]
    said = f"{code}: {text}" if code and text else code or text
    return Refused(f"{what}: {said or quote(answer.body)}", status=answer.status, code=code, body=body)


def _check_magic(answer: Answer, format: str, content_type: str) -> None:
    if not answer.body:
        raise ServiceDown("the service sent an empty body in place of a picture")
    if content_type not in (format, format.replace("jpeg", "jpg")):
        raise Refused(f"the picture is {content_type}, asked for was {format}", status=answer.status)
    if not answer.body.startswith(_MAGIC[format]):
        found = next((name for name, magic in _NAMED.items() if answer.body.startswith(magic)), "no known picture")
        raise Refused(
            f"the bytes are {found} though the service calls them {content_type}", status=answer.status, code="magic"
        )


def _check_length(answer: Answer) -> None:
    # With a content encoding the field counts the encoded bytes, and the transport has checked it.
    if answer.header("Content-Encoding").lower() not in ("", "identity"):
        return
    length = answer.header("Content-Length")
    if length and length != str(len(answer.body)):
        raise ServiceDown(f"the picture has {len(answer.body)} bytes, the service announced {length}")


def _check_size(size: tuple[int, int], sizes: Sequence[tuple[int, int]]) -> None:
    for width, height in sizes:
        if abs(size[0] - width) <= SIZE_SLACK and abs(size[1] - height) <= SIZE_SLACK:
            return
    raise Refused(f"the picture is {_by(size)}, asked for was {' or '.join(_by(one) for one in sizes)}", code="size")


def quote(body: bytes, chars_max: int = QUOTE_CHARS) -> str:
    """Return the beginning of a body that should have been a picture, fit for one line of an error."""
    text = " ".join(body[: 4 * chars_max].decode("utf-8", "replace").split())[:chars_max]
    printable = "".join(char if char.isprintable() else "." for char in text)
    return repr(printable) if printable else "an empty body"


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _pause(seconds: float | None) -> str:
    return "" if seconds is None else f", in {seconds:.0f} s"
