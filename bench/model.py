"""`python -m bench.model`: what a task costs, in a few terms, and what that predicts for each point of a growth run, beside what was measured there.

**CPU.** Each program's CPU for one task, in microseconds, is

    cost = task + byte x payload_bytes + message x messages

*task* is what any task costs it in large batches; *byte* what a byte of its payload adds; *message* what a message adds, of which a task has a share:
messages = 1 / tasks in a frame. A frame holds what the window of a worker lets through at most (`frame`), and what is dealt out at a time is divided by all
workers (`deal` / workers); a frame holds 1 MiB of payloads at most. Assignments, reports and verdicts come in frames of about the same number of tasks, so
that one number stands for all three.

**Throughput.** A task takes the farm the longest of

- *cores*: the sum of all programs' costs, divided by the cores that are kept busy (fewer than there are: somebody always waits for somebody, most of all where
  one worker alone hands its frames to and fro, and where they go through levels), and what a byte of its payload makes everybody wait for the disk;
- *a program*: the largest cost of one program, divided by its processes: a program is one thread;
- *the journal*: commit / tasks in a commit + write x payload_bytes. Commits run beside everything else, each with all that gathered during the last.

A job of N tasks takes `trip + job + N x that + fill`. *trip* is the round trip of one task; *job* what each job costs beside it, seen at the smallest; *fill* is
there because the first batch has to pass through all
programs one after the other before they all work at once: (sum of costs by process - that) for each task of the client's first message. Heartbeats are not
counted: under load they are read together with what else has come, and cost a small part of what an idle farm pays for them.

**Latency.** The round trip of one task is the sum of its hops on an idle farm: from the client to the orchestrator and back with a commit between them, which is
what a submission takes; from the orchestrator to the worker and back, for which a call stands; and through a pipe to the worker's child and back. There are two commits, and the
first, of the submission, goes on while the task is on its way. Each worker adds its share of one pass of placement, and heartbeats make everything wait
a little: 1 / (1 - their share of a core, at the orchestrator and at the workers, which share the machine). What a byte costs all programs is added. A hop that follows upon another costs less than one alone: by how much
(*warm*) is the mean of the points for calibration.

**Levels.** Each orchestrator below the first, through which tasks pass as they are, makes a task and a round trip cost more, itself and for the others; both as
much as the first of them does.

**Constants** come from the same run: the round trips of single parts, the commit and the core from `bench.constants`; costs from nine points of the farm
itself, marked * in the table: many tasks on two workers, on three axes (costs a task, cores kept busy), and few (what a job costs), large payloads (costs a byte), one and some hundred simulated
workers and some tens of real ones (costs a message, tasks in a frame, tasks dealt out at a time), two levels. All other points are predicted. A worker's message costs it what one costs a simulated
worker, which is the same code.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from antfarm.client.writer import BATCH_TASKS_MAX
from antfarm.model import BATCH_BYTES_MAX
from bench import constants, growth, growth_record, limits
from bench.growth_record import (
    AGENTS,
    AXES,
    BELOW,
    CHILDREN,
    CLIENT,
    HOSTS,
    LEVELS,
    ORCHESTRATOR,
    PAYLOAD,
    PROGRAMS,
    SIMULATED,
    STORAGE,
    TASKS,
    WORKERS,
    Growth,
    Point,
)
from bench.simulated import PROCESSES

OVERHEAD_BYTES = 32
"""Counted for each task of a frame beside its payload, by the orchestrator too."""
NUMBER_BYTES = 8
"""About what a small number takes as arguments."""
TASKS_BASE, PAYLOAD_BASE, SIMULATED_BASE, WORKERS_BASE = 100_000, 16 << 10, 100, 32
"""Where the points for calibration are looked for: the largest on their axes that are not above these."""
BEAT_US = growth.BEAT_S * 1e6
GOAL = 0.2
REAL = (CLIENT, ORCHESTRATOR, STORAGE, AGENTS, CHILDREN)
PRETENDED = (CLIENT, ORCHESTRATOR, STORAGE, HOSTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One program's CPU, in microseconds: a task, a byte of its payload, a message."""

    task_us: float
    byte_us: float
    message_us: float

    def of(self, payload_bytes: float, messages: float) -> float:
        """Microseconds for one task."""
        return self.task_us + self.byte_us * payload_bytes + self.message_us * messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """For one point."""

    tasks_s: float
    cpu_us: float
    """Of all programs, a task."""
    p50_ms: float
    bound: str
    """What the throughput is limited by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """All constants. `real` and `simulated` hold what programs cost with workers of either kind."""

    real: dict[str, Cost]
    simulated: dict[str, Cost]
    busy_real: float
    """Cores that are kept busy."""
    busy_one: float
    """The same with one worker alone, measured at a simulated one."""
    busy_simulated: float
    """The same with several simulated ones."""
    wait_us_byte: float
    """What a byte of payload makes everybody wait for the disk."""
    frame: float
    """Tasks that a frame of work holds with one worker."""
    deal: float
    """Tasks that are dealt out at a time, to all workers together."""
    commit_us: float
    write_us_byte: float
    call_ms: float
    submit_ms: float
    pipe_ms: float
    turn_worker_us: float
    beat_us: float
    beat_worker_us: float
    level_us: float = 0.0
    """What a task costs all programs for each orchestrator below the first."""
    busy_levels: float = 0.0
    """Cores that are kept busy where there are some."""
    level_ms: float = 0.0
    """What each of them adds to a round trip."""
    job_ms: float = 0.0
    """What a job takes beside the round trip and its tasks."""
    warm: float = 1.0
    """What the hops of a task cost in a row, of what they cost alone."""

    # ---- throughput -------------------------------------------------------------------------------------------------

    def frame_tasks(self, workers: int, payload_bytes: float) -> float:
        """Tasks in a frame."""
        return max(min(self.frame, self.deal / workers, BATCH_BYTES_MAX / (payload_bytes + OVERHEAD_BYTES)), 1.0)

    def costs(self, point: Point) -> dict[str, tuple[float, int]]:
        """Program -> microseconds a task, and its processes."""
        payload_bytes = point.payload_bytes or NUMBER_BYTES
        messages = 1 / self.frame_tasks(point.workers, payload_bytes)
        costs = self.simulated if point.axis == SIMULATED else self.real
        processes = {AGENTS: point.workers, CHILDREN: point.workers, HOSTS: min(point.workers, PROCESSES)}
        found = {name: (cost.of(payload_bytes, messages), processes.get(name, 1)) for name, cost in costs.items()}
        below = point.levels - 1
        return {**found, BELOW: (self.level_us * below, below)} if below else found

    def predict(self, point: Point) -> Prediction:
        """Throughput and round trip."""
        payload_bytes = point.payload_bytes or NUMBER_BYTES
        costs = self.costs(point)
        cpu_us = sum(cost for cost, _ in costs.values())
        serial = {name: cost / processes for name, (cost, processes) in costs.items()}
        bounds = {
            "cores": cpu_us / self._busy(point) + self.wait_us_byte * payload_bytes,
            **serial,
            "journal": self.commit_us / self.deal + self.write_us_byte * payload_bytes,
        }
        bound = max(bounds, key=lambda name: bounds[name])
        task_us, trip_ms = bounds[bound], self.trip_ms(point)
        first = min(point.tasks, BATCH_TASKS_MAX, BATCH_BYTES_MAX / (payload_bytes + OVERHEAD_BYTES))
        fill_us = first * max(sum(serial.values()) - task_us, 0.0)
        seconds = (trip_ms + self.job_ms) / 1e3 + (point.tasks * task_us + fill_us) / 1e6
        tasks_s = point.tasks / seconds
        return Prediction(tasks_s=tasks_s, cpu_us=cpu_us, p50_ms=trip_ms, bound=bound)

    def _busy(self, point: Point) -> float:
        if point.levels > 1:
            return self.busy_levels
        if point.workers == 1:
            return self.busy_one
        return self.busy_simulated if point.axis == SIMULATED else self.busy_real

    # ---- latency ----------------------------------------------------------------------------------------------------

    def hops_ms(self, *, child: bool) -> list[tuple[str, float]]:
        """The hops of a single task that the client waits for; with a child process or without."""
        hops = [("to the orchestrator, a commit, and back", self.submit_ms), ("to the worker and back", self.call_ms)]
        return [*hops, *([("child", self.pipe_ms)] if child else [])]

    def trip_ms(self, point: Point) -> float:
        """Round trip of one task on the idle farm of the point."""
        costs = self.simulated if point.axis == SIMULATED else self.real
        hops_ms = sum(ms for _, ms in self.hops_ms(child=point.axis != SIMULATED))
        hops_ms += (point.levels - 1) * self.level_ms
        hops_ms += point.workers * self.turn_worker_us / 1e3
        hops_ms += sum(cost.byte_us for cost in costs.values()) * point.payload_bytes / 1e3
        beats = point.workers * (self.beat_us + self.beat_worker_us) / BEAT_US
        return self.warm * hops_ms / max(1 - beats, 0.05)


# ---- calibration ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The points that constants are taken from."""

    small: Point
    few: Sequence[Point]
    """Of many tasks and two workers, wherever the run has been there: the same farm in the company of other points."""
    large: Point
    one: Point
    many: Point
    two: Point | None
    """Of two levels; None where the run has none."""
    tens: Point | None
    """Of real workers; None where the run has none with more than the fewest."""

    @property
    def points(self) -> tuple[Point, ...]:
        """All of them."""
        return self.small, *self.few, self.large, self.one, self.many, *filter(None, (self.tens, self.two))


