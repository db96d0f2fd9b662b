"""The page: one file that loads nothing, says what it must, and lets no foreign text act."""

import base64
import io
import json
import re
from datetime import date, timedelta
from functools import reduce
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from clouds import chart, film, fold
from clouds.box import SWEDEN
from clouds.errors import CloudsError
from clouds.report import ACKNOWLEDGEMENT, report_html, write_report
from clouds.series import build_series

START = date(2021, 2, 1)
HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">&\u2028\'"'


def day(number):
    return START + timedelta(days=number)


def thumbnail(shade, size=(48, 96)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, shade, 90)).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def result(cloud, valid=1.0, **more):
    return {
        "cloud_fraction": cloud,
        "cloud_fraction_area": cloud,
        "valid_fraction": valid,
        "sha256": f"{cloud}{valid}",
        **more,
    }


def month_of_days():
    """30 days: 26 used, one little observed, one without data, one failed and one missing."""
    results = {day(n): result(round(0.03 * n, 4)) for n in range(27)}
    results[day(5)] = result(0.9, 0.3)
    results[day(27)] = result(None, 0.0)
    return build_series([day(n) for n in range(30)], results, {day(28): HOSTILE})


def small_fold():
    mask = np.zeros((12, 6), np.uint8)
    mask[:4] = 1
    mask[:, :2] = 2
    pixels = np.full((12, 6, 3), 70, np.uint8)
    return reduce(fold.merge, [fold.fold_day(pixels, mask, day(n), (12, 6)) for n in range(3)])


def page(**changes):
    options = {
        "series": month_of_days(),
        "fold": small_fold(),
        "thumbnails": {day(n): thumbnail(40 + 5 * n) for n in range(28)},
        "provenance": {"layers": ["one", "two"], "parameters": {"rise_min": 20}},
        "box": SWEDEN,
    }
    options.update(changes)
    return report_html(**options)


