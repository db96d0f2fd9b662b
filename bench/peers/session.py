"""One contender, started, measured and ended. What it cannot do is left out; why is noted."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.peers import environments, processes
from bench.peers.contenders import Contender
from bench.peers.drivers.peer import BURN_MS, SLOTS

DRIVERS = Path(__file__).with_name("drivers")
START_S = 120.0
IDEAL_BURN_S = BURN_MS / 1000 / SLOTS
"""What one task adds to the wall time at best."""


class Failed(Exception):
    """The contender did not do what it was asked."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked of each."""

    bursts: tuple[int, ...] = (10_000, 100_000)
    trips: int = 1_000
    burns: int = 2_000
    killed: int = 400
    held: int = 100_000
    limit_s: float = 40.0
    """A measurement that would take longer, as far as a smaller one tells, is made smaller or left out."""


@dataclass(slots=True)
class Figures:
    """What was measured, by name of the measure; and what went wrong."""

    values: dict[str, float] = field(default_factory=dict)
    trouble: list[str] = field(default_factory=list)


class Session:
    """A driver process and the requests to it."""

    def __init__(self, contender: Contender) -> None:
        python = environments.python_of(contender)
        self._mark = uuid.uuid4().hex
        self._directory = tempfile.TemporaryDirectory(prefix="bench-")
        self._log = (Path(self._directory.name) / "driver.log").open("w+")
        environment = {
            **os.environ,
            **contender.environment,
            "PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}",
            processes.MARK: self._mark,
            "PYTHONPATH": os.pathsep.join(map(str, (DRIVERS, *(() if contender.packages else (environments.ROOT,))))),
        }
        self._process = subprocess.Popen(
            [python, str(DRIVERS / f"{contender.driver}.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=self._directory.name,
            env=environment,
        )
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def ask(self, do: str, timeout_s: float, **order: Any) -> Mapping[str, Any]:
        """One request.

        Raises:
            Failed: it was not done, or not in time.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **order}) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            raise Failed(f"{do}: not within {timeout_s:.0f} s") from None
        except OSError:
            line = ""
        if not line:
            raise Failed(f"{do}: the driver ended: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(f"{do}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        self._log.flush()
        self._log.seek(0)
        return (self._log.read().strip().splitlines() or ["no word"])[-1][:200]

    def cpu_s(self) -> float:
        """Of all of the contender's processes, the caller among them."""
        return processes.cpu_s(processes.marked(self._mark))

    def close(self) -> None:
        """End the driver and what it has left behind."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(30)
        except (OSError, subprocess.TimeoutExpired):
            pass
        processes.end_all(self._mark)
        self._process.wait(10)
        self._log.close()
        self._directory.cleanup()


def measure(contender: Contender, plan: Plan) -> Figures:
    """All measurements of one contender, once.

    Raises:
        environments.Missing: it cannot be had here.
    """
    session, figures = Session(contender), Figures()
    try:
        figures.values["start s"] = session.ask("start", START_S)["seconds"]
        pids = session.ask("scheduler", START_S)["pids"]
        pace = _pace(session, plan)
        for step in (_bursts, _trips, _burns, _hold, _kill):
            try:
                step(session, plan, figures.values, pids, pace)
            except Failed as error:
                figures.trouble.append(str(error))
                if "not within" in str(error) or "driver ended" in str(error):
                    break
    except Failed as error:
        figures.trouble.append(str(error))
    finally:
        session.close()
    return figures


def _pace(session: Session, plan: Plan) -> float:
    """Empty tasks a second, from one small burst after another that warms it up."""
    session.ask("burst", START_S, count=20)
    return 100 / float(session.ask("burst", START_S, count=100)["seconds"])


Step = Callable[[Session, Plan, dict[str, float], list[int], float], None]


def _bursts(session: Session, plan: Plan, values: dict[str, float], pids: list[int], pace: float) -> None:
    if plan.bursts[0] > pace * plan.limit_s:
        pace = _burst(session, plan, values, pids, int(max(pace * plan.limit_s / 8, 20)))
    for count in plan.bursts:
        if count <= pace * plan.limit_s:
            pace = _burst(session, plan, values, pids, count)


def _burst(session: Session, plan: Plan, values: dict[str, float], pids: list[int], count: int) -> float:
    before, before_scheduler = session.cpu_s(), processes.cpu_s(pids)
    pace = count / float(session.ask("burst", 5 * plan.limit_s + 60, count=count)["seconds"])
    values[f"tasks/s, {count:,}" if count in plan.bursts else "tasks/s, fewer"] = pace
    values["CPU us/task"] = (session.cpu_s() - before) / count * 1e6
    if pids:
        values["scheduler's CPU us/task"] = (processes.cpu_s(pids) - before_scheduler) / count * 1e6
    return pace


def _trips(session: Session, plan: Plan, values: dict[str, float], pids: list[int], pace: float) -> None:
    first = sum(session.ask("trips", 60, count=20)["seconds"]) / 20
    count = int(min(plan.trips, max(plan.limit_s / 2 / first, 20)))
    seconds = sorted(session.ask("trips", 5 * plan.limit_s, count=count)["seconds"])
    values["round trip ms p50"] = 1e3 * seconds[len(seconds) // 2]
    values["round trip ms p99"] = 1e3 * seconds[int(len(seconds) * 0.99)]


def _burns(session: Session, plan: Plan, values: dict[str, float], pids: list[int], pace: float) -> None:
    count = int(min(plan.burns, max(pace * plan.limit_s / 2, 40)))
    seconds = float(session.ask("burn", 10 * plan.limit_s, count=count)["seconds"])
    values["wall / ideal, 10 ms tasks"] = seconds / (count * IDEAL_BURN_S)


def _kill(session: Session, plan: Plan, values: dict[str, float], pids: list[int], pace: float) -> None:
    whole = plan.killed * IDEAL_BURN_S
    if pace < plan.killed / plan.limit_s:
        return
    answer = session.ask("kill", 60, count=plan.killed, after_s=whole / 2)
    if answer["seconds"] is not None:
        values["s lost by a killed worker"] = float(answer["seconds"]) - whole / 2


def _hold(session: Session, plan: Plan, values: dict[str, float], pids: list[int], pace: float) -> None:
    if not pids:
        return
    count = int(min(plan.held, max(pace * plan.limit_s / 2, 1_000)))
    before = processes.resident_bytes(pids)
    if session.ask("hold", 5 * plan.limit_s, count=count)["held"]:
        values["bytes per queued task"] = (processes.resident_bytes(pids) - before) / count
