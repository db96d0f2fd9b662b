"""One picture to its cloud cover: the very same code for a task of the farm and for a single file.

Responsible for the order of things, for the fields of a result and for what they warn of. Must not know of the farm,
the network or Storage. The idea: bytes in, bytes out; the same bytes in give the same bytes out, times excepted.
"""

import hashlib
import json
import math
import os
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from clouds import coverage, method, picture
from clouds.box import Box
from clouds.errors import BadPicture, CloudsError

DIGITS: Final = 6  # of a fraction in a result: finer than one pixel of the largest picture matters to nobody


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Analysis:
    """All that is known of one picture after its analysis."""

    result: dict[str, Any]
    """The fields of result.json, ready for JSON; those that only a download knows are None."""
    mask_png: bytes
    overlay_jpg: bytes
    thumbnail_jpg: bytes
    rgb: coverage.Bytes2D
    """The picture's pixels, (height, width, 3)."""
    cover: coverage.Cover


def analyse_picture(
    picture_bytes: bytes,
    *,
    day: date | None,
    box: Box | None,
    bands721: bytes | None = None,
    snow_screen_threshold: float = coverage.SNOW_THRESHOLD,
    caption: str | None = None,
) -> Analysis:
    """Measure the cloud cover of a true-colour picture and draw it; raises BadPicture for what is not a whole picture.

    `box` is for EPSG:4326 pictures; without it no area weights are known. `bands721`, the Bands 7-2-1 picture of the
    same pass and size, parts snow and ice from cloud. `caption` replaces the line that is written on the overlay.
    """
    if not 0 <= snow_screen_threshold < 1:
        raise CloudsError(
            f"the snow screen threshold is {snow_screen_threshold}; give a number of at least 0 and below 1"
        )
    started = time.perf_counter()
    image = picture.decode(picture_bytes)
    snow = None if bands721 is None else _decode_beside(image, bands721)
    decoded = time.perf_counter()
    rgb = np.asarray(image)
    cover = coverage.find_cloud(rgb, snow, snow_threshold=snow_screen_threshold)
    measured = coverage.measure(cover, box)
    unscreened = None if snow is None else coverage.unscreened_fraction(cover, snow)
    risk = _snow_risk(box, day, unscreened)
    analysed = time.perf_counter()
    mask_png = picture.mask_png(cover.mask)
    overlay_jpg = picture.overlay_jpg(image, cover.mask, _caption(day, measured) if caption is None else caption)
    thumbnail_jpg = picture.thumbnail_jpg(image)
    encoded = time.perf_counter()

    parameters = dict(coverage.PARAMETERS)
    if snow is not None:
        parameters["snow_screen_threshold"] = snow_screen_threshold
    result = {
        "day": None if day is None else day.isoformat(),
        "box": None if box is None else list(box.as_tuple()),
        "crs": None if box is None else "EPSG:4326",
        "layers": None,
        "service": None,
        "width": image.width,
        "height": image.height,
        "bytes": len(picture_bytes),
        "sha256": hashlib.sha256(picture_bytes).hexdigest(),
        "fetched_at": None,
        "provisional": None,
        "method": method.METHOD,
        "method_version": method.METHOD_VERSION,
        "parameters": parameters,
        "snow_screen": snow is not None,
        "snow_risk": risk,
        "pixels_total": measured.pixels_total,
        "pixels_valid": measured.pixels_valid,
        "pixels_cloud": measured.pixels_cloud,
        "valid_fraction": round(measured.valid_fraction, DIGITS),
        "cloud_fraction": _rounded(measured.cloud_fraction),
        "cloud_fraction_area": _rounded(measured.cloud_fraction_area),
        "thick_fraction": _rounded(measured.thick_fraction),
        "by_quadrant": [_rounded(quarter) for quarter in measured.by_quadrant],
        "warnings": _warnings(measured, risk, unscreened),
        "seconds": {
            "fetch": None,
            "decode": round(decoded - started, DIGITS),
            "analyse": round(analysed - decoded, DIGITS),
            "encode": round(encoded - analysed, DIGITS),
        },
    }
    return Analysis(
        result=result,
        mask_png=mask_png,
        overlay_jpg=overlay_jpg,
        thumbnail_jpg=thumbnail_jpg,
        rgb=rgb,
        cover=cover,
    )


def analyse_files(
    picture_path: Path,
    bands721_path: Path | None,
    out: Path,
    *,
    day: date | None = None,
    box: Box | None = None,
    snow_screen_threshold: float = coverage.SNOW_THRESHOLD,
) -> dict[str, Any]:
    """Analyse a file and write mask.png, overlay.jpg and result.json into the folder `out`; returns the result.

    Raises CloudsError, and writes nothing, when a file cannot be read or is not a picture. Each file appears whole or
    not at all, the result last.
    """
    try:
        analysis = analyse_picture(
            _read(picture_path),
            day=day,
            box=box,
            bands721=None if bands721_path is None else _read(bands721_path),
            snow_screen_threshold=snow_screen_threshold,
        )
    except BadPicture as error:
        raise BadPicture(f"{picture_path}: {error}") from error
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / "mask.png", analysis.mask_png)
        write_whole(out / "overlay.jpg", analysis.overlay_jpg)
        write_whole(out / "result.json", result_json(analysis.result))
    except OSError as error:
        raise CloudsError(f"cannot write to {out}: {error.strerror or error}") from error
    return analysis.result


def result_json(result: dict[str, Any]) -> bytes:
    """Return the text of result.json, UTF-8, in the order of its fields."""
    return (json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is seen whole or not at all; raises OSError."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _decode_beside(image: Image.Image, bands721: bytes) -> coverage.Bytes2D:
    other = picture.decode(bands721, "the Bands 7-2-1 picture")
    if other.size != image.size:
        raise BadPicture(
            f"the Bands 7-2-1 picture is {other.width} x {other.height} and the true-colour one {image.width} x "
            f"{image.height}; they must be of the same box and size"
        )
    return np.asarray(other)


def _snow_risk(box: Box | None, day: date | None, unscreened: float | None) -> bool | None:
    """Tell whether snow may be counted as cloud; None when it is not known where or when."""
    if unscreened is not None and unscreened <= coverage.UNSCREENED_MAX:
        return False
    return method.snow_screen_wanted(box, day) if box is not None and day is not None else None


def _warnings(measured: coverage.Measure, snow_risk: bool | None, unscreened: float | None) -> list[str]:
    told = []
    if not measured.pixels_valid:
        told.append("nothing was observed: the picture is black throughout")
    elif measured.valid_fraction < coverage.VALID_MIN:
        # Cut, not rounded: .4996 must not read as the half it does not reach.
        told.append(f"only {math.floor(100 * measured.valid_fraction)} % was observed: left out of means")
    if snow_risk and unscreened is None:
        told.append("snow and ice may be counted as cloud: no Bands 7-2-1 picture was given")
    elif snow_risk and unscreened is not None:
        told.append(f"snow and ice may be counted as cloud: Bands 7-2-1 has no data for {100 * unscreened:.0f} %")
    return told


def _caption(day: date | None, measured: coverage.Measure) -> str:
    cloud = "no data" if measured.cloud_fraction is None else f"cloud {100 * measured.cloud_fraction:.1f} %"
    seen = f"observed {100 * measured.valid_fraction:.0f} %"
    return "   ".join(part for part in (day.isoformat() if day else "", cloud, seen) if part)


def _rounded(fraction: float | None) -> float | None:
    return None if fraction is None else round(fraction, DIGITS)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CloudsError(f"cannot read {path}: {error.strerror or error}") from error
