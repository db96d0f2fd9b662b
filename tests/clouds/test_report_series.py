"""The series: every day has a row, only well observed days enter means, and nothing unknown is ever 0."""

import csv
import io
import json
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clouds.series import WINDOW_USED_MIN, build_series, quartiles

START = date(2021, 2, 1)


def day(number):
    return START + timedelta(days=number)


def result(cloud, valid=1.0, **more):
    return {
        "cloud_fraction": cloud,
        "cloud_fraction_area": cloud,
        "valid_fraction": valid,
        "sha256": f"{cloud}/{valid}",
        **more,
    }


def series_of(values, **more):
    return build_series(
        [day(n) for n in range(len(values))], {day(n): result(*v) for n, v in enumerate(values)}, **more
    )


def test_every_day_asked_for_has_a_row_with_its_reason():
    series = build_series(
        [day(n) for n in range(6)],
        {day(0): result(0.5), day(1): result(0.9, 0.4996), day(2): result(None, 0.0), day(4): result(0.7, 0.5)},
        {day(3): "503\n  Service Unavailable", day(0): "an earlier attempt failed"},
    )
    assert [(row.status, row.reason) for row in series.rows] == [
        ("used", None),
        ("low_coverage", "only 49 % observed"),
        ("no_data", "no data in the box"),
        ("failed", "503 Service Unavailable"),
        ("used", None),
        ("missing", "not in this run"),
    ]
    assert series.rows[2].cloud_fraction is None
    told = series.statistics
    assert (told.days_asked, told.days_used, told.days_low_coverage) == (6, 2, 1)
    assert (told.days_no_data, told.days_failed, told.days_missing) == (1, 1, 1)


def test_means_weigh_days_equally_and_leave_low_coverage_out():
    series = series_of([(0.2, 0.5), (0.4, 1.0), (0.9, 0.9), (1.0, 0.49), (None, 0.0)])
    assert series.statistics.mean == pytest.approx(0.5)
    assert series.statistics.median == pytest.approx(0.4)
    assert series.statistics.clearest == day(0)
    assert series.statistics.cloudiest == day(2)


def test_without_a_used_day_there_is_no_mean():
    series = series_of([(None, 0.0), (0.3, 0.2)])
    told = series.statistics
    assert (told.mean, told.mean_area, told.median, told.low_quartile, told.clearest, told.cloudiest) == (None,) * 6
    assert [month.mean for month in series.months] == [None]
    assert series.months[0].days == 0


def test_a_fraction_beside_no_valid_pixel_is_not_believed():
    assert series_of([(0.0, 0.0)]).rows[0].cloud_fraction is None


def test_clear_is_0_and_not_unknown():
    series = series_of([(0.0, 1.0)])
    assert series.statistics.mean == 0.0
    assert ",0," in series.to_csv().splitlines()[1]


def test_the_running_mean_covers_the_week_around_a_day_and_only_used_days():
    values = [(0.1, 1.0), (0.2, 1.0), (0.3, 1.0), (0.4, 1.0), (1.0, 0.3), (0.6, 1.0), (0.7, 1.0), (0.8, 1.0)]
    rows = series_of(values).rows
    assert rows[3].cloud_fraction_7day == pytest.approx((0.1 + 0.2 + 0.3 + 0.4 + 0.6 + 0.7) / 6)
    assert rows[0].cloud_fraction_7day == pytest.approx((0.1 + 0.2 + 0.3 + 0.4) / 4)
    assert rows[7].cloud_fraction_7day is None  # three used days are less than half a week


def test_the_running_mean_goes_by_the_calendar_and_not_by_rows():
    days = [day(0), day(10), day(20), day(30)]
    rows = build_series(days, {some: result(0.5) for some in days}).rows
    assert WINDOW_USED_MIN == 4
    assert [row.cloud_fraction_7day for row in rows] == [None] * 4


