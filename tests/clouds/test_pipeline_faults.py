"""Whole runs in bad weather: every fault of the stand-in, and the etiquette of two download workers together."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from clouds_run import FIRST, arguments_for, assert_nothing_false, blobs, results, run, series_of, serving
from conftest import RunningFarm

from clouds.standin import Kind

pytestmark = pytest.mark.slow

PASSING = {
    Kind.GATEWAY: "*1",
    Kind.THROTTLED: "*1:retry_after=1",
    Kind.BROKEN: "*1",
    Kind.GATEWAY_DOWN: "*1",
    Kind.DOWN: "*1:retry_after=1",
    Kind.REDIRECT: "",
    Kind.CUT: "*1",
    Kind.CUT_MATCHING: "*1",
    Kind.DROP: "*1",
    Kind.DRIP: ":seconds=1",
    Kind.GZIP: "",
    Kind.EMPTY: "*1",
}
"""What another attempt gets over, or none is needed for, with how often it happens."""

LASTING = {
    Kind.XML: "(HTTP 200): InvalidParameterValue at TIME: TIME=DAY does not exist for this layer",
    Kind.LAYER_XML: "(HTTP 200): LayerNotDefined: msWMSLoadGetMapParams(): Unable to access -- invalid LAYER(s)",
    Kind.HTML: "text/html in place of a picture (HTTP 200): '<html><body>No REQUEST parameter specified",
    Kind.JSON: '(HTTP 200): \'{"error": "no imagery"}\'',
    Kind.BAD_REQUEST: "(HTTP 400): InvalidParameterValue at TIME: TIME=DAY does not exist for this layer",
    Kind.NOT_FOUND: "(HTTP 404): InvalidParameterValue at TIME: TIME=DAY does not exist for this layer",
    Kind.WRONG_SIZE: "asked for was 160x200",
    Kind.PNG: "the bytes are PNG though the service calls them image/jpeg",
}
"""What is refused for good, with words that the reason must hold."""

FLAWED = (Kind.BLACK, Kind.GAP, Kind.NIGHT, Kind.OTHER_DAY)
"""What is served as a picture. The last one gets the picture of the day before it, which is flagged with it."""


def test_every_fault_of_the_service_ends_as_it_should(running_farm: RunningFarm, tmp_path: Path) -> None:
    order = [*PASSING, *LASTING, *FLAWED]
    assert set(order) == set(Kind)
    day_of = {kind: FIRST + timedelta(days=number) for number, kind in enumerate(order)}
    faults = [f"--fault={day}={kind}{PASSING.get(kind, '')}" for kind, day in day_of.items()]
    with serving("--seed", "11", "--latency", "0.1", *faults) as server:
        more = ("--connect", running_farm.address, "--group", "2")
        done = run(arguments_for(server, tmp_path, FIRST, len(order), *more, seed=11))
        stats = server.stats()

    assert done.code == 1
    for kind in (*PASSING, Kind.GAP, Kind.NIGHT, Kind.OTHER_DAY):
        assert done.series[day_of[kind]]["status"] == "used", (kind, done.series[day_of[kind]]["reason"])
    for kind, words in LASTING.items():
        row = done.series[day_of[kind]]
        assert row["status"] == "failed", kind
        assert words.replace("DAY", row["day"]) in row["reason"], kind
    black = done.series[day_of[Kind.BLACK]]
    assert (black["status"], black["cloud_fraction"], black["valid_fraction"]) == ("no_data", "", "0")
    night, other = day_of[Kind.NIGHT], day_of[Kind.OTHER_DAY]
    assert f"same picture as {night}" in done.series[other]["warnings"]
    assert f"same picture as {other}" in done.series[night]["warnings"]

    assert stats["early"] == 0
    assert stats["needless"] == 0
    assert stats["concurrent"] == 0
    assert stats["concurrent_max"] == 3, "the limit is used and holds over both workers"
    assert {name: count for name, count in stats["answers"].items() if name != "picture"} == {
        kind.value: 1 for kind in (*PASSING, *LASTING) if kind not in (Kind.REDIRECT,)
    } | {"redirect308": 1}

    stored = blobs(running_farm.storage)
    assert_nothing_false(stored)
    refused = {day_of[kind].isoformat() for kind in LASTING}
    series = series_of(server, stored)
    assert not [key for key in stored if key.startswith(f"clouds/{series}/") and key.split("/")[2] in refused]
    (nothing,) = [
        result
        for result in results(stored)
        if result["day"] == day_of[Kind.BLACK].isoformat() and not result["pixels_valid"]
    ]
    assert nothing["cloud_fraction"] is None
    assert nothing["valid_fraction"] == 0


def test_a_service_that_is_away_for_longer_than_we_try_is_a_failure_that_a_later_run_mends(
    running_farm: RunningFarm, tmp_path: Path
) -> None:
    with serving("--seed", "12", f"--fault={FIRST}=http503*1:retry_after=3600") as server:
        ask = arguments_for(server, tmp_path, FIRST, 2, "--connect", running_farm.address, seed=12)
        done = run(ask)
        assert done.code == 1
        row = done.series[FIRST]
        assert row["reason"].startswith("the service is not well (HTTP 503), in 3600 s")
        assert row["reason"].endswith("that is too long to wait for, run the same again later")
        again = run(ask)
        assert (again.code, again.statuses) == (0, {"used": 2})
        assert again.err[0] == "2 days: 1 analysed before, 1 to download"