def base(run: Growth) -> Base:
    """Choose them. SystemExit where the run lacks one."""
    few, large = _at_most(run.axis(TASKS), TASKS_BASE), _at_most(run.axis(PAYLOAD), PAYLOAD_BASE)
    simulated = run.axis(SIMULATED)
    many = _at_most(simulated, SIMULATED_BASE)
    if few is None or large is None or many is None or many.x <= simulated[0].x:
        raise SystemExit("the model needs a point of tasks, one of payloads and two of simulated workers (1 and 100)")
    two = next((point for point in run.axis(LEVELS) if point.levels == 2), None)
    if two is None and any(point.levels > 1 for point in run.axis(LEVELS)):
        raise SystemExit("the model needs the point of two levels for those of more")
    tens = _at_most(run.axis(WORKERS), WORKERS_BASE)
    small = run.axis(TASKS)[0]
    return Base(
        small=small,
        few=[point for axis in (TASKS, WORKERS, LEVELS) for point in run.axis(axis) if _is_same(point, few)],
        large=large,
        one=simulated[0],
        many=many,
        two=two,
        tens=tens if tens and tens.x > few.workers else None,
    )


def _is_same(point: Point, other: Point) -> bool:
    return (point.tasks, point.workers, point.levels) == (other.tasks, other.workers, other.levels)


