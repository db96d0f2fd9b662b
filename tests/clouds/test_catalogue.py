"""What a listing of Storage says of the days that are asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import date, timedelta

import pytest

from antfarm.model import BlobRef
from antfarm.storage import AsyncStorage
from clouds import pipeline
from clouds.box import SWEDEN
from clouds.catalogue import Known, Series, known_days, method_folder
from clouds.pipeline import Found, Progress
from clouds.service import Service, cache_key
from clouds.tasks import Request

DAY = date(2021, 2, 16)
TODAY = date(2021, 6, 1)
SERIES = Series(key="abc")
FOLDER = "clouds/abc/2021-02-16/"
PLAIN, SCREENED = (f"{FOLDER}{method_folder(snow_screen=snow)}result.json" for snow in (False, True))


def known(*names: str, snow: bool = False, today: date = TODAY, series: Series = SERIES) -> Known:
    keys = [name if name.startswith("clouds/") else FOLDER + name for name in names]
    return known_days(keys, [DAY], series, today=today, wants_snow=frozenset([DAY] if snow else []))


def test_the_json_makes_a_step_done() -> None:
    assert known() == Known(analysed={}, downloaded=frozenset())
    assert known("source.jpg") == Known(analysed={}, downloaded=frozenset())
    assert known("source.jpg", "source.json") == Known(analysed={}, downloaded=frozenset([DAY]))
    assert known("source.jpg", "source.json", PLAIN) == Known(analysed={DAY: PLAIN}, downloaded=frozenset())


def test_a_day_counts_only_with_the_pictures_and_the_method_wanted_now() -> None:
    source = ("source.jpg", "source.json")
    pair = (*source, "bands721.jpg", "bands721.json")
    assert known(*source, PLAIN, snow=True) == Known(analysed={}, downloaded=frozenset())
    assert known(*pair, PLAIN, snow=True) == Known(analysed={}, downloaded=frozenset([DAY]))
    assert known(*pair, PLAIN, SCREENED, snow=True).analysed == {DAY: SCREENED}
    assert known(*pair, PLAIN, SCREENED).analysed == {DAY: PLAIN}
    other = PLAIN.replace("F1/", "F2/")
    assert known(*source, other) == Known(analysed={}, downloaded=frozenset([DAY]))


def test_a_second_picture_that_was_refused_is_not_wanted_again() -> None:
    refused = ("source.jpg", "source.json", "bands721.json")
    assert known(*refused, snow=True).downloaded == {DAY}
    assert known(*refused, PLAIN, snow=True).analysed == {DAY: PLAIN}


def test_a_young_day_is_wanted_again_on_a_later_date() -> None:
    soon, later = DAY + timedelta(days=1), DAY + timedelta(days=3)
    young = f"clouds/abc/{DAY}.provisional-{soon}/"
    names = [f"{young}source.json", f"{young}{method_folder(snow_screen=False)}result.json"]
    assert known(*names, today=soon).analysed == {DAY: names[1]}
    assert known(*names, today=DAY + timedelta(days=2)) == Known(analysed={}, downloaded=frozenset())
    assert known(*names, today=later) == Known(analysed={}, downloaded=frozenset())
    assert SERIES.folder(DAY, soon) == young
    assert SERIES.folder(DAY, later) == FOLDER


def test_pictures_of_another_format_are_other_pictures() -> None:
    png = Series(key="abc", extension="png")
    pair = ("source.png", "source.json", "bands721.png", "bands721.json")
    assert known(*pair, SCREENED, snow=True, series=png).analysed == {DAY: SCREENED}


class Listing(AsyncStorage):
    """A Storage that only lists."""

    def __init__(self, *keys: str) -> None:
        super().__init__("127.0.0.1:1")
        self.keys = keys

    async def list(self, prefix: str = "") -> AsyncIterator[BlobRef]:
        for key in self.keys:
            if key.startswith(prefix):
                yield BlobRef(key=key, size_bytes=1, sha256=bytes(32))


@pytest.fixture
def request_of_two_days() -> Request:
    service = Service()
    days = (DAY, DAY + timedelta(days=1))
    return Request(service=service, area=SWEDEN, series=cache_key(service, SWEDEN), days=days)


async def test_a_survey_tells_what_is_there_from_what_is_wanted(request_of_two_days: Request) -> None:
    prefix = request_of_two_days.catalogue.prefix
    found = await pipeline.survey(Listing(f"{prefix}{DAY}/F1/result.json"), request_of_two_days)
    assert found.keys == {DAY: f"{prefix}{DAY}/F1/result.json"}
    assert found.wanted == (DAY + timedelta(days=1),)
    assert (found.progress.asked, found.progress.known, found.progress.had) == (2, 1, 0)


async def test_days_whose_group_was_lost_count_when_storage_has_them(request_of_two_days: Request) -> None:
    prefix = request_of_two_days.catalogue.prefix
    other = DAY + timedelta(days=1)
    lost = "the summary was lost"
    found = Found(keys={}, failed={DAY: lost, other: lost}, wanted=(DAY, other), progress=Progress(asked=2, failed=2))
    told: list[int] = []
    storage = Listing(f"{prefix}{DAY}/F1/result.json")
    await pipeline.look_again(storage, request_of_two_days, found, lambda progress: told.append(progress.analysed))
    assert found.keys == {DAY: f"{prefix}{DAY}/F1/result.json"}
    assert found.failed == {other: lost}
    assert (found.progress.analysed, found.progress.failed, told) == (1, 1, [1])