class Page(HTMLParser):
    """Collects the elements of a page and complains of what is not closed."""

    EMPTY = ("meta", "img", "br", "source", "path", "rect", "circle", "stop", "image", "link", "input")

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text = [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.text[self.open[-1]] = self.text.get(self.open[-1], "") + data

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def test_the_page_is_well_formed_and_loads_nothing():
    read = Page(page())
    for tag, attrs in read.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            assert attrs.get(name, "data:").startswith("data:"), (tag, attrs)
        assert not {name for name in attrs if name.startswith("on")}
    assert "@import" not in read.text["style"]
    assert "url(" not in read.text["style"]
    assert not read.all("link")
    policy = next(
        attrs["content"] for attrs in read.all("meta") if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'")


def test_foreign_text_stays_text_wherever_it_stands():
    text = page(title=HOSTILE, provenance={HOSTILE: HOSTILE, "nested": {"a": [HOSTILE]}})
    read = Page(text)
    assert len(read.all("script")) == 2
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert [attrs for attrs in read.all("img") if attrs.get("src") == "x"] == []
    days = json.loads(re.search(r'<script type="application/json" id="days">(.*?)</script>', text, re.S).group(1))
    # the series keeps reasons to one line, a separator of lines becomes a space
    assert days[28]["reason"] == HOSTILE.replace("\u2028", " ")


def test_the_summary_says_how_the_days_fared():
    text = page()
    for count, name in (
        (26, "used"),
        (1, "less than half observed"),
        (1, "without data"),
        (1, "failed"),
        (1, "missing"),
    ):
        assert f"<b>{count}</b> {name}</li>" in text
    told = month_of_days().statistics
    assert f"<strong>{100 * told.mean:.1f}\u202f%</strong>" in text
    assert f"<strong>{100 * told.median:.1f}\u202f%</strong>" in text
    assert "Clearest day" in text
    assert "1 February 2021" in text
    assert "Cloudiest day" in text
    assert "27 February 2021" in text


def test_every_part_is_there():
    text = page()
    for part in ("Day by day", "Calendar", "How often", "By month", "Where it was cloudy", "The ground, clouds removed",
                 "All days in", "The days", "Gaps and warnings", "All numbers", "Where this comes from", ACKNOWLEDGEMENT):  # fmt: skip
        assert part in text
    assert "We acknowledge the use of imagery provided by NASA Worldview / GIBS, part of NASA ESDIS" in ACKNOWLEDGEMENT
    assert "55" in text  # a parallel of the graticule
    assert "rise_min 20" in text


def test_a_hollow_dot_for_little_coverage_and_no_dot_for_no_number():
    svg = chart.time_series(month_of_days(), 900)
    assert svg.count('class="dot"') == 26
    assert svg.count('class="dot hollow"') == 1
    assert svg.count('class="gap"') == 2
    assert svg.count('class="lost"') == 1


def test_the_contact_sheet_has_every_day_and_the_reason_where_there_is_no_picture():
    buttons = [attrs for attrs in Page(page()).all("button") if "data-day" in attrs]
    assert [attrs["data-day"] for attrs in buttons] == [day(n).isoformat() for n in range(30)]
    assert buttons[27]["title"] == "no data in the box"
    assert buttons[28]["title"] == HOSTILE.replace("\u2028", " ")
    assert buttons[29]["title"] == "not in this run"


def test_gaps_of_the_same_reason_stand_together():
    days = [day(n) for n in range(40)]
    text = page(series=build_series(days, {day(39): result(0.5)}, dict.fromkeys(days[:20], "no route to host")))
    assert text.count("20 days: 2021-02-01, ") == 1
    assert "2021-02-12 and 8 more" in text
    assert "19 days: 2021-02-21" in text


def test_what_failed_is_told_before_what_is_only_warned_of():
    results = {day(0): result(0.5, warnings=["redirected"]), day(1): result(0.9, 0.2), day(2): result(None, 0.0)}
    text = page(series=build_series([day(n) for n in range(5)], results, {day(3): "gone"}))
    told = re.findall(r"<li><b>([^<]*)</b><span>([^<]*)</span>", text)
    assert told == [
        ("failed", "gone"),
        ("missing", "not in this run"),
        ("without data", "no data in the box"),
        ("less than half observed", "shown hollow and left out of means"),
        ("warning", "redirected"),
    ]


def test_the_animation_has_a_frame_for_each_day_with_a_number():
    source = next(attrs["src"] for attrs in Page(page()).all("img") if attrs.get("class") == "film")
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
        assert image.format == "WEBP"
        assert image.n_frames == 27


def test_a_long_animation_keeps_an_even_choice():
    frames = [(str(n), thumbnail(n % 200)) for n in range(film.FRAMES_MAX + 60)]
    with Image.open(io.BytesIO(film.animation_webp(frames, (64, 64)))) as image:
        assert image.n_frames == film.FRAMES_MAX


def test_the_map_has_the_colours_of_the_scale_and_is_clear_where_nothing_was_seen():
    with Image.open(io.BytesIO(film.mean_map_png(small_fold()))) as image:
        pixels = np.asarray(image.convert("RGBA"))
    assert (pixels[:, :2, 3] == 0).all()
    assert (pixels[:4, 2:] == (255, 255, 255, 255)).all()
    assert (pixels[4:, 2:] == (*chart.colour(0), 255)).all()


def test_the_clearest_picture_is_transparent_where_no_day_saw_it_whole():
    with Image.open(io.BytesIO(film.clearest_webp(small_fold()))) as image:
        pixels = np.asarray(image.convert("RGBA"))
    assert (pixels[:, :3, 3] == 0).all()
    assert (pixels[:, 3:, 3] == 255).all()
    assert abs(pixels[6, 5, :3].astype(int) - 70).max() <= 6


def test_the_same_input_gives_the_same_bytes():
    assert page() == page()


@pytest.mark.parametrize(
    "changes",
    [
        {"fold": None, "thumbnails": {}, "provenance": {}, "box": None},
        {"series": build_series([START], {START: result(0.4)}), "thumbnails": {START: thumbnail(90)}},
        {"series": build_series([START], {}, {START: "gone"}), "fold": fold.empty((3, 3)), "thumbnails": {}},
        {"series": build_series([day(n) for n in range(450)], {day(n): result(0.5) for n in range(450)})},
        {"thumbnails": {day(1): b"no picture", day(2): thumbnail(90)}},
        {"box": None},
    ],
    ids=["nothing but numbers", "one day", "only a failure", "every second day shown", "a broken thumbnail", "no box"],
)
def test_a_page_comes_of_whatever_there_is(changes):
    Page(page(**changes))


def test_three_files_are_written_and_agree(tmp_path):
    path = write_report(tmp_path / "deep" / "run", month_of_days(), small_fold(), {}, {}, box=SWEDEN)
    assert path == tmp_path / "deep" / "run" / "report.html"
    assert sorted(some.name for some in path.parent.iterdir()) == ["report.html", "series.csv", "series.json"]
    lines = (path.parent / "series.csv").read_text().splitlines()
    assert len(lines) == 31
    assert len(json.loads((path.parent / "series.json").read_text())["days"]) == 30


def test_no_day_and_no_place_to_write_are_told(tmp_path):
    with pytest.raises(CloudsError, match="no day to report"):
        write_report(tmp_path, build_series([], {}), None, {}, {})
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(CloudsError, match=r"cannot write the report to .*taken"):
        write_report(tmp_path / "taken", month_of_days(), None, {}, {})


# --- charts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("days", [1, 5, 14, 40, 90, 365, 900, 3650, 9000])
@pytest.mark.parametrize("count_max", [3, 10])
def test_dates_are_labelled_few_and_in_order(days, count_max):
    last = START + timedelta(days=days - 1)
    ticks = chart.date_ticks(START, last, count_max)
    assert 1 <= len(ticks) <= count_max
    assert [tick for tick, _ in ticks] == sorted(tick for tick, _ in ticks)
    assert all(START <= tick <= last for tick, _ in ticks)
    assert len({label for _, label in ticks}) == len(ticks) or days > 300


def test_dates_by_months_name_the_year_once():
    labels = [label for _, label in chart.date_ticks(date(2020, 11, 15), date(2021, 4, 10), 6)]
    assert labels == ["Dec 2020", "Jan 2021", "Feb", "Mar", "Apr"]


def test_degrees_are_round_and_on_their_side_of_zero():
    assert chart.degree_ticks(54.7, 69.8, 8) == [56, 58, 60, 62, 64, 66, 68]
    assert [chart.degrees(value, "E", "W") for value in (-10, 0, 12.5)] == ["10°W", "0°", "12.5°E"]


def test_tenths_count_every_day_once():
    assert chart.tenths([0, 0.05, 0.1, 0.95, 1.0]) == [2, 1, 0, 0, 0, 0, 0, 0, 0, 2]


def test_the_scale_runs_from_deep_blue_to_white_and_brightens_all_the_way():
    shades = [sum(chart.colour(step / 50)) for step in range(51)]
    assert shades == sorted(shades)
    assert chart.colour(1) == (255, 255, 255)
    assert chart.colour(-1) == chart.colour(0)