def _pooled(points: Sequence[Point]) -> Point:
    """One point with all that was measured at these, which are the same."""
    programs = {name for point in points for name in point.cpu_us}
    return replace(
        points[0],
        tasks_s=[rate for point in points for rate in point.tasks_s],
        p50_ms=[ms for point in points for ms in point.p50_ms],
        cpu_us={name: [us for point in points for us in point.cpu_us.get(name, ())] for name in programs},
    )


def _at_most(points: Sequence[Point], x: int) -> Point | None:
    return next((point for point in reversed(points) if point.x <= x), None)


def calibrate(run: Growth) -> Model:
    """The constants of a run. Costs that noise made negative are 0."""
    at = base(run)
    frame = statistics.median(at.one.frame_tasks)
    deal = statistics.median(at.many.frame_tasks) * at.many.workers
    simulated = {program: _simulated_cost(program, at, frame, deal) for program in PRETENDED}
    few = _pooled(at.few)
    busy = _busy(few)
    cold = Model(
        real={program: _real_cost(program, at, few, frame, deal, simulated) for program in REAL},
        simulated=simulated,
        busy_real=busy,
        busy_one=_busy(at.one),
        busy_simulated=_busy(at.many),
        wait_us_byte=max(1e6 / at.large.rate - _cpu_us(at.large) / busy, 0.0) / at.large.payload_bytes,
        frame=frame,
        deal=deal,
        commit_us=run.constant(constants.COMMIT_MS) * 1e3,
        write_us_byte=run.constant(constants.WRITE_US_KIB) / 1024,
        call_ms=run.constant(constants.CALL_MS),
        submit_ms=run.constant(constants.SUBMIT_MS),
        pipe_ms=run.constant(constants.PIPE_MS),
        turn_worker_us=run.constant(constants.TURN_WORKER_US),
        beat_us=run.constant(constants.BEAT_US),
        beat_worker_us=run.constant(constants.BEAT_WORKER_US),
    )
    warm = replace(
        cold,
        warm=statistics.fmean(
            statistics.median(point.p50_ms) / cold.trip_ms(point) for point in at.points if point is not at.two
        ),
    )
    if at.two is not None:
        more_ms = (statistics.median(at.two.p50_ms) - warm.trip_ms(few)) / warm.warm
        more_us = _cpu_us(at.two) - _cpu_us(few)
        warm = replace(warm, level_us=max(more_us, 0.0), level_ms=max(more_ms, 0.0), busy_levels=_busy(at.two))
    rest_s = 1 / at.small.rate - 1 / warm.predict(at.small).tasks_s
    return replace(warm, job_ms=max(1e3 * at.small.tasks * rest_s, 0.0))


