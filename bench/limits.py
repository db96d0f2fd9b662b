"""What the design does at 10,000 nodes and 10^9 tasks, on paper: the table of docs/limits.md, each number by a formula.

`python -m bench.limits` prints it with the cells that need a measurement left open, as the document has it; `python -m bench.model` fills them in with the
constants of its run. The farm is a tree of two levels: one orchestrator on top, K leaves below it, each with its share of the nodes and a journal of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench import constants
from services.orchestrator.core.parents import KEPT_MAX, STAGES
from services.orchestrator.settings import OrchestratorSettings

NODES, TASKS = 10_000, 1_000_000_000
SLOTS, TASK_S = 16, 10.0
PAYLOAD_BYTES, RESULT_BYTES = 100, 20
CHILDREN = 10_000
BUSY, BUSY_BEATS = 0.5, 0.1
DEFAULTS = OrchestratorSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Constants of the model that the table needs: microseconds of the orchestrator's CPU, and of a commit."""

    task_us: float
    byte_us: float
    message_us: float
    beat_us: float
    turn_worker_us: float
    commit_us: float


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table. `exact` needs no measurement; `measured` does."""

    name: str
    formula: str
    exact: Callable[[], str] | None = None
    measured: Callable[[Measured], str] | None = None

    def value(self, measured: Measured) -> str:
        """What the last cell says."""
        if self.exact is not None:
            return self.exact()
        assert self.measured is not None
        return self.measured(measured)


# ---- exact ------------------------------------------------------------------------------------------------------------


def demand_s() -> float:
    """Tasks a second that all slots together take."""
    return NODES * SLOTS / TASK_S


def memory_queued_bytes() -> int:
    """Of a queued task: state, digest, outcome and winner, the list's pointer, and the payload as an object of CPython."""
    return 1 + 20 + 8 + -(-(33 + PAYLOAD_BYTES) // 16) * 16


def memory_ended_bytes() -> int:
    """Of an ended task: the same without its payload; results are in the journal."""
    return 1 + 20 + 8


def journal_bytes() -> float:
    """Of one task whose outcome comes in a message of its own, as that of a long task does."""
    found = constants.journal_bytes()
    return (
        PAYLOAD_BYTES
        + found[constants.QUEUED_JOURNAL_BYTES]
        + RESULT_BYTES
        + found[constants.ALONE_JOURNAL_BYTES]
        + constants.ROW_BYTES
    )


def held_parents() -> int:
    """Parents that a leaf may hold: the window that it asks for."""
    return 2 * DEFAULTS.upstream_slots


def kept_parents() -> int:
    """Ended parents whose jobs a leaf keeps."""
    return KEPT_MAX // len(STAGES)


# ---- measured ---------------------------------------------------------------------------------------------------------


def leaf_task_us(measured: Measured) -> float:
    """A leaf's CPU for a task that travels alone: long tasks are reported one by one."""
    return measured.task_us + measured.byte_us * PAYLOAD_BYTES + measured.message_us


def leaves_for_rate(measured: Measured) -> float:
    """Leaves until none is busier than BUSY with tasks."""
    return demand_s() * leaf_task_us(measured) / 1e6 / BUSY


def leaves_for_beats(measured: Measured) -> float:
    """Leaves until none spends more than BUSY_BEATS on heartbeats."""
    return NODES / DEFAULTS.heartbeat_s * measured.beat_us / 1e6 / BUSY_BEATS


def leaves_for_placement(measured: Measured) -> float:
    """Leaves until none is busier than BUSY with looking at its workers once for each task."""
    return math.sqrt(demand_s() * NODES * measured.turn_worker_us / 1e6 / BUSY)


def leaves(measured: Measured) -> int:
    """As many as the most demanding of the three wants."""
    needed = (leaves_for_rate(measured), leaves_for_beats(measured), leaves_for_placement(measured))
    return max(math.ceil(max(needed)), 1)


def commits_s(measured: Measured) -> float:
    """Of a leaf: one for each report, or as many as the disk does."""
    return min(demand_s() / leaves(measured), 1e6 / measured.commit_us)


def _leaf(of: Callable[[int], float], form: str) -> Callable[[Measured], str]:
    return lambda measured: form.format(of(leaves(measured)))


ROWS = (
    Row("demand λ", "W·s / d", lambda: f"{demand_s():,.0f} tasks/s"),
    Row("whole run", "N / λ", lambda: f"{TASKS / demand_s() / 3600:.1f} h"),
    Row("parents P, tasks of the top", "N / n", lambda: f"{TASKS // CHILDREN:,}"),
    Row("parents that begin", "λ / n", lambda: f"{demand_s() / CHILDREN:.1f} /s"),
    Row("leaf's CPU for a task c", "task + byte·p + message", measured=lambda m: f"{leaf_task_us(m):.0f} µs"),
    Row("leaves for the rate", "λ·c / u", measured=lambda m: f"{leaves_for_rate(m):.1f}"),
    Row("leaves for heartbeats", "W·beat / (H·v)", measured=lambda m: f"{leaves_for_beats(m):.1f}"),
    Row("leaves for placement", "√(λ·W·look / u)", measured=lambda m: f"{leaves_for_placement(m):.1f}"),
    Row("leaves K", "the largest, rounded up", measured=lambda m: f"{leaves(m)}"),
    Row("nodes of a leaf", "W / K", measured=_leaf(lambda k: NODES / k, "{:,.0f}")),
    Row("heartbeats at a leaf", "W / (K·H)", measured=_leaf(lambda k: NODES / k / DEFAULTS.heartbeat_s, "{:,.0f} /s")),
    Row("heartbeats at the top", "K / H", measured=_leaf(lambda k: k / DEFAULTS.heartbeat_s, "{:.1f} /s")),
    Row("commits at a leaf", "min(λ / K, 1 / commit)", measured=lambda m: f"{commits_s(m):,.0f} /s"),
    Row("outcomes in a commit", "λ / (K·commits)", measured=lambda m: f"{demand_s() / leaves(m) / commits_s(m):.1f}"),
    Row("memory of a queued task q", "1 + 20 + 8 + ⌈33 + p⌉₁₆", lambda: f"{memory_queued_bytes()} bytes"),
    Row("memory of an ended task e", "1 + 20 + 8", lambda: f"{memory_ended_bytes()} bytes"),
    Row("memory of a leaf's queue", "h·n·q", lambda: f"{held_parents() * CHILDREN * memory_queued_bytes() / 1e6:.0f} MB"),
    Row("memory of what a leaf keeps", "k·n·e", lambda: f"{kept_parents() * CHILDREN * memory_ended_bytes() / 1e6:.0f} MB"),
    Row("memory of the top's queue", "P·q", lambda: f"{TASKS // CHILDREN * memory_queued_bytes() / 1e6:.0f} MB"),
    Row("journal of a task j", "p + added + r + alone + row", lambda: f"{journal_bytes():.0f} bytes"),
    Row("journal of a leaf, at most", "(h + k)·n·j", lambda: f"{(held_parents() + kept_parents()) * CHILDREN * journal_bytes() / 1e6:.0f} MB"),
    Row("written by all leaves", "N·j", lambda: f"{TASKS * journal_bytes() / 1e9:.0f} GB"),
    Row("written by a leaf", "λ·j / K", measured=_leaf(lambda k: demand_s() * journal_bytes() / k / 1e3, "{:,.0f} kB/s")),
    Row("plans through Storage", "P·n·p·4/3", lambda: f"{TASKS * PAYLOAD_BYTES * 4 / 3 / 1e9:.0f} GB"),
)  # fmt: skip


def table(measured: Measured) -> Iterator[str]:
    """Markdown."""
    yield "| what | formula | value |"
    yield "|---|---|---|"
    for row in ROWS:
        yield f"| {row.name} | {row.formula} | {row.value(measured)} |"
