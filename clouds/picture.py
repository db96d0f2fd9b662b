"""Pictures in and out: bytes to pixels, and the mask, the overlay and the thumbnail back to bytes.

Responsible for decoding strictly, drawing and encoding. Must not know how cloud is found, nor of files or days.

The idea: encoding costs more than the analysis, so what people look at is a JPEG and what programs read is a
palette PNG of two bits a pixel. The same pixels always give the same bytes.
"""

import io
import struct
import zlib
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from clouds.coverage import CLOUD, NO_DATA
from clouds.errors import BadPicture

SIDE_MAX_PX: Final = 8200  # what the service's own client asks at most
THUMBNAIL_SIDE_PX: Final = 320
OVERLAY_QUALITY: Final = 85

_FORMATS: Final = ("JPEG", "PNG", "TIFF")
_MODES: Final = ("RGB", "RGBA", "L", "LA", "P")
_BROKEN: Final = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)

_PALETTE: Final = (28, 62, 92, 255, 255, 255, 120, 120, 120)  # of clear, cloud and no data
_GREY: Final = (58, 60, 66)
_HATCH: Final = (84, 87, 94)
# Cloud is white: taking away green and blue tints it and keeps its own light and shade.
_TINT: Final = [
    *range(256),
    *(value * 48 // 100 for value in range(256)),
    *(40 + value * 34 // 100 for value in range(256)),
]


def decode(data: bytes, name: str = "the picture") -> Image.Image:
    """Decode a JPEG, PNG or TIFF whole, to RGB; raises BadPicture when it is anything else or not whole.

    A JPEG cut short opens and verifies and only fails to load; a PNG without its last chunk loads and only fails to
    verify. So both are done.
    """
    if not data:
        raise BadPicture(f"{name} is empty")
    if data.lstrip()[:1] in (b"<", b"{"):
        raise BadPicture(f"{name} is not a picture but text that begins {data[:80].decode('utf-8', 'replace')!r}")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            size, mode = image.size, image.mode
            if max(size) > SIDE_MAX_PX:
                raise BadPicture(f"{name} is {size[0]} x {size[1]}; at most {SIDE_MAX_PX} pixels a side are read")
            if mode not in _MODES:
                raise BadPicture(f"{name} has colour mode {mode}, which is not a true-colour picture")
            image.verify()
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            image.load()
            return image if mode == "RGB" else image.convert("RGB")
    except UnidentifiedImageError:
        raise BadPicture(f"{name} is not a JPEG, PNG or TIFF picture ({len(data)} bytes)") from None
    except _BROKEN as error:
        raise BadPicture(f"{name} cannot be decoded whole, fetch it again: {error}") from error


def decode_small(data: bytes, at_least: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Decode a known picture to RGB bytes of at least a (width, height), coarsely where that is quicker.

    A JPEG is reduced by its decoder in steps of two. For looking at, not for measuring; raises BadPicture.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            image.draft("RGB", at_least)
            return np.asarray(image.convert("RGB"))
    except _BROKEN as error:
        raise BadPicture(f"the picture cannot be decoded: {error}") from error


def mask_png(mask: npt.NDArray[np.uint8]) -> bytes:
    """Encode a mask as a palette PNG whose index values are those of the mask: 0 clear, 1 cloud, 2 no data."""
    image = Image.fromarray(mask)
    image.putpalette(_PALETTE)
    # Runs of equal bytes are all there is to find in a mask: that strategy is twice as fast and also the smallest.
    return _encoded(image, "PNG", bits=2, compress_type=zlib.Z_RLE)


def read_mask(data: bytes) -> npt.NDArray[np.uint8]:
    """Decode what `mask_png` made; raises BadPicture."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            mask = np.asarray(image)
    except _BROKEN as error:
        raise BadPicture(f"the mask cannot be decoded: {error}") from error
    if mask.ndim != 2 or mask.dtype != np.uint8 or (mask > NO_DATA).any():
        raise BadPicture("the mask is not a palette picture of the values 0, 1 and 2")
    return mask


def overlay_jpg(picture: Image.Image, mask: npt.NDArray[np.uint8], caption: str) -> bytes:
    """Draw a mask over its picture: cloud tinted, no data hatched, and a caption along the lower edge."""
    drawn = picture.copy()
    # One-bit masks: Pillow pastes through them twice as fast as through grey ones.
    drawn.paste(picture.point(_TINT), mask=Image.fromarray(mask == CLOUD))
    absent = mask == NO_DATA
    if absent.any():
        drawn.paste(_GREY, mask=Image.fromarray(absent))
        drawn.paste(_HATCH, mask=Image.fromarray(absent & _diagonals(mask.shape)))
    if caption:
        _write_caption(drawn, caption)
    return _encoded(drawn, "JPEG", quality=OVERLAY_QUALITY)


def thumbnail_jpg(picture: Image.Image) -> bytes:
    """Return the picture at most THUMBNAIL_SIDE_PX a side, as JPEG."""
    small = picture.copy()
    small.thumbnail((THUMBNAIL_SIDE_PX, THUMBNAIL_SIDE_PX), Image.Resampling.BOX, reducing_gap=1.0)
    return _encoded(small, "JPEG", quality=80)


def _diagonals(shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Return slanted lines, about 120 across the longer side."""
    height, width = shape
    step = max(6, max(shape) // 120)
    period = (np.arange(step)[:, np.newaxis] + np.arange(width)) % step < max(1, step // 4)
    return np.tile(period, (-(-height // step), 1))[:height]


def _write_caption(image: Image.Image, caption: str) -> None:
    width, height = image.size
    font_px = max(10, min(width // 32, 44))
    bar_px = min(height, font_px * 2)
    bar = image.crop((0, height - bar_px, width, height)).point(lambda value: value * 0.35)
    draw = ImageDraw.Draw(bar)
    draw.text((font_px * 0.7, bar_px / 2), caption, fill="white", font=ImageFont.load_default(font_px), anchor="lm")
    image.paste(bar, (0, height - bar_px))


def _encoded(image: Image.Image, form: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