def test_months_are_those_of_the_calendar_over_all_years():
    days = [date(2020, 1, 1), date(2021, 1, 5), date(2022, 1, 9), date(2021, 3, 1), date(2021, 3, 2)]
    values = [0.0, 0.2, 0.7, 0.4, None]
    series = build_series(
        days, {d: result(v, 1.0 if v is not None else 0.0) for d, v in zip(days, values, strict=True)}
    )
    january, march = series.months
    assert (january.month, january.days, march.month, march.days) == (1, 3, 3, 1)
    assert january.mean == pytest.approx(0.3)
    assert january.median == pytest.approx(0.2)
    assert (january.low_quartile, january.high_quartile) == pytest.approx((0.1, 0.45))


def test_the_same_picture_on_two_days_is_flagged_on_both_and_empty_ones_are_not():
    same, empty = {"sha256": "a"}, {"sha256": "b"}
    series = build_series(
        [day(n) for n in range(5)],
        {
            day(0): result(0.5, 1.0, **same),
            day(1): result(0.4, 1.0),
            day(2): result(0.5, 1.0, **same),
            day(3): result(None, 0.0, **empty),
            day(4): result(None, 0.0, **empty),
        },
    )
    assert [row.warnings for row in series.rows] == [
        ("same picture as 2021-02-03",),
        (),
        ("same picture as 2021-02-01",),
        (),
        (),
    ]


def test_days_come_in_order_and_once():
    series = build_series([day(2), day(0), day(2), day(1)], {})
    assert [row.day for row in series.rows] == [day(0), day(1), day(2)]


def test_the_csv_has_a_line_a_day_and_empty_fields_for_what_is_unknown():
    series = build_series(
        [day(0), day(1), day(2)],
        {
            day(0): result(
                0.123456789,
                0.75,
                by_quadrant=[0.1, None, 0.3, 0.4],
                thick_fraction=0.05,
                snow_screen=True,
                snow_risk=False,
                warnings=["a", "b"],
            ),
            day(1): result(None, 0.0, snow_risk=None),
        },
        {day(2): 'a "quoted", reason'},
    )
    first, second, third = csv.DictReader(io.StringIO(series.to_csv()))
    assert first["day"] == "2021-02-01"
    assert first["cloud_fraction"] == "0.123457"
    assert (first["cloud_fraction_nw"], first["cloud_fraction_ne"]) == ("0.1", "")
    assert (first["snow_screen"], first["snow_risk"], first["warnings"]) == ("true", "false", "a; b")
    assert (second["status"], second["cloud_fraction"], second["valid_fraction"], second["snow_risk"]) == (
        "no_data",
        "",
        "0",
        "",
    )
    assert (third["status"], third["reason"]) == ("failed", 'a "quoted", reason')


def test_the_json_holds_the_same_with_null_for_what_is_unknown():
    series = build_series([day(0), day(1)], {day(0): result(0.25)}, {day(1): "gone"})
    told = json.loads(series.to_json())
    assert list(told) == ["statistics", "months", "days"]
    assert told["statistics"]["mean"] == 0.25
    assert told["statistics"]["clearest"] == "2021-02-01"
    assert told["days"][0]["cloud_fraction"] == 0.25
    assert told["days"][1]["cloud_fraction"] is None
    assert told["days"][1]["reason"] == "gone"


@pytest.mark.parametrize("strange", ["0.5", float("nan"), float("inf"), True, [0.5]])
def test_a_fraction_that_is_no_number_is_unknown(strange):
    assert series_of([(strange, 1.0)]).rows[0].status == "no_data"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_quartiles_are_ordered_and_within_the_values(values):
    low, middle, high = quartiles(values)
    assert min(values) <= low <= middle <= high <= max(values)


def test_quartiles_of_known_values():
    assert quartiles([4, 1, 3, 2]) == (1.75, 2.5, 3.25)
    assert quartiles([7]) == (7, 7, 7)
    assert quartiles([]) == (None, None, None)
