"""The growth run: its points, its record, its picture, and the tasks that it measures with."""

from __future__ import annotations

import argparse
import itertools
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from antfarm.payload import encode_call
from antfarm.v1 import report_queue_pb2, work_queue_pb2
from bench import growth, growth_chart, growth_record
from bench.growth_record import AXES, PAYLOAD, SIMULATED, TASKS, WORKERS, Growth, Point
from bench.peers import record
from bench.simulated import Answering, Host
from bench.tasks import payload_text, weigh


def run(*points: Point) -> Growth:
    return Growth(
        revision="abc",
        date="2026-01-02 03:04",
        machine="m, 2 cores",
        cores=2,
        rounds=1,
        noise_ms=[9.0],
        points=[*points],
    )


def point(axis: str, x: int, rate: float, ms: float) -> Point:
    tasks = x if axis == TASKS else 100_000
    made = Point(axis=axis, tasks=tasks, workers=2 if axis in (TASKS, PAYLOAD) else x)
    made.payload_bytes = x if axis == PAYLOAD else 0
    made.tasks_s, made.p50_ms, made.p99_ms, made.cpu_us = [rate], [ms], [2 * ms], {"client": [5.0]}
    return made


def whole_run() -> Growth:
    return run(
        *(point(TASKS, 10**n, 2e4 + n, 3.0) for n in range(3, 7)),
        *(point(WORKERS, 2**n, 5e4 / (n + 1), 3.0 + n) for n in range(7)),
        *(point(SIMULATED, 10**n, 7e4 / 4**n, 2.0 + n) for n in range(4)),
        *(point(PAYLOAD, 4**n, 5e4 / 2**n, 3.0) for n in range(2, 9)),
    )


@pytest.mark.parametrize("size", [16, 64, 1_024, 65_536])
def test_a_payload_takes_the_bytes_it_should_and_comes_back_as_its_number(size: int) -> None:
    text = payload_text(123_456, size)
    assert len(encode_call([text])) == size
    assert weigh(text) == 123_456


def test_the_default_plan_has_all_four_axes() -> None:
    parser = argparse.ArgumentParser()
    growth.add_options(parser)
    points = growth.plan_of(parser.parse_args([])).points()
    assert {one.axis for one in points} == set(AXES)
    assert [one.x for one in points if one.axis == WORKERS] == [1, 2, 4, 8, 16, 32, 64]
    assert all(
        one.tasks * one.payload_bytes <= growth.BYTES_MAX + growth.TASKS_MIN * one.payload_bytes for one in points
    )


@pytest.mark.parametrize("payloads", ["8,64", "16,131072"])
def test_payloads_that_do_not_travel_inline_are_refused(payloads: str) -> None:
    parser = argparse.ArgumentParser()
    growth.add_options(parser)
    with pytest.raises(SystemExit):
        growth.plan_of(parser.parse_args(["--payloads", payloads]))


def test_an_axis_can_be_left_out() -> None:
    parser = argparse.ArgumentParser()
    growth.add_options(parser)
    points = growth.plan_of(parser.parse_args(["--workers", "", "--payloads", "", "--levels", ""])).points()
    assert {one.axis for one in points} == {TASKS, SIMULATED}


def test_a_record_is_read_as_it_was_written_and_is_none_of_the_peers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "HISTORY", tmp_path)
    saved = whole_run()
    path = saved.save()
    assert growth_record.load(path) == saved
    assert record.history() == []


def test_the_table_says_only_what_was_measured() -> None:
    text = growth_record.markdown(run(point(TASKS, 1_000, 20_000.0, 3.0), Point(axis=WORKERS, tasks=1, workers=1)))
    assert "| 1,000 | 20,000 (20,000 – 20,000) | 3.00 | 6.00 | 5.0 |" in text
    assert "| workers |" not in text


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(2, 10, [2, 5, 10]), (1_000, 100_000, [1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5]), (1, 1e4, [1, 10, 100, 1e3, 1e4])],
)
def test_ticks_are_round_and_few(low: float, high: float, expected: list[float]) -> None:
    assert growth_chart.ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("values", [[3.0], [1.0, 1.0], [999.0, 1001.0], [0.02, 70_000.0], [5.0, 50.0]])
def test_bounds_hold_all_values(values: list[float]) -> None:
    low, high = growth_chart.bounds(values)
    assert low <= min(values)
    assert max(values) <= high
    assert low < high


def test_no_two_texts_of_the_picture_overlap() -> None:
    tree = ElementTree.fromstring(growth_chart.chart(whole_run()))
    boxes = []
    for text in tree.iter("{http://www.w3.org/2000/svg}text"):
        width = len(text.text or "") * growth_chart.LABEL_PX * 0.95
        left = float(text.attrib["x"]) - width * {"start": 0, "middle": 0.5, "end": 1}[text.attrib["text-anchor"]]
        y = float(text.attrib["y"])
        boxes.append((left, left + width, y - 10, y + 2, text.text))
        assert left >= 0
    for one, other in itertools.combinations(boxes, 2):
        apart = one[1] <= other[0] or other[1] <= one[0] or one[3] <= other[2] or other[3] <= one[2]
        assert apart, (one[4], other[4])


def test_the_picture_shows_what_little_was_measured() -> None:
    assert growth_chart.chart(run(point(TASKS, 1_000, 20_000.0, 3.0))).count("<circle") == 3
    assert "<polyline" not in growth_chart.chart(run())


def test_a_simulated_worker_answers_each_task_with_its_argument() -> None:
    reports: list[tuple[Any, ...]] = []

    class Link:
        def report(self, *report: Any) -> None:
            reports.append(report)

    host = Host("127.0.0.1:1", "h")
    answering = Answering(host)
    answering.link = Link()  # type: ignore[assignment]
    group = work_queue_pb2.TaskGroup(job_id="j", epoch=3)
    for index in range(2):
        group.assignments.add(index=index, attempt=1, payload=encode_call([index]))
    answering.on_tasks([group])
    assert [(job, epoch, one["index"], one["result"]) for job, epoch, one in reports] == [
        ("j", 3, 0, b"0"),
        ("j", 3, 1, b"1"),
    ]
    assert {one["ending"] for *_, one in reports} == {report_queue_pb2.ENDING_SUCCEEDED}
    assert (host.frames, host.tasks) == (1, 2)


def test_the_targets_are_in_the_makefile() -> None:
    makefile = (Path(__file__).parents[3] / "Makefile").read_text()
    for target in ("bench-growth", "bench-clouds"):
        assert re.search(rf"^{target}: .* ## .+", makefile, re.MULTILINE)