def _simulated_cost(program: str, at: Base, frame: float, deal: float) -> Cost:
    """From one and from many simulated workers: the same tasks in frames of different size."""
    more_messages = 1 / min(frame, deal / at.many.workers) - 1 / frame
    message_us = max((at.many.cpu(program) - at.one.cpu(program)) / more_messages, 0.0)
    return Cost(task_us=max(at.one.cpu(program) - message_us / frame, 0.0), byte_us=0.0, message_us=message_us)


def _real_cost(program: str, at: Base, few: Point, frame: float, deal: float, simulated: dict[str, Cost]) -> Cost:
    """From two workers with small and with large payloads, and from some tens of workers."""
    message_us = simulated[HOSTS if program == AGENTS else program].message_us if program != CHILDREN else 0.0
    messages = 1 / min(frame, deal / few.workers)
    if at.tens is not None:
        more_messages = 1 / min(frame, deal / at.tens.workers) - messages
        message_us = max((at.tens.cpu(program) - few.cpu(program)) / more_messages, message_us)
    messages_large = 1 / min(
        frame, deal / at.large.workers, BATCH_BYTES_MAX / (at.large.payload_bytes + OVERHEAD_BYTES)
    )
    more_us = at.large.cpu(program) - few.cpu(program) - message_us * (messages_large - messages)
    byte_us = max(more_us / (at.large.payload_bytes - NUMBER_BYTES), 0.0)
    task_us = max(few.cpu(program) - message_us * messages - byte_us * NUMBER_BYTES, 0.0)
    return Cost(task_us=task_us, byte_us=byte_us, message_us=message_us)


def _busy(point: Point) -> float:
    """Cores that were busy on a point's behalf."""
    return point.rate * _cpu_us(point) / 1e6


def _cpu_us(point: Point) -> float:
    return sum(point.cpu(program) for program in PROGRAMS)


# ---- telling ----------------------------------------------------------------------------------------------------------


def main() -> int:
    """Measure or read a run, then print constants, predictions and what the design needs for a very large farm. Exit code 1 when a point is off."""
    parser = argparse.ArgumentParser(prog="python -m bench.model", description="Predict the farm's throughput.")
    growth.add_options(parser)
    parser.add_argument("--record", type=Path, metavar="FILE", help="read this growth run, measure nothing")
    options = parser.parse_args()
    run = growth_record.load(options.record) if options.record else growth.measure(growth.plan_of(options))
    model = calibrate(run)
    print("\n".join([*_told_constants(run, model), "", *_told_points(run, model), "", *_told_limits(model)]))
    off = [
        point for point in run.points if point.tasks_s and abs(_error(model.predict(point).tasks_s, point.rate)) > GOAL
    ]
    print(f"\n{len(off)} of {sum(bool(point.tasks_s) for point in run.points)} points are off by more than {GOAL:.0%}.")
    return 1 if off else 0


