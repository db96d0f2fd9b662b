"""Where the stand-in's pictures come from: scenes made from a seed, or a folder of real pictures.

Responsible for the good answer to an `Ask`: encoded bytes, and the truth where there is one. Knows nothing of
connections or of what goes wrong with them. Everything here blocks; the server calls it from threads.
"""

import io
import re
from datetime import date
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from clouds.errors import CloudsError
from clouds.standin.ask import Ask
from clouds.standin.fault import Fault, Kind
from clouds.standin.scene import NO_DATA_VALUE, U8, Flaws, Planet, View

JPEG_QUALITY = 85


class NoSuchPicture(Exception):
    """The source has no picture of that day and layer."""


class Source(Protocol):
    """What the server draws on."""

    def picture(self, ask: Ask, faults: tuple[Fault, ...]) -> bytes:
        """Return the encoded picture with the day's flaws in it; raises NoSuchPicture."""

    def truth(self, ask: Ask, faults: tuple[Fault, ...]) -> U8:
        """Return 0 clear, 1 thin, 2 cloud, 255 no data for each pixel of that picture; raises NoSuchPicture."""


class SceneSource:
    """Pictures of a seeded planet, for every day and box."""

    def __init__(self, planet: Planet) -> None:
        self.planet = planet

    def picture(self, ask: Ask, faults: tuple[Fault, ...]) -> bytes:
        """See `Source`."""
        view, flaws = _seen(ask, faults)
        if view is None:
            return encode(Image.new("RGB", ask.size), ask.format)
        match ask.product:
            case "true_colour":
                image = self.planet.true_colour(view, flaws)
            case "bands721":
                image = self.planet.bands721(view, flaws)
            case "blue_marble":
                image = self.planet.blue_marble(view)
        return encode(image, ask.format)

    def truth(self, ask: Ask, faults: tuple[Fault, ...]) -> U8:
        """See `Source`."""
        view, flaws = _seen(ask, faults)
        if view is None:
            return np.full(ask.size[::-1], NO_DATA_VALUE, np.uint8)
        return self.planet.truth(view, flaws)


class FolderSource:
    """Real pictures with YYYY-MM-DD in their names; the folder is taken for the box, whatever box is asked for.

    Files with `bands721` in their names answer for that layer. Raises CloudsError where the folder holds none.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise CloudsError(f"{folder} is not a folder; give one with pictures named like aqua_2007-12-27.jpg")
        self._files: dict[tuple[date, bool], Path] = {}
        for path in sorted(folder.rglob("*")):
            if key := _picture_key(path):
                self._files.setdefault(key, path)
        if not any(not is_721 for _, is_721 in self._files):
            raise CloudsError(f"{folder} has no .jpg or .png with a day (YYYY-MM-DD) in its name")

    @property
    def days(self) -> list[date]:
        """The days of which there is a true-colour picture, in order."""
        return sorted(day for day, is_721 in self._files if not is_721)

    def picture(self, ask: Ask, faults: tuple[Fault, ...]) -> bytes:
        """See `Source`. Bytes are those of the file where its size and format are those asked for."""
        kinds = {fault.kind for fault in faults}
        if Kind.BLACK in kinds:
            return encode(Image.new("RGB", ask.size), ask.format)
        path = self._files.get((ask.day, ask.product == "bands721"))
        if path is None or ask.product == "blue_marble":
            raise NoSuchPicture(f"TIME={ask.day} does not exist for this layer")
        body = path.read_bytes()
        with Image.open(io.BytesIO(body)) as image:
            # A picture of the asked size is right also where the service would have scaled it.
            fits = image.size in (ask.size, (ask.width, ask.height))
            if fits and image.get_format_mimetype() == ask.format:
                return body
            whole = image.convert("RGB")
            return encode(whole if fits else whole.resize(ask.size, Image.Resampling.LANCZOS), ask.format)

    def truth(self, ask: Ask, faults: tuple[Fault, ...]) -> U8:
        """See `Source`; nobody knows it of a real picture."""
        raise NoSuchPicture("no truth is known of real pictures")


def encode(image: Image.Image, format: str) -> bytes:
    """Return the picture as the service encodes it: JPEG of quality 85, or PNG."""
    stream = io.BytesIO()
    if format == "image/png":
        image.save(stream, "PNG", compress_level=1)
    else:
        image.save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


def _seen(ask: Ask, faults: tuple[Fault, ...]) -> tuple[View | None, Flaws]:
    """What of a scene the request gets to see; None: nothing, its box is impossible."""
    kinds = {fault.kind for fault in faults}
    flaws = Flaws(gap=Kind.GAP in kinds, black=Kind.BLACK in kinds, night=Kind.NIGHT in kinds)
    if ask.box is None:
        return None, flaws
    width, height = ask.size
    return View(day=ask.day, box=ask.box, width=width, height=height, platform=ask.platform), flaws


_DAY_IN_NAME = re.compile(r"(?<!\d)(\d{4}-\d{2}-\d{2})(?!\d)")
_NOT_IMAGERY = ("truth", "cloudfraction", "landmask", "mask", "overlay")


def _picture_key(path: Path) -> tuple[date, bool] | None:
    """(day, whether it is 7-2-1) of a picture, None of any other file."""
    name = path.name.lower()
    match = _DAY_IN_NAME.search(name)
    if not match or path.suffix.lower() not in (".jpg", ".jpeg", ".png") or any(word in name for word in _NOT_IMAGERY):
        return None
    try:
        return date.fromisoformat(match[1]), "bands721" in name
    except ValueError:
        return None
