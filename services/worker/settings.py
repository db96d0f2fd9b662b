"""Settings of the worker."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from antfarm.errors import InvalidArgument
from antfarm.settings import ProgramSettings, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings(ProgramSettings):
    """All settings of a worker."""

    connect: tuple[str, ...] = setting(
        help="Orchestrator to pull tasks from; repeat it, or separate by commas, for its standbys.", metavar="HOST:PORT"
    )
    slots: int = setting(
        0, "Tasks that run at the same time. Default: the number of CPUs, since a plain task keeps one busy."
    )
    app: tuple[str, ...] = setting((), "Module or Python file with tasks, to offer. Repeatable.", metavar="MODULE|FILE")
    installed_apps: bool = setting(True, "Offer the tasks of installed packages (`antfarm.apps` entry points) too.")
    label: tuple[str, ...] = setting((), "Label that jobs can ask for. Repeatable.", metavar="KEY=VALUE")
    resource: tuple[str, ...] = setting(
        (), "Resource that tasks can take a share of, e.g. gpu=1. Repeatable.", metavar="NAME=AMOUNT"
    )
    env: tuple[str, ...] = setting(
        (), "Variable that tasks see besides the usual ones. Repeatable.", metavar="NAME[=VALUE]"
    )
    state: Path | None = setting(
        None, "Directory of all workers' state on this node. Default: ~/.local/state/antfarm/worker.", metavar="DIR"
    )
    worker_id: str = setting(
        "", "Stable name of this worker. Default: <host>-<n> with the first n that is free.", metavar="NAME"
    )
    node: str = setting(
        "",
        "Name of this node, as people see it; a second attempt of a slow task goes to another node. Default: the machine's host name.",
        metavar="NAME",
    )
    storage: str = setting("", "Storage to use in place of the one that the orchestrator names.", metavar="HOST:PORT")
    allow_pickle: bool = setting(
        False, "Run functions and read values that travel as pickles. Whoever may submit can then run any code here."
    )
    drain_s: float = setting(
        30.0, "Seconds that running tasks get to end when the worker is stopped; the most that a drain may give them."
    )
    cancel_grace_s: float = setting(10.0, "Seconds from the request to stop a task to SIGKILL.")

    def __post_init__(self) -> None:
        """Check what types alone do not say."""
        for flag, value_s in (("--drain-s", self.drain_s), ("--cancel-grace-s", self.cancel_grace_s)):
            if not 0 <= value_s < math.inf:
                raise InvalidArgument(f"{flag} {value_s:g}: give a number of seconds, 0 or more")

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where to dial, in order."""
        return tuple(part.strip() for item in self.connect for part in item.split(",") if part.strip())

    @property
    def slot_count(self) -> int:
        """Tasks at the same time."""
        if self.slots < 0 or self.slots > 4096:
            raise InvalidArgument(f"--slots {self.slots}: must be from 1 to 4096, or 0 for the number of CPUs")
        return self.slots or len(os.sched_getaffinity(0))

    @property
    def labels(self) -> dict[str, str]:
        """Labels as Hello has them."""
        return dict(_pair("--label", item, "zone=a") for item in self.label)

    @property
    def resources(self) -> dict[str, float]:
        """Resources as Hello has them: given ones, "cpu" = slots, and the machine's memory."""
        amounts = {"cpu": float(self.slot_count)}
        try:
            amounts["memory_bytes"] = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        except (ValueError, OSError):  # not told on this system: tasks that ask for memory go elsewhere
            pass
        for item in self.resource:
            name, value = _pair("--resource", item, "gpu=1")
            try:
                amounts[name] = float(value)
            except ValueError:
                raise InvalidArgument(f"--resource {item}: {value!r} is not a number") from None
            if not 0 <= amounts[name] < math.inf:
                raise InvalidArgument(f"--resource {item}: must be a number of at least 0")
        return amounts


def _pair(flag: str, item: str, example: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not equals or not name:
        raise InvalidArgument(f"{flag} {item}: write NAME=VALUE, e.g. {flag} {example}")
    return name, value
