"""The pictures of the report: mean-cloud map, clearest-pixel picture, tiles of the contact sheet, the animation.

Responsible for turning folds and thumbnails into small encoded images. Must not know of HTML, files or days beyond
the captions it is given.
"""

import io
from collections.abc import Sequence
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from clouds import picture
from clouds.chart import colour
from clouds.fold import Fold

FRAMES_MAX: Final = 240
FRAME_MS: Final = 140
_UNSEEN: Final = 255


def mean_map_png(fold: Fold) -> bytes:
    """Return the mean cloud map as a palette PNG on the scale of all maps, transparent where never seen."""
    mean = fold.mean_cloud()
    index = np.where(np.isnan(mean), _UNSEEN, np.round(np.nan_to_num(mean) * (_UNSEEN - 1))).astype(np.uint8)
    image = Image.fromarray(index)
    image.putpalette([part for step in range(_UNSEEN) for part in colour(step / (_UNSEEN - 1))] + [0, 0, 0])
    return _encoded(image, "PNG", transparency=_UNSEEN, compress_level=9)


def clearest_webp(fold: Fold) -> bytes:
    """Return the clearest-pixel picture, transparent where no day saw the ground whole."""
    seen = ((fold.clearest_day > 0) * np.uint8(255))[..., np.newaxis]
    image = Image.fromarray(np.concatenate([fold.clearest, seen], axis=-1))
    return _encoded(image, "WEBP", quality=82, method=4)


def tile_webp(thumbnail: bytes, side_px: int) -> bytes:
    """Return a thumbnail at most `side_px` a side; raises BadPicture."""
    image = Image.fromarray(picture.decode_small(thumbnail, (side_px, side_px)))
    image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    return _encoded(image, "WEBP", quality=64, method=4)


def animation_webp(frames: Sequence[tuple[str, bytes]], size: tuple[int, int]) -> bytes:
    """Return (caption, thumbnail) pairs as a film that repeats, FRAME_MS each; raises BadPicture.

    Of more than FRAMES_MAX an even choice is shown. `frames` must not be empty.
    """
    if len(frames) > FRAMES_MAX:
        frames = [frames[place * len(frames) // FRAMES_MAX] for place in range(FRAMES_MAX)]
    drawn = [
        _frame(caption, thumbnail, size, place / max(1, len(frames) - 1))
        for place, (caption, thumbnail) in enumerate(frames)
    ]
    return _encoded(
        drawn[0], "WEBP", save_all=True, append_images=drawn[1:], duration=FRAME_MS, loop=0, quality=60, method=2
    )


def _frame(caption: str, thumbnail: bytes, size: tuple[int, int], progress: float) -> Image.Image:
    """Draw one day with its caption and, along the lower edge, how far the film has come."""
    image = Image.fromarray(picture.decode_small(thumbnail, size)).resize(size, Image.Resampling.LANCZOS)
    width, height = size
    font_px = max(11, width // 22)
    bar_px = font_px * 2
    bar = image.crop((0, height - bar_px, width, height)).point(lambda value: value * 0.4)
    draw = ImageDraw.Draw(bar)
    draw.text((font_px * 0.6, bar_px / 2 - 1), caption, fill="white", font=ImageFont.load_default(font_px), anchor="lm")
    draw.rectangle((0, bar_px - 3, round(width * progress), bar_px), fill=(240, 110, 90))
    image.paste(bar, (0, height - bar_px))
    return image


def _encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