def _told_constants(run: Growth, model: Model) -> Iterator[str]:
    yield f"Revision {run.revision}, {run.date}, {run.machine}."
    yield ""
    yield "| CPU of | µs a task | ns a byte | µs a message |"
    yield "|---|---|---|---|"
    for name, cost in {**model.real, HOSTS: model.simulated[HOSTS]}.items():
        if cost.task_us or cost.byte_us or cost.message_us:
            yield f"| {name} | {cost.task_us:.1f} | {1e3 * cost.byte_us:.2f} | {cost.message_us:.0f} |"
    yield ""
    yield "| constant | value |"
    yield "|---|---|"
    yield (
        "| cores kept busy, with workers / with one alone / with simulated ones "
        f"| {model.busy_real:.2f} / {model.busy_one:.2f} / {model.busy_simulated:.2f} of {run.cores} |"
    )
    yield f"| what a KiB makes everybody wait for the disk, µs | {model.wait_us_byte * 1024:.2f} |"
    yield f"| hops in a row, of what they cost alone | {model.warm:.2f} |"
    if model.level_us:
        yield f"| each orchestrator below the first, µs of CPU a task / ms a round trip | {model.level_us:.1f} / {model.warm * model.level_ms:.2f} |"
        yield f"| cores kept busy where there are some | {model.busy_levels:.2f} of {run.cores} |"
    yield f"| a job beside the round trip and its tasks, ms | {model.job_ms:.1f} |"
    yield f"| tasks in a frame of one worker / dealt out at a time | {model.frame:,.0f} / {model.deal:,.0f} |"
    for name in run.constants:
        yield f"| {name} | {run.constant(name):.3g} |"
    yield ""
    hops = ", ".join(f"{name} {ms:.2f}" for name, ms in model.hops_ms(child=True))
    yield f"Hops of a single task, ms: {hops}."


def _told_points(run: Growth, model: Model) -> Iterator[str]:
    marked = {id(point) for point in base(run).points}
    columns = ("tasks/s", "CPU µs a task", "round trip ms p50")
    yield "| point | " + " | ".join(f"{name}: predicted | measured | error %" for name in columns) + " | limit |"
    yield "|---" * (3 * len(columns) + 2) + "|"
    for name in AXES:
        for point in run.axis(name):
            told = model.predict(point)
            cells = [f"{name} {point.x:,}{' *' if id(point) in marked else ''}"]
            cells += _compared(told.tasks_s, point.rate, "{:,.0f}") + _compared(told.cpu_us, _cpu_us(point), "{:.1f}")
            cells += _compared(told.p50_ms, statistics.median(point.p50_ms), "{:.2f}")
            yield f"| {' | '.join(cells)} | {told.bound} |"
    yield ""
    yield "\\* used for calibration"


def _compared(predicted: float, measured: float, form: str) -> list[str]:
    error = f"{100 * _error(predicted, measured):+.0f}" if measured else ""
    return [form.format(predicted), form.format(measured), error]


def _error(predicted: float, measured: float) -> float:
    return predicted / measured - 1


def measured(model: Model) -> limits.Measured:
    """What the table of limits needs of a model."""
    orchestrator = model.real[ORCHESTRATOR]
    return limits.Measured(
        task_us=orchestrator.task_us,
        byte_us=orchestrator.byte_us,
        message_us=orchestrator.message_us,
        beat_us=model.beat_us,
        turn_worker_us=model.turn_worker_us,
        commit_us=model.commit_us,
    )


def _told_limits(model: Model) -> Iterator[str]:
    yield "For 10,000 nodes and 10^9 tasks (docs/limits.md):"
    yield ""
    yield from limits.table(measured(model))


if __name__ == "__main__":
    sys.exit(main())
