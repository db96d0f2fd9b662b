"""The model: it finds the constants that a made-up farm has, predicts that farm's other points, and fills in docs/limits.md."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from bench import constants, growth_record, limits, model
from bench.growth_record import (
    AGENTS,
    CHILDREN,
    CLIENT,
    HOSTS,
    LEVELS,
    ORCHESTRATOR,
    PAYLOAD,
    SIMULATED,
    TASKS,
    WORKERS,
    Growth,
    Point,
)
from bench.model import Cost, Model

FARM = Model(
    real={
        CLIENT: Cost(task_us=8, byte_us=0.005, message_us=0),
        ORCHESTRATOR: Cost(task_us=14, byte_us=0.01, message_us=200),
        AGENTS: Cost(task_us=9, byte_us=0.006, message_us=300),
        CHILDREN: Cost(task_us=5, byte_us=0.004, message_us=0),
    },
    simulated={
        CLIENT: Cost(task_us=8, byte_us=0, message_us=0),
        ORCHESTRATOR: Cost(task_us=13, byte_us=0, message_us=200),
        HOSTS: Cost(task_us=7, byte_us=0, message_us=300),
    },
    busy_real=1.8,
    busy_one=1.3,
    busy_simulated=1.8,
    wait_us_byte=0.004,
    frame=600,
    deal=2_800,
    commit_us=400,
    write_us_byte=0.001,
    call_ms=0.8,
    submit_ms=1.6,
    pipe_ms=0.1,
    turn_worker_us=2.0,
    beat_us=0.0,
    beat_worker_us=0.0,
    level_us=25.0,
    busy_levels=1.6,
    level_ms=3.0,
    job_ms=7.0,
    warm=0.8,
)
"""What the runs below are made of. Nothing measured: any numbers do."""
CONSTANTS = {
    constants.COMMIT_MS: 0.4,
    constants.WRITE_US_KIB: 1.024,
    constants.CALL_MS: 0.8,
    constants.SUBMIT_MS: 1.6,
    constants.PIPE_MS: 0.1,
    constants.TURN_WORKER_US: 2.0,
    constants.BEAT_US: 0.0,
    constants.BEAT_WORKER_US: 0.0,
}


def made_up_run() -> Growth:
    points = [
        *(Point(axis=TASKS, tasks=10**n, workers=2) for n in range(3, 7)),
        *(Point(axis=WORKERS, tasks=100_000, workers=2**n) for n in range(7)),
        *(Point(axis=SIMULATED, tasks=100_000, workers=10**n) for n in range(4)),
        *(Point(axis=PAYLOAD, tasks=20_000, workers=2, payload_bytes=4**n) for n in range(2, 9)),
        *(Point(axis=LEVELS, tasks=100_000, workers=2, levels=n) for n in (1, 2, 3)),
    ]
    for point in points:
        told = FARM.predict(point)
        point.tasks_s, point.p50_ms = [told.tasks_s], [told.p50_ms]
        point.cpu_us = {name: [cost] for name, (cost, _) in FARM.costs(point).items()}
        if point.axis == SIMULATED:
            point.frame_tasks = [FARM.frame_tasks(point.workers, model.NUMBER_BYTES)]
    values = {name: [value] for name, value in CONSTANTS.items()}
    return Growth(
        revision="abc", date="2026-01-02 03:04", machine="m", cores=2, rounds=1, constants=values, points=points
    )


def test_it_predicts_a_farm_that_keeps_its_laws_at_every_point() -> None:
    run = made_up_run()
    found = model.calibrate(run)
    for point in run.points:
        told = found.predict(point)
        assert told.tasks_s == pytest.approx(point.rate, rel=0.05), (point.axis, point.x)
        assert told.p50_ms == pytest.approx(point.p50_ms[0], rel=0.05), (point.axis, point.x)


def test_it_finds_the_costs() -> None:
    found = model.calibrate(made_up_run())
    assert found.real[ORCHESTRATOR].task_us == pytest.approx(14, rel=0.02)
    assert found.real[ORCHESTRATOR].byte_us == pytest.approx(0.01, rel=0.02)
    assert found.real[AGENTS].message_us == pytest.approx(300, rel=0.02)
    assert found.deal == pytest.approx(2_800)
    assert found.busy_one == pytest.approx(1.3, rel=0.02)
    assert found.wait_us_byte == pytest.approx(0.004, rel=0.1)
    assert found.warm == pytest.approx(0.8, rel=0.02)
    assert found.level_us == pytest.approx(25.0, rel=0.02)
    assert found.level_ms == pytest.approx(3.0, rel=0.1)
    assert found.busy_levels == pytest.approx(1.6, rel=0.02)
    assert found.job_ms == pytest.approx(7.0, rel=0.05)


def test_beats_at_either_end_make_a_single_task_wait() -> None:
    """A thousand workers whose beats take a tenth and a fifth of a core."""
    beat_us = model.BEAT_US / 1_000
    point = Point(axis=SIMULATED, tasks=1, workers=1_000)
    busy = replace(FARM, beat_us=0.1 * beat_us, beat_worker_us=0.2 * beat_us)
    assert busy.trip_ms(point) == pytest.approx(FARM.trip_ms(point) / 0.7)


def test_nine_points_are_enough_to_predict_all_others() -> None:
    run = made_up_run()
    whole = model.calibrate(run)
    chosen = model.base(run).points
    run.points = list(chosen)
    assert model.calibrate(run) == whole
    assert [point.x for point in chosen] == [1_000, 100_000, 2, 1, 16_384, 1, 100, 32, 2]


@pytest.mark.parametrize("axis", [TASKS, PAYLOAD, SIMULATED])
def test_a_run_without_a_point_to_calibrate_on_is_refused(axis: str) -> None:
    run = made_up_run()
    run.points = [point for point in run.points if point.axis != axis]
    with pytest.raises(SystemExit, match="the model needs"):
        model.calibrate(run)


def test_a_run_of_three_levels_without_two_is_refused() -> None:
    run = made_up_run()
    run.points = [point for point in run.points if point.levels != 2]
    with pytest.raises(SystemExit, match="the point of two levels"):
        model.calibrate(run)
    run.points = [point for point in run.points if point.levels == 1]
    assert model.calibrate(run).level_us == 0


def test_messages_of_real_workers_may_cost_more_than_those_of_simulated_ones() -> None:
    run = made_up_run()
    for point in run.points:
        if point.axis == WORKERS:
            point.cpu_us[AGENTS] = [9 + 900 * point.workers / 2_800]
    assert model.calibrate(run).real[AGENTS].message_us == pytest.approx(900, rel=0.15)
    run.points = [point for point in run.points if point.axis != WORKERS]
    assert model.calibrate(run).real[AGENTS].message_us == pytest.approx(300, rel=0.02)


def test_one_program_can_be_the_limit() -> None:
    one = Point(axis=WORKERS, tasks=100_000, workers=1)
    slow = {**FARM.real, CHILDREN: Cost(task_us=500, byte_us=0, message_us=0)}
    fields = {name: getattr(FARM, name) for name in Model.__slots__}
    assert Model(**{**fields, "real": slow}).predict(one).bound == CHILDREN
    assert FARM.predict(one).bound == "cores"


def test_the_command_prints_every_point(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, path = made_up_run(), tmp_path / "run.json"
    path.write_text(run.to_json())
    monkeypatch.setattr("sys.argv", ["bench.model", "--record", str(path)])
    assert model.main() == 0
    said = capsys.readouterr().out
    assert said.count("| simulated workers ") >= 4
    assert "0 of 25 points are off by more than 20%" in said


def test_the_document_has_the_table_of_the_record_that_it_names() -> None:
    root = Path(__file__).parents[3]
    document = (root / "docs" / "limits.md").read_text()
    [name] = set(re.findall(r"growth-[0-9a-f-]+\.json", document))
    found = model.calibrate(growth_record.load(root / "bench" / "history" / name))
    assert "\n".join(limits.table(model.measured(found))) in document  # `python -m bench.model --record FILE` prints it
    assert len(document.splitlines()) <= 120


def test_more_leaves_are_wanted_where_a_task_or_a_beat_costs_more() -> None:
    def needed(**other: float) -> int:
        costs = {
            "task_us": 10,
            "byte_us": 0,
            "message_us": 100,
            "beat_us": 100,
            "turn_worker_us": 0.1,
            "commit_us": 500,
        }
        return limits.leaves(limits.Measured(**{**costs, **other}))

    assert needed(message_us=1_000) > needed()
    assert needed(beat_us=1_000) > needed()
    assert needed(turn_worker_us=10) > needed()
